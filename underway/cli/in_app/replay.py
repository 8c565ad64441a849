"""Runs `underway replay APP RUN [--pdb]` in a process of its own, because it imports the app."""

import faulthandler
import io
import json
import logging
import pdb
import sys
from uuid import UUID

import click

from underway.app import Underway
from underway.cli.in_app.app import loaded_app
from underway.cli.options.database import connect
from underway.cli.options.resolve import deleted_meanwhile, resolve_run
from underway.cli.output.format import duration
from underway.payload import codec
from underway.postgres import inspection
from underway.postgres.inspection import StoredAttempt
from underway.postgres.transitions import AdvanceRun, FinishRun
from underway.printable import printable
from underway.testing.replay import replay


def main() -> None:
    faulthandler.enable()  # the step may be replayed because it kills its process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what it prints before that must not be lost
    logging.basicConfig(level=logging.INFO, format="%(levelname)-7s %(message)s")
    app_name, run, *options = sys.argv[1:]
    with loaded_app(app_name) as app:
        try:
            sys.exit(_replay(app, run, debug="--pdb" in options))
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)


def _replay(app: Underway, prefix: str, *, debug: bool) -> int:
    """Replay an attempt and return the exit code."""
    run_id, stored = _stored_attempt(app, prefix)
    print(printable(f"{stored.job} {stored.step}, run {run_id}, attempt {stored.number + 1}, input:"))
    _print_json(stored.input or "null")
    replayed = replay(app, run_id, stored)
    row = replayed.row
    took = duration((row.attempt.ended or 0.0) - (row.attempt.started or 0.0))
    print(f"{row.attempt.outcome} after {took}; nothing was committed")
    if row.attempt.outcome != "succeeded":
        print(printable((row.attempt.error or "").rstrip()), flush=True)
        if debug and replayed.raised is not None:
            pdb.post_mortem(replayed.raised.__traceback__)
        return 1
    _print_hand_over(row)
    for spawn in replayed.spawned:
        print(printable(f"enqueued {spawn['job']}, input:"))
        _print_json(spawn["input"])
    return 0


def _stored_attempt(app: Underway, prefix: str) -> tuple[UUID, StoredAttempt]:
    with connect(app.database.url) as connection:
        run_id = resolve_run(connection, prefix)
        stored = inspection.stored_attempt(connection, run_id)
    if stored is None:
        raise deleted_meanwhile(run_id)
    if stored.input is None:
        raise click.ClickException(
            f"cannot replay run {run_id}: its state is {stored.state}, and inputs of such runs are not kept"
        )
    return run_id, stored


def _print_hand_over(row: FinishRun | AdvanceRun) -> None:
    if isinstance(row, AdvanceRun):
        print(printable(f"next step {row.step}{f' in {duration(row.delay)}' if row.delay else ''}:"))
    else:
        print("result:")
    _print_json("null" if row.payload is None else row.payload.decode())


def _print_json(document: str) -> None:
    for line in json.dumps(codec.decode_plain(document), indent=2, ensure_ascii=False).splitlines():
        print(f"  {printable(line)}")


if __name__ == "__main__":
    main()

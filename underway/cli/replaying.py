"""`underway replay APP RUN [--pdb]`, in a process of its own, since it imports the app."""

import faulthandler
import json
import logging
import pdb
import sys

import click

from underway import codec
from underway.app import Underway
from underway.cli.database import connect
from underway.cli.find import find_run
from underway.cli.loaded import loaded
from underway.cli.words import seconds
from underway.postgres import people
from underway.postgres.endings import Continue, Finish
from underway.printable import printable
from underway.testing.replay import replay


def main() -> None:
    faulthandler.enable()  # it may be looked at because it kills its process
    logging.basicConfig(level=logging.INFO, format="%(levelname)-7s %(message)s")
    app_name, run, *options = sys.argv[1:]
    with loaded(app_name) as app:
        try:
            sys.exit(_replay(app, run, debug="--pdb" in options))
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)


def _replay(app: Underway, given: str, *, debug: bool) -> int:
    """The exit code."""
    with connect(app.database) as connection:
        run_id = find_run(connection, given)
        stored = people.stored_attempt(connection, run_id)
    if stored is None:
        raise click.ClickException(f"run {run_id} has left just now, after its keep")
    if stored.input is None:
        raise click.ClickException(
            f"run {run_id} has {stored.state}, and its input is gone with that: nothing to replay"
        )
    print(printable(f"{stored.job} {stored.step}, run {run_id}, attempt {stored.number + 1}; its input:"))
    _print_value(stored.input)
    sys.stdout.flush()  # before what the step prints through a descriptor of its own, or kills us
    replayed = replay(app, run_id, stored)
    row = replayed.row
    took = seconds((row.attempt.ended or 0.0) - (row.attempt.started or 0.0))
    print(f"{row.attempt.outcome} after {took}, nothing is committed")
    if row.attempt.outcome != "succeeded":
        print(printable((row.attempt.error or "").rstrip()), flush=True)
        if debug and replayed.raised is not None:
            pdb.post_mortem(replayed.raised.__traceback__)
        return 1
    _print_hand_over(row)
    for spawn in replayed.spawned:
        print(printable(f"enqueues a run of {spawn['job']}:"))
        _print_value(spawn["input"])
    return 0


def _print_hand_over(row: Finish | Continue) -> None:
    if isinstance(row, Continue):
        print(printable(f"next step {row.step}{f' in {seconds(row.delay)}' if row.delay else ''}:"))
    else:
        print("done:")
    _print_value("null" if row.payload is None else row.payload.decode())


def _print_value(value: str) -> None:
    for line in json.dumps(codec.decode_plain(value), indent=2, ensure_ascii=False).splitlines():
        print(f"  {printable(line)}")


if __name__ == "__main__":
    main()

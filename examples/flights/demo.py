"""Renders a PDF about each carrier in each month of 2013: 185 reports, with a live display.

python -m examples.flights.demo

Ctrl-C stops it; the same command resumes where it left off.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from .app import app
from .display import Watch, print_costs
from .ledger import Order, place_orders

console = Console(highlight=False)


def main() -> int:
    options = _options()
    os.environ["UNDERWAY_REPORTS"] = str(options.reports)  # read by the steps, in the workers
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)  # treat a closed terminal as Ctrl-C
    try:
        return _render(options)
    except KeyboardInterrupt:
        console.print("Run the same command again to resume.")
        return 130
    finally:
        app.close()


def _render(options: argparse.Namespace) -> int:
    with console.status("Opening the database"):
        app.migrate()
    with console.status("Reading 336,776 flights"):
        from .data import carrier_months, destination_months  # imports pandas, which takes most of a second

        subjects = destination_months() if options.destinations else carrier_months()
    orders, new = place_orders(options.reports, subjects[: options.limit], again=options.again)

    watch = Watch(orders)
    if watch.left == 0:
        console.print(f"All {len(orders)} reports already exist in {options.reports}")
        print_costs(console, orders)
        console.print("To render them again, add --again (with make: make demo ARGS=--again)")
        return 0
    existing = watch.done
    parts = [(existing, "already exist"), (watch.left - new, "left over"), (new, "newly ordered")]
    console.print(f"{len(orders)} reports: " + ", ".join(f"{count} {what}" for count, what in parts if count))

    log = options.reports / "supervisor.log"
    began = time.monotonic()
    with _supervisor(options.procs, log) as supervisor:
        try:
            watch.follow(console, supervisor, options.procs)
        except KeyboardInterrupt:
            # Not an error: running steps are finished, and the remaining runs wait in Postgres.
            _stop(supervisor)
            watch.poll()
            console.print(f"Stopped with {watch.done} of {len(orders)} reports in {options.reports}")
            raise
    return _summarize(orders, watch, existing, time.monotonic() - began, options, log)


def _summarize(
    orders: list[Order], watch: Watch, existing: int, seconds: float, options: argparse.Namespace, log: Path
) -> int:
    if watch.left:
        console.print(f"The supervisor exited with {watch.left} reports left to render. The end of {log}:")
        console.print("\n".join(log.read_text(errors="replace").splitlines()[-15:]), markup=False)
        return 1
    rendered = len(orders) - existing - watch.failed
    console.print(
        f"{rendered} reports in {seconds:.1f} s by {options.procs} workers, {rendered / seconds:.1f} per second. "
        f"They are in\n{options.reports}"
    )
    print_costs(console, orders)
    if watch.failed:
        console.print(f"{watch.failed} failed, see {log}. Run the same command again to retry them.")
    return 1 if watch.failed else 0


@contextmanager
def _supervisor(procs: int, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A supervisor as in production, as a child process that logs to a file."""
    command = [sys.executable, "-m", "underway.cli.supervisor", f"{__package__}.app:app"]
    with log.open("ab") as output:
        # In its own session: Ctrl-C in the terminal reaches only the demo, which stops the supervisor and waits.
        supervisor = subprocess.Popen(
            [*command, "--procs", str(procs), "--until-idle"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield supervisor
    finally:
        supervisor.terminate()
        supervisor.wait()


def _stop(supervisor: "subprocess.Popen[bytes]") -> None:
    console.print("\nStopping: finishing the running steps. Press Ctrl-C again to stop immediately.")
    supervisor.terminate()
    try:
        supervisor.wait()
    except KeyboardInterrupt:
        supervisor.terminate()
        supervisor.wait()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description="Render flight reports as PDFs.")
    parser.add_argument("--procs", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
                        help="number of workers (default: one per core, %(default)s here)")  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="render only the first N reports")
    parser.add_argument(
        "--destinations", action="store_true", help="render 1,113 reports about destinations instead of carriers"
    )
    parser.add_argument("--again", action="store_true", help="render existing reports again")
    parser.add_argument("--reports", type=Path, default=os.environ.get("UNDERWAY_REPORTS", "reports"), metavar="DIR",
                        help="folder for the PDFs (default: %(default)s)")  # fmt: skip
    options = parser.parse_args()
    if options.procs < 1 or (options.limit is not None and options.limit < 1):
        parser.error("--procs and --limit must be at least 1")
    options.reports = options.reports.absolute()
    return options


if __name__ == "__main__":
    sys.exit(main())

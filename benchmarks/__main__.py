"""python -m benchmarks [NAME...]"""

import signal
import sys
import time
from dataclasses import asdict, replace

import click

from benchmarks import machine, report, testbed
from benchmarks.cases import CASES
from benchmarks.cases.context import CaseContext
from benchmarks.model import Row, Sizes
from benchmarks.progress import ShowProgress, progress_display
from benchmarks.sampler import Sampler

_EPILOG = "\b\nNames:\n" + "\n".join(f"  {name:13} {case.text}" for name, case in CASES.items())


@click.command(epilog=_EPILOG)
@click.argument("names", nargs=-1, metavar="[NAME]...", type=click.Choice(list(CASES)))
@click.option("--rounds", type=click.IntRange(1), help="Rounds of each benchmark. Default: 5, or 2 with --quick.")
@click.option(
    "--quick",
    is_flag=True,
    help="At most a tenth of the work. Checks that the benchmarks run; the figures mean little.",
)
@click.option("--runs", type=click.IntRange(10), help="Number of runs in each sample, instead of the usual sizes.")
@click.option(
    "--backlog",
    type=click.IntRange(100),
    metavar="RUNS",
    help="Number of pending runs beside a claim, and ten times as many finished ones. Default: 1,000,000.",
)
@click.option(
    "--minutes", type=click.FloatRange(min=0.01), help="Minutes for which `steady` watches each supervisor. Default: 1."
)
@click.option("--patience", type=click.FloatRange(0), default=0, show_default=True, metavar="SECONDS",
              help="How long each benchmark may wait until the machine is quiet.")  # fmt: skip
def main(
    names: tuple[str, ...],
    rounds: int | None,
    quick: bool,
    runs: int | None,
    backlog: int | None,
    minutes: float | None,
    patience: float,
) -> None:
    """Measure underway and an in-process baseline of the same work, in pairs, on a private embedded Postgres."""
    # SIGTERM must not leave a Postgres server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sizes = Sizes.quick() if quick else Sizes()
    if runs is not None:
        sizes = sizes.with_runs(runs)
    sizes = replace(sizes, backlog=backlog or sizes.backlog, steady_minutes=minutes or sizes.steady_minutes)
    rounds = rounds or (2 if quick else 5)
    rows: list[Row] = []
    began = time.monotonic()
    load_before = machine.load()
    neighbours: list[float] = []
    unfinished = ""
    with progress_display() as show_progress, testbed.start() as bed:
        described = machine.describe(bed)
        for name in dict.fromkeys(names or CASES):
            sampler = Sampler(bed, rounds, patience, _prefixed(name, show_progress))
            try:
                rows += sampler.marked_if_disturbed(CASES[name].run(CaseContext(bed, sizes, sampler)))
            except (KeyboardInterrupt, SystemExit):  # keep what was measured so far
                unfinished = name
                break
            neighbours += sampler.neighbours
    circumstances = report.Circumstances(described, load_before, machine.load(), neighbours, time.monotonic() - began)
    print(report.table(rows))
    print()
    print(report.footer(rows, circumstances))
    print(report.save(rows, circumstances, {"rounds": rounds, "sizes": asdict(sizes)}))
    if unfinished:
        sys.exit(f"stopped during {unfinished}: the table has only the benchmarks that finished before it")


def _prefixed(name: str, show_progress: ShowProgress) -> ShowProgress:
    return lambda text: show_progress(f"{name}: {text}")


if __name__ == "__main__":
    main()

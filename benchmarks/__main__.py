"""python -m benchmarks [NAME...]"""

import signal
import sys
import time
from dataclasses import asdict, replace

import click

from benchmarks import machine, report, stage
from benchmarks.cases import CASES
from benchmarks.cases.setting import Setting
from benchmarks.model import Row, Sizes
from benchmarks.pairs import Pairs
from benchmarks.progress import Say, progress

_EPILOG = "\b\nNames:\n" + "\n".join(f"  {name:13} {case.text}" for name, case in CASES.items())


@click.command(epilog=_EPILOG)
@click.argument("names", nargs=-1, metavar="[NAME]...", type=click.Choice(list(CASES)))
@click.option("--rounds", type=click.IntRange(1), help="Rounds of each benchmark; 5, with --quick 2.")
@click.option("--quick", is_flag=True, help="A tenth of the work or less: whether all runs, not how fast it is.")
@click.option("--runs", type=click.IntRange(10), help="So many runs in each sample, in place of the usual sizes.")
@click.option(
    "--backlog",
    type=click.IntRange(100),
    metavar="RUNS",
    help="So many pending runs around a claim, and ten times as many finished; 1,000,000.",
)
@click.option("--minutes", type=click.FloatRange(min=0.01), help="So long is each supervisor of `steady` watched; 1.")
@click.option("--patience", type=click.FloatRange(0), default=0, show_default=True, metavar="SECONDS",
              help="How long each benchmark may wait for others to leave the machine alone.")  # fmt: skip
def main(
    names: tuple[str, ...],
    rounds: int | None,
    quick: bool,
    runs: int | None,
    backlog: int | None,
    minutes: float | None,
    patience: float,
) -> None:
    """Measure underway beside the in-process limit of the same work, in pairs, on an embedded Postgres of its own."""
    # An end by TERM must not leave a server behind.
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
    with progress() as say, stage.set_up() as prepared:
        described = machine.describe(prepared)
        for name in dict.fromkeys(names or CASES):
            pairs = Pairs(prepared, rounds, patience, _about(name, say))
            try:
                rows += pairs.judged(CASES[name].run(Setting(prepared, sizes, pairs)))
            except (KeyboardInterrupt, SystemExit):  # minutes of measuring are not to be lost with the rest
                unfinished = name
                break
            neighbours += pairs.neighbours
    about = report.Circumstances(described, load_before, machine.load(), neighbours, time.monotonic() - began)
    print(report.table(rows))
    print()
    print(report.footer(rows, about))
    print(report.save(rows, about, {"rounds": rounds, "sizes": asdict(sizes)}))
    if unfinished:
        sys.exit(f"stopped during {unfinished}: the table is of what was finished before")


def _about(name: str, say: Say) -> Say:
    return lambda text: say(f"{name}: {text}")


if __name__ == "__main__":
    main()

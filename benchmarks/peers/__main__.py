"""python -m benchmarks.peers [NAME...]"""

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import TypeVar

import click

from benchmarks import limits, machine, work
from benchmarks.pairs import Pairs
from benchmarks.peers import environments, measures, redis_server, table
from benchmarks.peers.environments import Unavailable
from benchmarks.peers.measures import Sizes
from benchmarks.peers.roster import CORES, OURS, PEERS, Peer
from benchmarks.peers.stand import Ground, this_python
from benchmarks.peers.table import POOL, Result, Row
from benchmarks.peers.trees import adopt_orphans
from benchmarks.progress import Say, progress
from benchmarks.report import Circumstances
from benchmarks.stage import Stage, server

T = TypeVar("T")
_MEASURES = ("noop", "cpu", "latency", "killed")


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", type=click.Choice(list(PEERS)))
@click.option("--rounds", type=click.IntRange(1), help="Rounds of each measure; 3, with --quick 1.")
@click.option("--quick", is_flag=True, help="A tenth of the work: whether all runs, not how fast it is.")
@click.option("--runs", type=click.IntRange(8), help="At most so many tasks in each sample.")
@click.option("--only", "chosen", multiple=True, type=click.Choice(_MEASURES), help="This measure; may be repeated.")
@click.option("--rescue", type=click.IntRange(1), default=10, show_default=True, metavar="SECONDS",
              help="After how long a queue may take a task from a killed worker.")  # fmt: skip
@click.option("--patience", type=click.FloatRange(0), default=0, show_default=True, metavar="SECONDS",
              help="How long each measure may wait for others to leave the machine alone.")  # fmt: skip
@click.option("--here", is_flag=True, help="Make no environments: run in this one what is installed in it.")
def main(
    names: tuple[str, ...],
    rounds: int | None,
    quick: bool,
    runs: int | None,
    chosen: tuple[str, ...],
    rescue: int,
    patience: float,
    here: bool,
) -> None:
    """Measure underway beside other queues: no-ops, CPU work, latency, and what a kill of the workers costs."""
    # An end by TERM must leave nothing behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sizes = Sizes.quick() if quick else Sizes()
    sizes = replace(sizes if runs is None else sizes.with_runs(runs), rescue=rescue)
    rounds = rounds or (1 if quick else 3)
    began, load_before = time.monotonic(), machine.load()
    with progress() as say, server() as (cluster, logs):
        adopt_orphans()  # after the server, which is no part of what is killed
        stage = Stage(cluster, cluster.url("postgres"), logs)
        try:
            comparison = Comparison(stage, _peers(names), Pairs(stage, rounds, patience, say), sizes, say)
            comparison.set_up(here)
            unfinished = comparison.measure(chosen or _MEASURES)
            described = machine.describe(stage)
        finally:
            stage.close()
    result, neighbours = comparison.result, comparison.pairs.neighbours
    about = Circumstances(described, load_before, machine.load(), neighbours, time.monotonic() - began)
    redis = redis_server.version() if any(row.peer.redis for row in result.rows) else ""
    print(table.table(result, sizes))
    print()
    print(table.legend(result, sizes))
    print(table.footer(result, about, redis))
    print(table.save(result, about, {"rounds": rounds, "sizes": asdict(sizes)}))
    if unfinished:
        sys.exit(f"stopped during {unfinished}: the table is of what was finished before")


def _peers(names: tuple[str, ...]) -> list[Peer]:
    """In the order of the roster, and ours in any case: all ratios are to it."""
    return [peer for name, peer in PEERS.items() if not names or name in names or name == OURS]


class Comparison:
    """The measures, one after the other; in each, all peers take turns."""

    def __init__(self, stage: Stage, peers: list[Peer], pairs: Pairs, sizes: Sizes, say: Say) -> None:
        self.pairs = pairs
        self.result = Result([Row(peer, environments.version(peer)) for peer in peers], {})
        self._ground = Ground(stage, {})
        self._sizes = sizes
        self._say = say

    def set_up(self, here: bool) -> None:
        for row in self.result.rows:
            try:
                python = this_python() if here else environments.python(row.peer, self._say)
                self._ground.pythons[row.peer.name] = python
            except Unavailable as reason:
                row.failures["everything"] = str(reason)

    def measure(self, names: tuple[str, ...]) -> str:
        """Returns the name of the one that was interrupted: minutes of measuring are not to be lost with it."""
        measures = {"noop": self._noop, "cpu": self._cpu, "latency": self._latency, "killed": self._killed}
        for name in names:
            try:
                measures[name]()
            except (KeyboardInterrupt, SystemExit):
                return name
        return ""

    def _noop(self) -> None:
        forms = {
            (row.peer.name, setting.text): self._guarded(
                row, "no-ops", partial(measures.noop, self._ground, row.peer, setting, self._sizes)
            )
            for row in self._usable_count
            for setting in row.peer.fast
        }
        labels = {f"{name}, {text}": (name, text) for name, text in forms}
        samples = self.pairs.alternate({label: forms[key] for label, key in labels.items()}, "no-ops, ")
        for row in self._usable_count:
            row.noop = {text: samples[label] for label, (name, text) in labels.items() if name == row.peer.name}

    def _cpu(self) -> None:
        for milliseconds, tasks in self._sizes.cpu:
            forms: dict[str, Callable[[], float | None]] = {
                row.peer.name: self._guarded(
                    row, "CPU work", partial(measures.cpu, self._ground, row.peer, milliseconds, tasks)
                )
                for row in self._usable_count
            }
            forms[POOL] = partial(limits.pool_rate, CORES, work.burn, [milliseconds] * tasks)
            samples = self.pairs.alternate(forms, f"{milliseconds} ms of CPU, ")
            self.result.pool[milliseconds] = samples[POOL]
            for row in self._usable_count:
                row.cpu[milliseconds] = samples[row.peer.name]

    def _latency(self) -> None:
        samples = self.pairs.alternate(
            {
                row.peer.name: self._guarded(
                    row, "latency", partial(measures.latency, self._ground, row.peer, self._sizes)
                )
                for row in self._usable_count
            },
            "latency, ",
        )
        for row in self._usable_count:
            row.latency = samples[row.peer.name]

    def _killed(self) -> None:
        samples = self.pairs.alternate(
            {
                row.peer.name: self._guarded(row, "kill", partial(measures.killed, self._ground, row.peer, self._sizes))
                for row in self._usable_count
            },
            "kill, ",
        )
        for row in self._usable_count:
            row.killed = samples[row.peer.name]

    @property
    def _usable_count(self) -> list[Row]:
        return [row for row in self.result.rows if row.peer.name in self._ground.pythons]

    def _guarded(self, row: Row, what: str, form: Callable[[], T]) -> Callable[[], T | None]:
        """What fails for one peer is said in the end and not tried again; the others go on."""

        def sample() -> T | None:
            if what in row.failures:
                return None
            try:
                return form()
            except Exception as problem:
                self._say(f"{row.peer.name}: {what} failed: {problem}")
                row.failures[what] = (str(problem).splitlines() or [type(problem).__name__])[0]
                return None

        return sample


if __name__ == "__main__":
    main()

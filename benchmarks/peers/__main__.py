"""python -m benchmarks.peers [NAME...]"""

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import TypeVar

import click

from benchmarks import baselines, machine, work
from benchmarks.peers import environments, measures, redis_server, table
from benchmarks.peers.environments import Unavailable
from benchmarks.peers.harness import SharedResources, this_python
from benchmarks.peers.measures import Sizes
from benchmarks.peers.peers import CORES, OURS, PEERS, Peer
from benchmarks.peers.process_tree import adopt_orphans
from benchmarks.peers.table import POOL, Result, Row
from benchmarks.progress import ShowProgress, progress_display
from benchmarks.report import Circumstances
from benchmarks.sampler import Sampler
from benchmarks.testbed import Testbed, server

T = TypeVar("T")
_MEASURES = ("noop", "cpu", "latency", "killed")


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", type=click.Choice(list(PEERS)))
@click.option("--rounds", type=click.IntRange(1), help="Rounds of each measure. Default: 3, or 1 with --quick.")
@click.option(
    "--quick", is_flag=True, help="A tenth of the work. Checks that the benchmarks run; the figures mean little."
)
@click.option("--runs", type=click.IntRange(8), help="Maximum number of tasks in each sample.")
@click.option(
    "--only", "chosen", multiple=True, type=click.Choice(_MEASURES), help="Run only this measure; repeatable."
)
@click.option("--rescue", type=click.IntRange(1), default=10, show_default=True, metavar="SECONDS",
              help="Time after which a queue may retry the tasks of a killed worker.")  # fmt: skip
@click.option("--patience", type=click.FloatRange(0), default=0, show_default=True, metavar="SECONDS",
              help="How long each measure may wait until the machine is quiet.")  # fmt: skip
@click.option(
    "--here", is_flag=True, help="Create no environments; use the current one and the queues installed in it."
)
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
    """Compare underway with other queues: no-ops, CPU work, latency, and recovery after killed workers."""
    # SIGTERM must not leave processes behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sizes = Sizes.quick() if quick else Sizes()
    sizes = replace(sizes if runs is None else sizes.with_runs(runs), rescue=rescue)
    rounds = rounds or (1 if quick else 3)
    began, load_before = time.monotonic(), machine.load()
    with progress_display() as show_progress, server() as (cluster, logs):
        adopt_orphans()  # after the server has started: it is not one of the processes to kill
        testbed = Testbed(cluster, cluster.url("postgres"), logs)
        try:
            comparison = Comparison(
                testbed, _peers(names), Sampler(testbed, rounds, patience, show_progress), sizes, show_progress
            )
            comparison.set_up(here)
            unfinished = comparison.measure(chosen or _MEASURES)
            described = machine.describe(testbed)
        finally:
            testbed.close()
    result, neighbours = comparison.result, comparison.sampler.neighbours
    circumstances = Circumstances(described, load_before, machine.load(), neighbours, time.monotonic() - began)
    redis = redis_server.version() if any(row.peer.redis for row in result.rows) else ""
    print(table.table(result, sizes))
    print()
    print(table.legend(result, sizes))
    print(table.footer(result, circumstances, redis))
    print(table.save(result, circumstances, {"rounds": rounds, "sizes": asdict(sizes)}))
    if unfinished:
        sys.exit(f"stopped during {unfinished}: the table has only the measures that finished before it")


def _peers(names: tuple[str, ...]) -> list[Peer]:
    """In the order of PEERS, and always with underway: all ratios are to it."""
    return [peer for name, peer in PEERS.items() if not names or name in names or name == OURS]


class Comparison:
    """Runs the measures one after the other; within each, the peers take turns."""

    def __init__(
        self, testbed: Testbed, peers: list[Peer], sampler: Sampler, sizes: Sizes, show_progress: ShowProgress
    ) -> None:
        self.sampler = sampler
        self.result = Result([Row(peer, environments.version(peer)) for peer in peers], {})
        self._shared = SharedResources(testbed, {})
        self._sizes = sizes
        self._show_progress = show_progress

    def set_up(self, here: bool) -> None:
        for row in self.result.rows:
            try:
                python = this_python() if here else environments.python(row.peer, self._show_progress)
                self._shared.interpreters[row.peer.name] = python
            except Unavailable as reason:
                row.failures["everything"] = str(reason)

    def measure(self, names: tuple[str, ...]) -> str:
        """Return the name of the measure that was interrupted, so that the finished ones can still be reported."""
        measures = {"noop": self._noop, "cpu": self._cpu, "latency": self._latency, "killed": self._killed}
        for name in names:
            try:
                measures[name]()
            except (KeyboardInterrupt, SystemExit):
                return name
        return ""

    def _noop(self) -> None:
        variants = {
            (row.peer.name, setting.text): self._guarded(
                row, "no-ops", partial(measures.noop, self._shared, row.peer, setting, self._sizes)
            )
            for row in self._available_rows
            for setting in row.peer.fast
        }
        labels = {f"{name}, {text}": (name, text) for name, text in variants}
        samples = self.sampler.alternate({label: variants[key] for label, key in labels.items()}, "no-ops, ")
        for row in self._available_rows:
            row.noop = {text: samples[label] for label, (name, text) in labels.items() if name == row.peer.name}

    def _cpu(self) -> None:
        for milliseconds, tasks in self._sizes.cpu:
            variants: dict[str, Callable[[], float | None]] = {
                row.peer.name: self._guarded(
                    row, "CPU work", partial(measures.cpu, self._shared, row.peer, milliseconds, tasks)
                )
                for row in self._available_rows
            }
            variants[POOL] = partial(baselines.pool_rate, CORES, work.burn, [milliseconds] * tasks)
            samples = self.sampler.alternate(variants, f"{milliseconds} ms of CPU, ")
            self.result.pool[milliseconds] = samples[POOL]
            for row in self._available_rows:
                row.cpu[milliseconds] = samples[row.peer.name]

    def _latency(self) -> None:
        samples = self.sampler.alternate(
            {
                row.peer.name: self._guarded(
                    row, "latency", partial(measures.latency, self._shared, row.peer, self._sizes)
                )
                for row in self._available_rows
            },
            "latency, ",
        )
        for row in self._available_rows:
            row.latency = samples[row.peer.name]

    def _killed(self) -> None:
        samples = self.sampler.alternate(
            {
                row.peer.name: self._guarded(row, "kill", partial(measures.killed, self._shared, row.peer, self._sizes))
                for row in self._available_rows
            },
            "kill, ",
        )
        for row in self._available_rows:
            row.killed = samples[row.peer.name]

    @property
    def _available_rows(self) -> list[Row]:
        return [row for row in self.result.rows if row.peer.name in self._shared.interpreters]

    def _guarded(self, row: Row, what: str, variant: Callable[[], T]) -> Callable[[], T | None]:
        """A measure that fails for one peer is reported at the end and not repeated; the other peers continue."""

        def sample() -> T | None:
            if what in row.failures:
                return None
            try:
                return variant()
            except Exception as problem:
                self._show_progress(f"{row.peer.name}: {what} failed: {problem}")
                row.failures[what] = (str(problem).splitlines() or [type(problem).__name__])[0]
                return None

        return sample


if __name__ == "__main__":
    main()

"""How samples are taken. Each has its own harness, whose workers have booted and are warm."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.peers.event_log import CALLED, ENDED, STARTED
from benchmarks.peers.harness import PeerHarness, SharedResources, peer_harness
from benchmarks.peers.peers import Peer, Setting

# For measures that kill no worker: longer than any sample takes.
_NO_RESCUE_SECONDS = 60
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Sizes:
    """How much work each measure does. `noop_seconds` is how long a sample of no-ops should take, with any queue."""

    noop_seconds: float = 3.0
    noop_limit: int = 200_000
    cpu: tuple[tuple[int, int], ...] = ((20, 200), (200, 24))
    latencies: int = 200
    jobs: int = 100
    rescue: int = 10
    patience: float = 75.0

    @staticmethod
    def quick() -> "Sizes":
        return Sizes(noop_seconds=0.3, cpu=((20, 40), (200, 8)), latencies=30)

    def with_runs(self, runs: int) -> "Sizes":
        cpu = tuple((milliseconds, min(tasks, runs)) for milliseconds, tasks in self.cpu)
        return Sizes(
            self.noop_seconds,
            runs,
            cpu,
            min(self.latencies, runs),
            min(self.jobs, runs),
            self.rescue,
            self.patience,
        )

    def noops(self, peer: Peer) -> int:
        return max(1, min(self.noop_limit, int(self.noop_seconds * peer.rate)))


@dataclass(frozen=True)
class Survival:
    """What happened to the jobs when all workers were killed and restarted.

    once: started once and done. again: started again, done once. twice: done twice, because the end was not recorded.
    stuck: still unfinished in the queue when the time is up. lost: not done, and not in the queue.
    """

    jobs: int
    once: int
    again: int
    twice: int
    stuck: int
    lost: int
    seconds: float  # from the restart until the queue was empty, or until the time was up


def noop(shared: SharedResources, peer: Peer, setting: Setting, sizes: Sizes) -> float:
    """No-ops per second."""
    tasks = sizes.noops(peer)
    with _warm(shared, peer, setting, min(500, tasks)) as harness:
        harness.enqueue_and_release("nothing", list(range(tasks)))
        harness.await_events(tasks)
        return tasks / harness.queue_seconds()


def cpu(shared: SharedResources, peer: Peer, milliseconds: int, tasks: int) -> float:
    """Tasks per second that burn this many milliseconds each."""
    with _warm(shared, peer, peer.steady, tasks=10) as harness:
        harness.enqueue_and_release("burn", [milliseconds] * tasks)
        harness.await_events(2 * tasks)
        return tasks / harness.task_seconds()


def latency(shared: SharedResources, peer: Peer, sizes: Sizes) -> list[float]:
    """Milliseconds from the call of enqueue to the first line of the task, in an otherwise idle queue."""
    with _warm(shared, peer, peer.steady, tasks=50) as harness:
        harness.request("enqueue_one_by_one", count=sizes.latencies)
        harness.await_events(2 * sizes.latencies)
        called = {event.value: event.at for event in harness.events(CALLED)}
        return [(event.at - called[event.value]) * 1000 for event in harness.events(STARTED)]


def killed(shared: SharedResources, peer: Peer, sizes: Sizes) -> Survival:
    with peer_harness(shared, peer, peer.steady, sizes.rescue) as harness:
        harness.start_workers()
        harness.warm_up(tasks=10)
        harness.enqueue_and_release("hold", list(range(sizes.jobs)))
        harness.await_events(sizes.jobs // 2)  # two events each: a quarter is done, some are in progress
        harness.kill_workers()
        harness.start_workers()
        began = time.monotonic()
        while (unfinished := int(harness.request("unfinished"))) and time.monotonic() - began < sizes.patience:
            time.sleep(_POLL_SECONDS)
        return _survival(harness, sizes.jobs, unfinished, time.monotonic() - began)


def _survival(harness: PeerHarness, jobs: int, unfinished: int, seconds: float) -> Survival:
    started = Counter(event.value for event in harness.events(STARTED))
    done = Counter(event.value for event in harness.events(ENDED))
    return Survival(
        jobs,
        once=sum(done[job] == started[job] == 1 for job in range(jobs)),
        again=sum(started[job] > 1 == done[job] for job in range(jobs)),
        twice=sum(done[job] > 1 for job in range(jobs)),
        stuck=unfinished,
        lost=max(0, sum(not done[job] for job in range(jobs)) - unfinished),
        seconds=seconds,
    )


@contextmanager
def _warm(shared: SharedResources, peer: Peer, setting: Setting, tasks: int) -> Iterator[PeerHarness]:
    with peer_harness(shared, peer, setting, _NO_RESCUE_SECONDS) as harness:
        harness.start_workers()
        harness.warm_up(tasks)
        yield harness

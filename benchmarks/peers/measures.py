"""What a sample is. Each is taken on a stand of its own, whose workers have booted and are warm."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.peers.roster import Peer, Setting
from benchmarks.peers.stand import Ground, Stand, stand
from benchmarks.peers.tape import CALLED, ENDED, STARTED

# Where nobody is to be killed: longer than anything takes.
_NO_RESCUE = 60
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Sizes:
    """How much of everything. `noop_seconds` is how long no-ops shall last, whoever runs them."""

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
    """What became of the jobs when all workers were killed and started anew.

    once: begun once and done. again: begun again, done once. twice: done twice, as nobody knew that it was done.
    stuck: what the queue has not finished in the end. lost: not done, and the queue knows nothing of it.
    """

    jobs: int
    once: int
    again: int
    twice: int
    stuck: int
    lost: int
    seconds: float  # from the restart until nothing was left; all there are if something is


def noop(ground: Ground, peer: Peer, setting: Setting, sizes: Sizes) -> float:
    """No-ops a second."""
    tasks = sizes.noops(peer)
    with _warm(ground, peer, setting, min(500, tasks)) as ready:
        ready.release("nothing", list(range(tasks)))
        ready.await_marks(tasks)
        return tasks / ready.seconds_of_queue()


def cpu(ground: Ground, peer: Peer, milliseconds: int, tasks: int) -> float:
    """Tasks a second that burn so many milliseconds each."""
    with _warm(ground, peer, peer.steady, tasks=10) as ready:
        ready.release("burn", [milliseconds] * tasks)
        ready.await_marks(2 * tasks)
        return tasks / ready.seconds_of_work()


def latency(ground: Ground, peer: Peer, sizes: Sizes) -> list[float]:
    """Milliseconds from the call of enqueue to the first line of the task, while there is nothing else to do."""
    with _warm(ground, peer, peer.steady, tasks=50) as ready:
        ready.ask("trickle", count=sizes.latencies)
        ready.await_marks(2 * sizes.latencies)
        called = {mark.value: mark.at for mark in ready.marks(CALLED)}
        return [(mark.at - called[mark.value]) * 1000 for mark in ready.marks(STARTED)]


def killed(ground: Ground, peer: Peer, sizes: Sizes) -> Survival:
    with stand(ground, peer, peer.steady, sizes.rescue) as shaken:
        shaken.start_workers()
        shaken.warm_up(tasks=10)
        shaken.release("hold", list(range(sizes.jobs)))
        shaken.await_marks(sizes.jobs // 2)  # two marks each: a quarter is done, some are in progress
        shaken.kill_workers()
        shaken.start_workers()
        began = time.monotonic()
        while (left := int(shaken.ask("left"))) and time.monotonic() - began < sizes.patience:
            time.sleep(_LOOK_SECONDS)
        return _survival(shaken, sizes.jobs, left, time.monotonic() - began)


def _survival(shaken: Stand, jobs: int, left: int, seconds: float) -> Survival:
    begun = Counter(mark.value for mark in shaken.marks(STARTED))
    done = Counter(mark.value for mark in shaken.marks(ENDED))
    return Survival(
        jobs,
        once=sum(done[job] == begun[job] == 1 for job in range(jobs)),
        again=sum(begun[job] > 1 == done[job] for job in range(jobs)),
        twice=sum(done[job] > 1 for job in range(jobs)),
        stuck=left,
        lost=max(0, sum(not done[job] for job in range(jobs)) - left),
        seconds=seconds,
    )


@contextmanager
def _warm(ground: Ground, peer: Peer, setting: Setting, tasks: int) -> Iterator[Stand]:
    with stand(ground, peer, setting, _NO_RESCUE) as made:
        made.start_workers()
        made.warm_up(tasks)
        yield made

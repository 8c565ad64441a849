"""Memory, CPU and connections of a supervisor, idle and under a constant load."""

import time
from dataclasses import asdict, dataclass

import psutil
import psycopg

from benchmarks import app
from benchmarks.cases.context import CaseContext
from benchmarks.model import OURS, Row
from benchmarks.testbed import Testbed

_FEW, _MANY = 2, 8
# Well below its limit, so that neither the supervisor nor Postgres falls behind.
_RUNS_PER_SECOND = 2000
_PERIOD_SECONDS = 0.25
# Buffers and caches fill during this share of the load; after it, memory should stay flat.
_WARM_UP = 0.2


@dataclass(frozen=True)
class Reading:
    """One reading of the supervisor process, in MB and seconds. `unshared` is the memory that its exit would free."""

    at: float
    resident: float
    unshared: float
    cpu: float

    @staticmethod
    def of(process: psutil.Process) -> "Reading":
        memory = process.memory_full_info()
        return Reading(time.monotonic(), memory.rss / 1e6, memory.uss / 1e6, sum(process.cpu_times()[:2]))


@dataclass(frozen=True)
class Lifetime:
    """The readings of one supervisor: half of the time idle, half under load."""

    booted: Reading
    rested: Reading
    warm: Reading
    worked: Reading
    connections: float

    @property
    def idle_cpu(self) -> float:
        """Percent of a core."""
        return 100 * (self.rested.cpu - self.booted.cpu) / (self.rested.at - self.booted.at)


def run(context: CaseContext) -> list[Row]:
    # Sampled once and without pairs: neighbours do not affect these figures.
    lifetimes = {procs: _measure(context, procs) for procs in (_FEW, _MANY)}
    rows = []
    for procs, lifetime in lifetimes.items():
        memory = {
            OURS: [lifetime.worked.resident],
            "early under load": [lifetime.warm.resident],
            "when idle": [lifetime.rested.resident],
            "of it unshared": [lifetime.worked.unshared],
        }
        rows += [
            Row(f"memory, {procs} workers", "MB", memory, lower_is_better=True, goal=60, notes=asdict(lifetime)),
            Row(f"idle CPU, {procs} workers", "%", {OURS: [lifetime.idle_cpu]}, lower_is_better=True, goal=1),
        ]
    connections = {OURS: [lifetimes[_MANY].connections], f"{_FEW} workers": [lifetimes[_FEW].connections]}
    return [*rows, Row(f"connections, {_MANY} workers", "", connections, lower_is_better=True, goal=2)]


def _measure(context: CaseContext, procs: int) -> Lifetime:
    half = context.sizes.steady_minutes * 60 / 2
    context.testbed.empty()
    app.app.close()  # our own connections must not count
    with context.testbed.supervisor(procs) as supervisor:
        context.testbed.await_true(
            "select bool_or(idle) from underway.supervisor", otherwise="the supervisor did not become idle"
        )
        context.sampler.show_progress(f"{procs} workers, idle for {half:.0f} s")
        booted = Reading.of(supervisor.process)
        time.sleep(half)
        rested = Reading.of(supervisor.process)
        connections = supervisor.connections()
        context.sampler.show_progress(f"{procs} workers, {_RUNS_PER_SECOND} runs per second for {half:.0f} s")
        _load(context.testbed, half * _WARM_UP)
        warm = Reading.of(supervisor.process)
        _load(context.testbed, half * (1 - _WARM_UP))
        worked = Reading.of(supervisor.process)
        return Lifetime(booted, rested, warm, worked, max(connections, supervisor.connections()))


def _load(testbed: Testbed, seconds: float) -> None:
    """Enqueue at a constant rate, on a connection that does not count as one of the supervisor's."""
    values = range(int(_RUNS_PER_SECOND * _PERIOD_SECONDS))
    end = time.monotonic() + seconds
    with psycopg.connect(testbed.url, autocommit=True) as connection:
        while (began := time.monotonic()) < end:
            app.noop.enqueue_many(values, conn=connection)
            time.sleep(max(0.0, began + _PERIOD_SECONDS - time.monotonic()))

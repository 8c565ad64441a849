"""What a supervisor takes for itself, when it has nothing to do and when it always has: memory, CPU, connections."""

import time
from dataclasses import asdict, dataclass

import psutil
import psycopg

from benchmarks import app
from benchmarks.cases.setting import Setting
from benchmarks.model import OURS, Row
from benchmarks.stage import Stage

_FEW, _MANY = 2, 8
# A share of what it can do: neither it nor Postgres falls behind.
_RUNS_A_SECOND = 2000
_PERIOD = 0.25
# This part of the load fills buffers and caches; from then on memory should be flat.
_WARM_UP = 0.2


@dataclass(frozen=True)
class Reading:
    """Of the supervisor alone, in MB and seconds. `unshared` is what its end would give back."""

    at: float
    resident: float
    unshared: float
    cpu: float

    @staticmethod
    def of(process: psutil.Process) -> "Reading":
        memory = process.memory_full_info()
        return Reading(time.monotonic(), memory.rss / 1e6, memory.uss / 1e6, sum(process.cpu_times()[:2]))


@dataclass(frozen=True)
class Life:
    """Half of it idle, half of it under load."""

    booted: Reading
    rested: Reading
    warm: Reading
    worked: Reading
    connections: float

    @property
    def idle_cpu(self) -> float:
        """Per cent of a core."""
        return 100 * (self.rested.cpu - self.booted.cpu) / (self.rested.at - self.booted.at)


def run(setting: Setting) -> list[Row]:
    # Not sampled as the others are: what the neighbours do changes none of this.
    lives = {procs: _live(setting, procs) for procs in (_FEW, _MANY)}
    rows = []
    for procs, life in lives.items():
        memory = {
            OURS: [life.worked.resident],
            "early under load": [life.warm.resident],
            "when idle": [life.rested.resident],
            "of it unshared": [life.worked.unshared],
        }
        rows += [
            Row(f"memory, {procs} workers", "MB", memory, lower_is_better=True, goal=60, notes=asdict(life)),
            Row(f"idle CPU, {procs} workers", "%", {OURS: [life.idle_cpu]}, lower_is_better=True, goal=1),
        ]
    connections = {OURS: [lives[_MANY].connections], f"{_FEW} workers": [lives[_FEW].connections]}
    return [*rows, Row(f"connections, {_MANY} workers", "", connections, lower_is_better=True, goal=2)]


def _live(setting: Setting, procs: int) -> Life:
    half = setting.sizes.steady_minutes * 60 / 2
    setting.stage.empty()
    app.app.close()  # our own connections are not to be counted
    with setting.stage.supervisor(procs) as supervisor:
        setting.stage.await_true("select bool_or(idle) from underway.supervisor", otherwise="it does not become idle")
        setting.pairs.say(f"{procs} workers, idle for {half:.0f} s")
        booted = Reading.of(supervisor.process)
        time.sleep(half)
        rested = Reading.of(supervisor.process)
        connections = supervisor.connections()
        setting.pairs.say(f"{procs} workers, {_RUNS_A_SECOND} runs a second for {half:.0f} s")
        _load(setting.stage, half * _WARM_UP)
        warm = Reading.of(supervisor.process)
        _load(setting.stage, half * (1 - _WARM_UP))
        worked = Reading.of(supervisor.process)
        return Life(booted, rested, warm, worked, max(connections, supervisor.connections()))


def _load(stage: Stage, seconds: float) -> None:
    """Runs at a steady rate, on a connection that is not taken for one of the supervisor's."""
    values = range(int(_RUNS_A_SECOND * _PERIOD))
    end = time.monotonic() + seconds
    with psycopg.connect(stage.url, autocommit=True) as connection:
        while (began := time.monotonic()) < end:
            app.noop.enqueue_many(values, conn=connection)
            time.sleep(max(0.0, began + _PERIOD - time.monotonic()))

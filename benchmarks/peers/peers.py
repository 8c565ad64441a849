"""The queues that are compared, their settings, and the reasons for these.

Each queue has the settings that its own documentation recommends for the work. For no-ops, several settings may be
tried; the best of the run counts. The other measures use one process per core. In the measure that kills the workers,
all queues that can be configured so retry the tasks of an unresponsive worker after the same time, `rescue`.
"""

from dataclasses import dataclass
from typing import Any

# As in all other figures; also the number of cores of the machine that they come from.
CORES = 2
OURS = "underway"


@dataclass(frozen=True)
class Setting:
    """`commands`: number of worker commands to start. `workers`: number of processes that run tasks."""

    text: str
    options: dict[str, Any]
    commands: int = 1
    workers: int = 1


@dataclass(frozen=True)
class Peer:
    """`rate`: the expected no-ops per second, so that samples of all peers take about the same time."""

    name: str
    durable: str
    rate: int
    fast: tuple[Setting, ...]
    steady: Setting
    rescue: str
    python: tuple[int, int] = (3, 11)
    redis: bool = False
    note: str = ""


def _underway() -> Peer:
    setting = Setting(f"--procs {CORES}", {"procs": CORES}, workers=CORES)
    return Peer(
        OURS,
        "yes",
        30_000,
        (setting,),
        setting,
        "lease={rescue} s (60 by default)",
    )


def _pgqueuer() -> Peer:
    def fast(batch: int, processes: int) -> Setting:
        options = {"batch_size": batch, "max_concurrent_tasks": None, "threads": False}
        return Setting(f"batch_size {batch}, {_of(processes)}", options, commands=processes, workers=processes)

    # A busy process also takes jobs; two at a time is the smallest limit that it accepts.
    steady = {"batch_size": 1, "max_concurrent_tasks": 2, "threads": True}
    return Peer(
        "pgqueuer",
        "yes",
        14_000,
        tuple(fast(batch, processes) for processes in (1, CORES) for batch in (500, 100)),
        Setting(f"batch_size 1, asyncio.to_thread, {_of(CORES)}", steady, commands=CORES, workers=CORES),
        "heartbeat_timeout={rescue} s (30 by default), dequeue_timeout=5 s",
        note="on asyncpg and uvloop",
    )


def _oban() -> Peer:
    def of(limit: int, processes: int) -> Setting:
        text = f"limit {limit}, {_of(processes)}"
        return Setting(text, {"limit": limit}, commands=processes, workers=processes)

    return Peer(
        "oban",
        "yes",
        2700,
        (of(100, 1), of(100, CORES)),
        of(2, CORES),  # one running and one prefetched
        "lifeline rescue_after={rescue} s (300 by default), interval 5 s; a dead leader is noticed after 30 s",
        note="on uvloop, as its command line is",
        python=(3, 12),
    )


def _chancy() -> Peer:
    def fast(processes: int) -> Setting:
        options = {"executor": "Async", "concurrency": 100, "executor_options": {}}
        text = f"Async executor, concurrency 100, {_of(processes)}"
        return Setting(text, options, commands=processes, workers=processes)

    # By default a process is replaced after a hundred jobs, which is expensive for jobs of some milliseconds.
    steady = {"executor": "Process", "concurrency": CORES, "executor_options": {"maximum_jobs_per_worker": 100_000}}
    return Peer(
        "chancy",
        "yes",
        3000,
        (fast(1), fast(CORES)),
        Setting(f"Process executor, concurrency {CORES}", steady, workers=CORES),
        "heartbeat_timeout={rescue} s (90 by default), Leadership timeout {rescue} s, Recovery every 5 s",
        note="eager_polling; completions are recorded once a second",
    )


def _procrastinate() -> Peer:
    def fast(processes: int) -> Setting:
        options = {"concurrency": 30, "in_loop": True}
        return Setting(f"async task, concurrency 30, {_of(processes)}", options, commands=processes, workers=processes)

    steady = {"concurrency": 2, "in_loop": False}  # one running and one prefetched
    return Peer(
        "procrastinate",
        "yes",
        500,
        (fast(1), fast(CORES)),
        Setting(f"sync task, concurrency 2, {_of(CORES)}", steady, commands=CORES, workers=CORES),
        "stalled_worker_timeout={rescue} s and retry_stalled_jobs every 5 s (none by default)",
    )


def _celery() -> Peer:
    fast = {"concurrency": CORES, "prefetch": 128, "acks_late": False}
    steady = {"concurrency": CORES, "prefetch": 1, "acks_late": True}
    return Peer(
        "celery",
        "no",
        900,
        (Setting(f"prefork {CORES}, prefetch multiplier 128", fast, workers=CORES),),
        Setting(f"prefork {CORES}, prefetch multiplier 1, acks_late", steady, workers=CORES),
        "visibility_timeout={rescue} s (3600 by default), checked every 5 s, reject_on_worker_lost",
        note="no results",
        redis=True,
    )


def _dramatiq() -> Peer:
    def of(threads: int) -> Setting:
        # One command in ten looks for dead workers; with the default, one in a thousand, an idle worker hardly does.
        options = {"processes": CORES, "threads": threads, "maintenance_chance": 100_000}
        return Setting(f"--processes {CORES} --threads {threads}", options, workers=CORES)

    return Peer(
        "dramatiq",
        "no",
        500,
        (of(8), of(1)),
        of(1),
        "heartbeat_timeout={rescue} s (60 by default), maintenance_chance 10%",
        redis=True,
    )


def _of(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"


PEERS = {
    peer.name: peer for peer in (_underway(), _pgqueuer(), _oban(), _chancy(), _procrastinate(), _celery(), _dramatiq())
}

"""The guardian and the search for descendants, also when the system has no resources left."""

import asyncio
import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psutil
import pytest

from underway.guardian import script
from underway.guardian.script import kill_below
from underway.supervisor.workers.descendants import Descendants
from underway.supervisor.workers.launch import LaunchSpec
from underway.supervisor.workers.process import WorkerProcess
from underway.supervisor.workers.recycle import NO_LIMITS, WorkerUsage
from underway.wire import messages

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


@contextmanager
def no_descriptors() -> Iterator[None]:
    """As if all descriptors were in use: none can be opened, and the open ones work."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_worker_is_killed_even_if_its_descendants_cannot_be_searched() -> None:
    with subprocess.Popen(SLEEP) as worker:
        with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
            kill_below(["an unused mark;"], [worker.pid])
        assert worker.wait(10) == -signal.SIGKILL


def test_a_guardian_that_cannot_be_started_is_started_later() -> None:
    descendants = Descendants("an unused mark/", set)
    try:
        first = descendants.guardian._process
        first.kill()
        first.wait()
        with no_descriptors():
            descendants.guardian.check()
            descendants._search()  # cannot search, and ends no process
        descendants.guardian.check()
        assert descendants.guardian.pid != first.pid
        assert descendants.guardian._process.poll() is None
    finally:
        descendants.dismiss()


def workers_of(listener: "DeathRecorder", count: int) -> tuple[list[WorkerProcess], Descendants]:
    """Workers that have just been started, and their Descendants."""
    workers: list[WorkerProcess] = []
    descendants = Descendants("an unused mark/", lambda: {worker.pid for worker in workers})
    descendants.ignore_existing_children()  # the test server's watchdog among them
    for slot in range(count):
        mark, usage = f"{uuid4()};", WorkerUsage(NO_LIMITS, random.Random(1))
        workers.append(
            WorkerProcess(LaunchSpec("no:app", slot, mark), 0, usage, listener, descendants, pool_size=count)
        )
    return workers, descendants


def test_workers_that_are_killed_together_need_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, look = [], script._processes

    def counted() -> tuple[dict[int, int], dict[int, int]]:
        looks.append(time.monotonic())
        return look()

    async def main() -> None:
        listener = DeathRecorder()
        workers, descendants = workers_of(listener, 5)
        children = [psutil.Process(worker.pid) for worker in workers]
        monkeypatch.setattr(script, "_processes", counted)
        for worker in workers:
            worker.kill()
        assert not looks
        await asyncio.sleep(0)
        assert 1 <= len(looks) <= 2, "the second finds nothing new"
        async with asyncio.timeout(20):
            while len(listener.died_of) < len(workers):
                await listener.heard.wait()
                listener.heard.clear()
        assert listener.died_of == ["signal SIGKILL"] * 5
        assert not any(child.is_running() for child in children)
        descendants.dismiss()

    asyncio.run(main())


def test_a_death_is_noticed_without_polling() -> None:
    """There are no ticks here, so a death that is only noticed at the next check would never be noticed."""

    async def main() -> None:
        listener = DeathRecorder()
        workers, descendants = workers_of(listener, 3)
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while len(listener.died_of) < len(workers):
                await listener.heard.wait()
                listener.heard.clear()
        descendants.dismiss()

    asyncio.run(main())


def test_a_dead_worker_can_be_killed_during_the_report_of_another_death() -> None:
    """For example a spare that is retired because the others are replaced: its descriptors are closed by then."""

    async def main() -> None:
        listener = Killer()
        workers, descendants = workers_of(listener, 3)
        listener.workers = workers
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # dead, but not yet noticed by the event loop
        async with asyncio.timeout(20):
            while len(listener.died_of) < len(workers):
                await listener.heard.wait()
                listener.heard.clear()
        descendants.dismiss()

    asyncio.run(main())


class DeathRecorder:
    def __init__(self) -> None:
        self.heard = asyncio.Event()
        self.died_of: list[str] = []

    def received(self, worker: WorkerProcess, message: messages.Message) -> None: ...
    def on_messages_processed(self) -> None: ...
    def died(self, worker: WorkerProcess) -> None:
        self.died_of.append(worker.exit_text)
        self.heard.set()


class Killer(DeathRecorder):
    workers: list[WorkerProcess]

    def died(self, worker: WorkerProcess) -> None:
        for other in self.workers:
            other.kill()
        super().died(worker)


def test_a_worker_that_cannot_be_watched_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async def main() -> None:
        before = os.listdir("/proc/self/fd"), psutil.Process().children()
        monkeypatch.setattr(os, "pidfd_open", refused)
        usage, listener = WorkerUsage(NO_LIMITS, random.Random(1)), Any
        with pytest.raises(OSError, match="Too many"):
            WorkerProcess(LaunchSpec("no:app", 1, "m;"), 0, usage, listener, Any, pool_size=1)  # type: ignore[arg-type]
        assert (os.listdir("/proc/self/fd"), psutil.Process().children()) == before

    asyncio.run(main())

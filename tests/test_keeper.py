"""What kills what workers have started, when the system gives it nothing to work with."""

import asyncio
import errno
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from underway.supervisor.descendants import Descendants
from underway.supervisor.keeper import kill_below
from underway.supervisor.recycling import NO_MARKS, Wear
from underway.supervisor.worker_process import WorkerProcess

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


@contextmanager
def no_descriptors() -> Iterator[None]:
    """As in a process that has used up its own: none can be opened, those that are open work."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_worker_is_killed_even_where_nobody_can_look_what_is_below_it() -> None:
    with subprocess.Popen(SLEEP) as worker:
        with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
            kill_below("nobody's mark;", [worker.pid])
        assert worker.wait(10) == -signal.SIGKILL


def test_a_keeper_that_cannot_be_started_is_tried_again() -> None:
    descendants = Descendants("nobody's mark/", set)
    try:
        first = descendants._keeper
        first.kill()
        first.wait()
        with no_descriptors():
            descendants.keep_keeper()
            descendants.bury_adopted()  # cannot look, and ends nobody either
        descendants.keep_keeper()
        assert descendants._keeper.pid != first.pid
        assert descendants._keeper.poll() is None
    finally:
        descendants.dismiss_keeper()


def test_a_worker_that_cannot_be_watched_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async def main() -> None:
        before = os.listdir("/proc/self/fd"), psutil.Process().children()
        monkeypatch.setattr(os, "pidfd_open", refused)
        wear, overseer = Wear(NO_MARKS, random.Random(1)), Any
        with pytest.raises(OSError, match="Too many"):
            WorkerProcess("no:app", 1, "m;", overseer, crew_size=1, generation=0, wear=wear, folder=None)  # type: ignore[arg-type]
        assert (os.listdir("/proc/self/fd"), psutil.Process().children()) == before

    asyncio.run(main())

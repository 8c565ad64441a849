"""A worker is killed in the middle of a task: how long until its place is busy with another one."""

import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from benchmarks import app, limits, work
from benchmarks.cases.setting import PROCS, Setting
from benchmarks.model import OURS, Row

_PATIENCE_SECONDS = 30


class Ear:
    """Hears each task's first line: (pid, when)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(_PATIENCE_SECONDS)

    def next(self) -> tuple[int, int]:
        pid, reached = self._socket.recv(100).split()
        return int(pid), int(reached)

    def close(self) -> None:
        self._socket.close()


def run(setting: Setting) -> list[Row]:
    forms = {OURS: _ours, limits.POOL: _pool, f"{limits.EXECUTOR}, built anew": _executor}
    samples = {}
    for name, form in forms.items():
        setting.pairs.say(name)
        with _ear() as ear:
            samples[name] = setting.pairs.watched(partial(form, setting, ear))
    setting.stage.empty()
    return [Row("killed worker's slot busy again", "ms", samples, lower_is_better=True, goal=20)]


def _ours(setting: Setting, ear: Ear) -> list[float]:
    with setting.stage.supervisor(PROCS) as supervisor:
        app.announcers.enqueue_many([ear.address] * (setting.sizes.kills + PROCS))
        busy = [ear.next()[0] for _ in range(PROCS)]

        def prepare(kill: int) -> None:
            # A spare that is still booting would be another measurement: that of the next test but one.
            supervisor.await_boots(PROCS + 1 + kill)
            time.sleep(0.1)

        return _kills(setting, ear, busy, prepare)


def _pool(setting: Setting, ear: Ear) -> list[float]:
    with limits.pool(PROCS) as pool:
        for _ in range(setting.sizes.kills + PROCS):
            pool.apply_async(work.announce, (ear.address,))
        busy = [ear.next()[0] for _ in range(PROCS)]
        samples = _kills(setting, ear, busy, lambda _: time.sleep(0.1))
        pool.terminate()
        return samples


def _kills(setting: Setting, ear: Ear, busy: list[int], prepare: Callable[[int], None]) -> list[float]:
    """Kill the one that has been busy longest, again and again; milliseconds from each kill to the next first line."""
    samples = []
    for kill in range(setting.sizes.kills):
        prepare(kill)
        killed_at = time.monotonic_ns()
        os.kill(busy.pop(0), signal.SIGKILL)
        pid, reached = ear.next()
        busy.append(pid)
        samples.append((reached - killed_at) / 1e6)
    return samples


def _executor(setting: Setting, ear: Ear) -> list[float]:
    """It does not survive a dead worker: everything in it is lost, and it has to be made anew."""
    samples = []
    for _ in range(setting.sizes.kills):
        with suppress(BrokenProcessPool), limits.executor(PROCS) as executor:
            doomed = executor.submit(work.announce, ear.address)
            pid, _reached = ear.next()
            time.sleep(0.1)
            killed_at = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            doomed.result(_PATIENCE_SECONDS)
        with limits.cold_executor(PROCS) as executor:
            executor.submit(work.announce, ear.address)
            pid, reached = ear.next()
            samples.append((reached - killed_at) / 1e6)
            os.kill(pid, signal.SIGKILL)
    return samples


@contextmanager
def _ear() -> Iterator[Ear]:
    with tempfile.TemporaryDirectory(prefix="underway-bench-ear-", dir="/tmp") as folder:
        ear = Ear(str(Path(folder) / "s"))
        try:
            yield ear
        finally:
            ear.close()

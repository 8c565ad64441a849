"""A worker is killed during a task: the time until its slot runs another task."""

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

from benchmarks import app, baselines, work
from benchmarks.cases.context import PROCS, CaseContext
from benchmarks.model import OURS, Row

_TIMEOUT_SECONDS = 30


class StartListener:
    """Receives the PID and the start time of each task."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(_TIMEOUT_SECONDS)

    def next(self) -> tuple[int, int]:
        pid, reached = self._socket.recv(100).split()
        return int(pid), int(reached)

    def close(self) -> None:
        self._socket.close()


def run(context: CaseContext) -> list[Row]:
    variants = {OURS: _ours, baselines.POOL: _pool, f"{baselines.EXECUTOR}, rebuilt": _executor}
    samples = {}
    for name, variant in variants.items():
        context.sampler.show_progress(name)
        with _listening() as listener:
            samples[name] = context.sampler.sample_once(partial(variant, context, listener))
    context.testbed.empty()
    return [Row("killed worker's slot busy again", "ms", samples, lower_is_better=True, goal=20)]


def _ours(context: CaseContext, listener: StartListener) -> list[float]:
    with context.testbed.supervisor(PROCS) as supervisor:
        app.announcer.enqueue_many([listener.address] * (context.sizes.kills + PROCS))
        busy = [listener.next()[0] for _ in range(PROCS)]

        def prepare(kill: int) -> None:
            # Wait until the spare has booted: replacing a worker without a spare is a different measurement.
            supervisor.await_boots(PROCS + 1 + kill)
            time.sleep(0.1)

        return _kills(context, listener, busy, prepare)


def _pool(context: CaseContext, listener: StartListener) -> list[float]:
    with baselines.pool(PROCS) as pool:
        for _ in range(context.sizes.kills + PROCS):
            pool.apply_async(work.announce, (listener.address,))
        busy = [listener.next()[0] for _ in range(PROCS)]
        samples = _kills(context, listener, busy, lambda _: time.sleep(0.1))
        pool.terminate()
        return samples


def _kills(
    context: CaseContext, listener: StartListener, busy: list[int], prepare: Callable[[int], None]
) -> list[float]:
    """Kill the longest-busy worker repeatedly; milliseconds from each kill to the start of the next task."""
    samples = []
    for kill in range(context.sizes.kills):
        prepare(kill)
        killed_at = time.monotonic_ns()
        os.kill(busy.pop(0), signal.SIGKILL)
        pid, reached = listener.next()
        busy.append(pid)
        samples.append((reached - killed_at) / 1e6)
    return samples


def _executor(context: CaseContext, listener: StartListener) -> list[float]:
    """A ProcessPoolExecutor does not survive a dead worker: its tasks are lost and it has to be rebuilt."""
    samples = []
    for _ in range(context.sizes.kills):
        with suppress(BrokenProcessPool), baselines.executor(PROCS) as executor:
            future = executor.submit(work.announce, listener.address)
            pid, _reached = listener.next()
            time.sleep(0.1)
            killed_at = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            future.result(_TIMEOUT_SECONDS)
        with baselines.cold_executor(PROCS) as executor:
            executor.submit(work.announce, listener.address)
            pid, reached = listener.next()
            samples.append((reached - killed_at) / 1e6)
            os.kill(pid, signal.SIGKILL)
    return samples


@contextmanager
def _listening() -> Iterator[StartListener]:
    with tempfile.TemporaryDirectory(prefix="underway-bench-", dir="/tmp") as folder:
        listener = StartListener(str(Path(folder) / "s"))
        try:
            yield listener
        finally:
            listener.close()

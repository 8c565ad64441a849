"""What a worker process inherits, and how its death is handled."""

import asyncio
import os
import random
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import psutil
from apps import staying_busy
from db import LANE, STEP
from harness import Supervisor, eventually
from places import APPS

from underway import Underway
from underway.supervisor.tasks.task import Task
from underway.supervisor.tasks.verdict import Observation
from underway.supervisor.workers.descendants import Descendants
from underway.supervisor.workers.launch import LaunchSpec
from underway.supervisor.workers.process import WorkerProcess
from underway.supervisor.workers.recycle import NO_LIMITS, WorkerUsage
from underway.supervisor.workers.worker_state import KillReason
from underway.wire import frames
from underway.wire import messages as wire


def test_a_worker_inherits_only_the_descriptors_it_needs(bind: Callable[[Underway], Underway], database: str) -> None:
    """Not those that the supervisor has inherited itself, for example from systemd."""
    bind(staying_busy.app)
    run = staying_busy.looking.enqueue()
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "underway.cli.supervisor", f"{APPS / 'staying_busy.py'}:app", "--until-idle"]
    environment = {**os.environ, "UNDERWAY_DATABASE_URL": database}
    try:
        done = subprocess.run(command, pass_fds=[writing], env=environment, capture_output=True, timeout=60)
    finally:
        os.close(reading)
        os.close(writing)
    assert done.returncode == 0, done.stderr
    found = run.result(1)
    assert found["0"] == "/dev/null"
    # Its output goes to one pipe. Besides 1 and 2, faulthandler has a duplicate, and there is a copy of each
    # descriptor that a step may close: 0, 1, 2 and the working folder.
    assert found["1"] == found["2"]
    kinds = Counter(re.sub(r":\[\d+\]", "", name) for name in found.values())
    assert kinds == {"/dev/null": 2, "pipe": 5, "socket": 1, os.getcwd(): 1}
    assert len({name for name in found.values() if name.startswith("pipe")}) == 1


def test_the_kernel_prefers_workers_over_their_supervisor_as_oom_victims(
    start_supervisor: Callable[..., Supervisor],
) -> None:
    supervisor = start_supervisor("basic", "--procs", "1")
    supervisor.until("serving")
    ours, *others = (
        int(Path(f"/proc/{pid}/oom_score_adj").read_text())
        for pid in [supervisor.pid, *(child.pid for child in psutil.Process(supervisor.pid).children())]
    )
    # The guardian, and the worker that has booted; the spare may still be booting.
    assert ours in others
    assert min(ours + 500, 1000) in others


def test_a_worker_that_takes_long_to_die_is_killed_once_for_the_first_reason() -> None:
    """(A worker with 1.5 GiB to free was killed thirteen times, and the log said so thirteen times.)"""

    class Noted:
        def __init__(self) -> None:
            self.gone = asyncio.Event()

        def received(self, worker: WorkerProcess, message: wire.Message) -> None: ...
        def on_messages_processed(self) -> None: ...
        def died(self, worker: WorkerProcess) -> None:
            self.gone.set()

    async def main() -> None:
        listener = Noted()
        usage = WorkerUsage(NO_LIMITS, random.Random(1))
        mark = f"{uuid4()};"
        pids: set[int] = set()
        descendants = Descendants("an unused mark/", lambda: pids)
        descendants.ignore_existing_children()  # the test server's watchdog among them
        worker = WorkerProcess(LaunchSpec("no:app", 1, mark), 0, usage, listener, descendants, pool_size=1)
        pids.add(worker.pid)
        task = Task("run", 1, LANE, STEP, 0, 0, 0, 0, b"", claimed_at=0.0, lease_deadline=0.0, started_at=0.0)
        worker.tasks[1] = task
        assert worker.kill_task(task, Observation.KILLED_MEMORY, "too much")
        assert not worker.kill_task(task, Observation.KILLED_SHUTDOWN)  # a release, which is not charged
        assert worker.kill_reason == KillReason(1, Observation.KILLED_MEMORY)
        async with asyncio.timeout(20):
            await listener.gone.wait()
        assert worker.death == "was killed: memory: too much"
        descendants.dismiss()

    asyncio.run(main())


def test_a_task_that_was_skipped_and_assigned_again_is_announced_again() -> None:
    """(Found by the simulation: its Started was not sent, so no limit was enforced and no crash was charged.)"""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    worker = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            "underway.worker",
            f"{APPS / 'floods.py'}:app",
            str(theirs.fileno()),
            str(os.getpid()),
            "20",
            "1",
        ],
        pass_fds=[theirs.fileno()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    theirs.close()
    said: list[wire.Message] = []
    reader = frames.FrameReader()

    def read_until(kind: type[wire.Message]) -> None:
        while not any(isinstance(message, kind) for message in said):
            said.extend(reader.feed(ours.recv(1 << 16)))

    def say(*messages: wire.Message) -> None:
        ours.sendall(b"".join(map(frames.encode, messages)))

    long, short = (_task(1, "returning", "returns", b"0"), _task(2, "shorts", "short", b'""'))
    try:
        read_until(wire.Hello)
        say(long, short)
        read_until(wire.Started)
        eventually(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_SLEEPING)
        say(wire.Revoke(2))  # while the first result, which announces the second task, does not fit into the socket
        read_until(wire.Skipped)
        (result,) = (message for message in said if isinstance(message, wire.Result))
        assert (result.token, result.next_started) == (1, 2)
        said.clear()
        say(short)
        read_until(wire.Result)
        assert said[0] == wire.Started(2)
    finally:
        worker.kill()
        worker.wait()
        ours.close()


def _task(token: int, job: str, step: str, payload: bytes) -> wire.Assignment:
    return wire.Assignment(f"run {token}", token, job, step, 1, 0, 0, 60.0, None, payload)

"""The titles of workers in `ps`."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
from apps import staying_busy
from harness import Supervisor, eventually

from underway import Underway

Start = Callable[..., Supervisor]
Bind = Callable[[Underway], Underway]


def shown(process: psutil.Process) -> str:
    done = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(process.pid)], capture_output=True, text=True)
    return done.stdout.rstrip("\n")


def test_ps_shows_what_each_worker_does(bind: Bind, start_supervisor: Start, stage: Path) -> None:
    bind(staying_busy.app)
    supervisor = start_supervisor("staying_busy", "--procs", "1", env={"STAGE": str(stage)})
    supervisor.until("serving")
    eventually(lambda: len(supervisor.workers()) == 2, what="a worker and a spare")
    eventually(
        lambda: sorted(map(shown, supervisor.workers())) == ["underway worker 1: idle", "underway worker 2: idle"]
    )

    run = staying_busy.busy.enqueue("here")
    eventually(lambda: (stage / "here").exists())
    (at_work,) = [title for title in map(shown, supervisor.workers()) if "idle" not in title]
    who, _, since = at_work.partition(" since ")
    assert who in {f"underway worker {slot}: busy stay, run {run.id}" for slot in (1, 2)}
    assert [len(part) for part in since.split(":")] == [2, 2, 2]
    # A worker's children have their own titles.
    environments = [Path(f"/proc/{worker.pid}/environ").read_bytes() for worker in supervisor.workers()]
    assert all(b"UNDERWAY_SLOT=" in environment and environment[-1:] == b"\0" for environment in environments)

    (stage / "here.end").touch()
    run.result(20)
    eventually(lambda: all(shown(worker).endswith(": idle") for worker in supervisor.workers()))


def test_a_title_never_exceeds_its_space(tmp_path: Path) -> None:
    """A long name is shortened, and the environment, which follows in memory, is unchanged."""
    program = """
import os
from underway.wire.messages import Assignment
from underway.worker.process_title import ProcessTitle
title = ProcessTitle(1)
environment = open("/proc/self/environ", "rb").read()
for name in ("x" * 10_000, "é" * 5_000, "", "short"):
    title.show_task(Assignment("run", 1, name, "step", 1, 0, 0, 1.0, None, b""))
    line = open("/proc/self/cmdline", "rb").read()
    assert len(line) == len(title._area) and line[-1:] == b"\\0", line
    assert line.startswith(("underway worker 1: " + name).encode()[:len(line) - 1]), line
    title.show_busy(), title.show_idle()
assert open("/proc/self/cmdline", "rb").read().rstrip(b"\\0") == b"underway worker 1: idle"
assert open("/proc/self/environ", "rb").read() == environment
"""
    file = tmp_path / "titles.py"
    file.write_text(program)
    done = subprocess.run(
        [sys.executable, file, " " * 100], capture_output=True, text=True, env={**os.environ, "A": "b"}
    )
    assert (done.returncode, done.stderr) == (0, "")

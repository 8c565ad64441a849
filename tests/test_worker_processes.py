"""What a worker is given at its birth, and how soon its death is seen."""

import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
from apps import staying_busy
from harness import APPS, Supervisor, eventually

from underway import Underway


def test_a_worker_has_nothing_open_but_what_it_was_given(bind: Callable[[Underway], Underway], database: str) -> None:
    """Not even what whoever started its supervisor has left open for that, as systemd does."""
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
    # Its output goes through one pipe, under three numbers: faulthandler has one that steps do not know.
    assert found["1"] == found["2"]
    kinds = Counter(re.sub(r":\[\d+\]", "", name) for name in found.values())
    assert kinds == {"/dev/null": 1, "pipe": 3, "socket": 1}
    assert len({name for name in found.values() if name.startswith("pipe")}) == 1


def test_the_kernel_takes_workers_before_their_supervisor(start_supervisor: Callable[..., Supervisor]) -> None:
    supervisor = start_supervisor("basic", "--procs", "1")
    supervisor.until("serving")
    ours, *others = (
        int(Path(f"/proc/{pid}/oom_score_adj").read_text())
        for pid in [supervisor.pid, *(child.pid for child in psutil.Process(supervisor.pid).children())]
    )
    # The keeper, and the worker that has booted; the spare may not have come so far.
    assert ours in others
    assert min(ours + 500, 1000) in others


def test_a_death_is_seen_at_once(start_supervisor: Callable[..., Supervisor]) -> None:
    supervisor = start_supervisor("basic", "--procs", "4", "--verbose")
    eventually(lambda: supervisor.log.count("worker booted") == 5)
    took = []
    for worker in supervisor.workers():
        begun = time.monotonic()
        worker.kill()
        while psutil.pid_exists(worker.pid):  # until its supervisor has asked how it ended
            assert time.monotonic() - begun < 20
            time.sleep(0.0005)
        took.append(time.monotonic() - begun)
    assert len(took) >= 5
    assert statistics.median(took) < 0.05

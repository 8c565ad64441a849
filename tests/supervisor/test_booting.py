"""Workers that do not boot: back-off and time limit."""

import asyncio
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from db import value
from harness import Supervisor, eventually, outcomes
from places import APPS

from underway.supervisor.workers.boot import WorkerBoots


def pauses(failures: int, slot: int = 1, *, boots: WorkerBoots) -> list[float]:
    """The pauses after this many consecutive failures."""
    loop = asyncio.get_running_loop()
    waits = []
    for _ in range(failures):
        boots.begin(slot)
        timer = boots._pausing.pop(slot)
        waits.append(timer.when() - loop.time())
        timer.cancel()
    return waits


def no_process(_slot: int) -> Any:
    raise OSError("Resource temporarily unavailable")


def test_each_failure_of_a_slot_doubles_its_pause_up_to_half_a_minute() -> None:
    async def main() -> None:
        boots = WorkerBoots(no_process, random.Random(1))
        waits = pauses(20, boots=boots)
        for n, wait in enumerate(waits):
            expected = min(0.1 * 2**n, 30)
            assert 0.79 * expected < wait < 1.21 * expected
        assert len({round(wait, 3) for wait in waits[10:]}) > 5, "jitter"
        # Another slot has its own back-off, and this one is reset by a worker that has run a task, or by a reload.
        assert pauses(1, 2, boots=boots)[0] < 0.13
        boots.reset_backoff(1)
        assert pauses(1, boots=boots)[0] < 0.13
        pauses(5, boots=boots)
        boots.end()
        assert pauses(1, boots=boots)[0] < 0.13

    asyncio.run(main())


def test_trouble_is_one_line_that_postgres_can_store() -> None:
    async def main() -> None:
        boots = WorkerBoots(no_process, random.Random(1))
        boots.failed(1, "exit code 3\nTraceback ...\nValueError: \0" + "x" * 10_000)
        assert boots.trouble.startswith("workers do not boot: ValueError: \N{REPLACEMENT CHARACTER}xxx")
        assert len(boots.trouble) < 400
        boots.end()

    asyncio.run(main())


def test_a_worker_whose_import_hangs_is_killed() -> None:
    program = f"""
from underway.supervisor.logs import format
from underway.supervisor.workers import boot
from underway.supervisor.main import Settings, supervise
boot.BOOT_SECONDS = 1.0
format.configure(json=False, level=20)
raise SystemExit(supervise(Settings("{APPS}/slow_boot.py:app", procs=1)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert done.returncode == 3, done.stderr
    assert "worker did not boot within 1 s" in done.stderr


@pytest.mark.chaos
def test_an_import_may_take_twenty_seconds(
    connection: psycopg.Connection[Any], start_supervisor: Callable[..., Supervisor]
) -> None:
    supervisor = start_supervisor("slow_boot", "--procs", "1", env={"SLOW_BOOT": "20"})
    eventually(lambda: value(connection, "select count(*) from underway.job") == 1, within=60, what="it is registered")
    connection.execute("select underway.enqueue('works')")
    eventually(lambda: outcomes(connection) == {"succeeded": 1})
    assert "did not boot" not in supervisor.log

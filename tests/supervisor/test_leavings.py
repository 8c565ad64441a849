"""Cleanup after workers, and their exit: zombies, shared memory, files, hooks, and the stacks of hung steps."""

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import psycopg
import pytest
from apps import leavings
from harness import Supervisor, eventually, lives, outcomes, states, zombies

from underway import InvalidOption, Status, Underway

Start = Callable[..., Supervisor]


@pytest.fixture
def start(start_supervisor: Start, bind: Callable[[Underway], Underway], stage: Path, tmp_path: Path) -> Start:
    """Start a supervisor for apps/leavings.py, with its own folder for temporary files."""
    bind(leavings.app)
    temporary = tmp_path / "t"
    temporary.mkdir()

    def start_leaving(*options: str) -> Supervisor:
        return start_supervisor("leavings", *options, env={"LEAVINGS": str(stage), "TMPDIR": str(temporary)})

    return start_leaving


def lines(stage: Path, name: str) -> list[str]:
    return (stage / name).read_text().splitlines() if (stage / name).exists() else []


# Zombies


def test_adopted_zombies_are_collected_between_tasks(start: Start) -> None:
    """(Three hundred wrappers left three hundred zombies.)"""
    runs = leavings.wrapping.enqueue_many(range(60))
    supervisor = start("--procs", "1")
    left = [run.result(60) for run in runs]
    assert max(left) <= 3, "at most those of the last moment"
    leavings.wrapping.enqueue(1).result(20)
    (worker,) = (worker for worker in supervisor.workers() if worker.pid == runs[0].attempts()[0].pid)
    leavings.counting.enqueue(1).result(20)
    eventually(lambda: len(zombies(worker)) <= 1, what="the orphans are collected")


def test_exit_codes_of_children_are_left_to_the_code_that_started_them(start: Start) -> None:
    kept, shared = leavings.keeping.enqueue(), leavings.sharing.enqueue()
    assert start("--procs", "1", "--until-idle").wait() == 0
    assert kept.result() == [7, 8, 0]
    assert shared.result() == [4, 3, 2, 1, 0]


# Shared memory and files


def test_a_killed_step_leaves_no_shared_memory_and_no_files(start: Start, stage: Path) -> None:
    name = f"underway-{uuid4()}"
    run = leavings.littering.enqueue(name)
    supervisor = start("--procs", "1")
    second = run.result(30)
    (first,) = lines(stage, "folders")
    assert Path(first).parent == Path(second).parent
    assert first != second
    assert Path(second).stat().st_mode & 0o777 == Path(second).parent.stat().st_mode & 0o777 == 0o700
    eventually(lambda: not Path(first).exists(), what="the files are removed")
    eventually(lambda: not Path("/dev/shm", name).exists(), what="the resource tracker has removed it")
    eventually(lambda: not zombies(psutil.Process(supervisor.pid)), what="the tracker is collected")
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == 0
    assert not Path(second).parent.exists()


def test_a_process_that_imitates_a_resource_tracker_is_killed(start: Start, stage: Path) -> None:
    run = leavings.pretending.enqueue(1)
    supervisor = start("--procs", "1")
    assert run.result(30) == 2
    pretender = int((stage / "pretender").read_text())
    eventually(lambda: not psutil.pid_exists(pretender), within=10)
    eventually(lambda: len(psutil.Process(supervisor.pid).children(recursive=True)) == 3, what="the hidden one ends")


def test_the_files_of_a_killed_supervisor_are_removed(start: Start, stage: Path, tmp_path: Path) -> None:
    supervisor = start("--procs", "1")
    supervisor.until("serving")
    (folder,) = (tmp_path / "t").iterdir()
    (folder / "1" / "file").write_text("large")
    supervisor.process.kill()
    supervisor.process.wait()
    eventually(lambda: not folder.exists(), what="by the guardian")


def test_leftovers_of_a_supervisor_killed_with_its_guardian_are_killed_at_the_next_start(
    start: Start, stage: Path, tmp_path: Path
) -> None:
    """A step that hangs in C code does not notice the supervisor's death, and no guardian is left to kill it."""
    run = leavings.hanging.enqueue("blocks all signals")
    supervisor = start("--procs", "1")
    eventually(lambda: run.status() is Status.IN_PROGRESS)
    eventually(lambda: _cpu(supervisor) > 0.2, what="it spins")
    (folder,) = (tmp_path / "t").iterdir()
    spinning = max(supervisor.workers(), key=_spent)
    supervisor.kill_with_guardian()
    assert folder.exists()
    another = start("--procs", "1")
    another.until("processes that supervisor")
    eventually(lambda: not lives(spinning))
    eventually(lambda: not folder.exists())
    eventually(lambda: len(list((tmp_path / "t").iterdir())) == 1, what="the folder of the other stays")


def _spent(worker: psutil.Process) -> float:
    try:
        return float(worker.cpu_times().user)
    except psutil.Error:
        return 0.0


def _cpu(supervisor: Supervisor) -> float:
    return max((_spent(worker) for worker in supervisor.workers()), default=0.0)


# The end of a worker


@pytest.mark.parametrize("how", ["stop", "reload", "recycling"])
def test_hooks_are_called_when_a_worker_ends_in_order(how: str, start: Start, stage: Path) -> None:
    options = ["--max-tasks", "1"] if how == "recycling" else []
    supervisor = start("--procs", "1", *options)
    worker = leavings.counting.enqueue(1).result(30)
    if how == "stop":
        supervisor.send(signal.SIGTERM)
        assert supervisor.wait() == 0
    elif how == "reload":
        supervisor.send(signal.SIGHUP)
    eventually(lambda: f"{worker} last" in lines(stage, "ends"), what="its hooks are called")
    said = [line for line in lines(stage, "ends") if line.startswith(f"{worker} ")]
    assert said == [f"{worker} first", f"{worker} last"], "once each, in reverse order"
    supervisor.until("fails, called at the worker's end, raised an error")
    supervisor.until("ValueError: the collector is away")
    eventually(lambda: not psutil.pid_exists(worker))


def test_a_worker_that_does_not_end_in_time_is_killed(
    start: Start, stage: Path, connection: psycopg.Connection[Any]
) -> None:
    (stage / "hang").touch()
    supervisor = start("--procs", "1", "--verbose")
    leavings.counting.enqueue(1).result(30)
    eventually(lambda: supervisor.log.count("worker booted") == 2, what="the spare has booted, too")
    supervisor.send(signal.SIGTERM)
    eventually(lambda: len(lines(stage, "ends")) == 4, what="the worker and the spare are at their ends")
    assert supervisor.process.poll() is None
    assert supervisor.wait(25) == 0
    assert outcomes(connection) == {"succeeded": 1}


def test_a_stop_now_does_not_wait_for_hooks(start: Start, stage: Path) -> None:
    (stage / "hang").touch()
    supervisor = start("--procs", "1", "--verbose")
    leavings.counting.enqueue(1).result(30)
    eventually(lambda: supervisor.log.count("worker booted") == 2, what="the spare has booted, too")
    supervisor.send(signal.SIGTERM)
    eventually(lambda: len(lines(stage, "ends")) == 4)
    supervisor.send(signal.SIGQUIT)
    assert supervisor.wait(4) == 0


def test_a_killed_worker_calls_no_hook(start: Start, stage: Path) -> None:
    run = leavings.hanging.enqueue("computes")
    supervisor = start("--procs", "1")
    assert run.wait(30) is Status.FAILED
    killed = run.attempts()[0].pid
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == 0
    assert lines(stage, "ends")
    assert not [line for line in lines(stage, "ends") if line.startswith(f"{killed} ")]


def test_a_hook_is_a_plain_function() -> None:
    async def flush() -> None: ...

    for wrong in (flush, "flush"):
        with pytest.raises(InvalidOption, match="a synchronous function without arguments"):
            Underway().on_worker_end(wrong)  # type: ignore[type-var]


# Stacks


@pytest.mark.parametrize(
    ("how", "outcome", "step"),
    [
        ("computes", "timed_out", "hang"),
        ("grows", "out_of_memory", "grow"),
        ("blocks all signals", "timed_out", ""),
    ],
)
def test_a_step_killed_for_a_limit_leaves_its_stack(
    how: str, outcome: str, step: str, start: Start, connection: psycopg.Connection[Any]
) -> None:
    run = (leavings.growing if how == "grows" else leavings.hanging).enqueue(how)
    assert start("--procs", "1", "--until-idle").wait(40) == 0
    (attempt,) = run.attempts()
    assert attempt.outcome == outcome
    error = attempt.error or ""
    assert re.search(r"the worker was killed: (timeout|memory): ", error), error
    if step:
        assert re.search(rf"last output:\n(.|\n)*most recent call first(.|\n)* in {step}\n", error), error
    assert states(connection) == {"failed": 1}

"""Every way to stop a supervisor, in every state: in bounded time, with the right exit code, no process left."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil
import psycopg
import pytest
from apps import doomed
from chaos_report import Count
from db import value
from harness import Supervisor, eventually, lives, outcomes, states, zombies
from places import APPS
from proxy import Proxy

from underway import Status, Underway

GRACE = "0.3"
ENDLESS = "600"  # a grace period long enough that only a stop "now" ends the supervisor in time


class Way(NamedTuple):
    """`signals` are sent in this order: to the whole group as by a terminal, or to all processes as systemd does by
    default. `now`: the supervisor stops without waiting.
    """

    signals: tuple[signal.Signals, ...]
    now: bool = False
    to: Literal["it", "its group", "all", "all, it last"] = "it"


WAYS = {
    "TERM": Way((signal.SIGTERM,)),
    "INT": Way((signal.SIGINT,)),
    "QUIT": Way((signal.SIGQUIT,), now=True),
    "TERM twice": Way((signal.SIGTERM, signal.SIGTERM), now=True),
    "INT to the group": Way((signal.SIGINT,), to="its group"),
    "TERM to all": Way((signal.SIGTERM,), to="all"),
    "TERM to all, it last": Way((signal.SIGTERM,), to="all, it last"),
    "TERM then KILL": Way((signal.SIGTERM, signal.SIGKILL)),
}
STATES = ("idle", "running", "committing", "database down")
# Combinations that rarely fail alone, or that wait for the database, run with the long tests.
QUICK = {
    ("INT to the group", "running"),
    ("TERM", "committing"),
    ("QUIT", "database down"),
    ("TERM then KILL", "running"),
    ("TERM to all", "running"),
    ("TERM to all, it last", "running"),
    ("TERM to all, it last", "committing"),
}
CELLS = [
    pytest.param(way, state, id=f"{way}, {state}", marks=() if (way, state) in QUICK else pytest.mark.chaos)
    for way in WAYS
    for state in STATES
]


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    """Between supervisor and database; closing it makes the database unavailable."""
    proxy = Proxy(database, "cut")
    proxy.done = True  # all commits pass
    with proxy:
        yield proxy


@pytest.mark.parametrize(("way", "state"), CELLS)
def test_stop(
    way: str,
    state: str,
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
    proxy: Proxy,
    stage: Path,
    count: Count,
) -> None:
    bind(doomed.app)
    told = WAYS[way]
    supervisor = start_supervisor(
        "apps.doomed:app", "--procs", "2", "--grace", ENDLESS if told.now else GRACE, "--database", proxy.url,
        env={"PYTHONPATH": str(APPS.parent), "HOSTILE_FOLDER": str(stage)},
    )  # fmt: skip
    supervisor.until("serving")
    enqueued = _bring_about(state, connection, supervisor, proxy)
    below = psutil.Process(supervisor.pid).children(recursive=True)

    began = time.monotonic()
    for number in told.signals:
        if number == signal.SIGKILL:
            supervisor.until("SIGTERM: finishing")
        _tell(supervisor.pid, told, number, below)
        time.sleep(0.05)
    code = supervisor.wait(30)
    count(**{f"by {way}": 1}, peak_seconds=round(time.monotonic() - began))

    eventually(lambda: not [process for process in below if lives(process)], what="nothing is left")
    if signal.SIGKILL in told.signals:
        # An idle supervisor may have stopped before the KILL arrives.
        assert code == -signal.SIGKILL or (state, code) == ("idle", 0)
        return  # the reaper takes its runs back: test_supervisor_death.py
    cut_off = state in ("running", "database down")
    # A short step may or may not have ended by itself when all are killed.
    by_chance = (told.now or told.to.startswith("all")) and state == "committing"
    assert code in ((0, 1) if by_chance else (1,) if cut_off else (0,)), supervisor.log
    if told.now:
        assert "interrupted: the supervisor stops" not in supervisor.log, "killed at once"
    if state != "database down":
        ended = states(connection)
        assert ended.get("in_progress", 0) == 0
        assert sum(ended.values()) == enqueued
        assert connection.execute("select count(*) from underway.supervisor").fetchone() == (0,)
    assert outcomes(connection).keys() <= {"succeeded", "released"}
    charged = value(connection, "select coalesce(sum(attempts + crashes)::int, 0) from underway.runs")
    count(runs=enqueued, charged=charged)
    assert charged == 0


def _tell(pid: int, told: Way, number: signal.Signals, below: list[psutil.Process]) -> None:
    if told.to == "its group":
        os.killpg(pid, number)
        return
    others = [process.pid for process in below] if told.to.startswith("all") else []
    for each in [*others, pid] if told.to == "all, it last" else [pid, *others]:
        with suppress(ProcessLookupError):  # the supervisor was faster
            os.kill(each, number)


def _running(supervisor: Supervisor) -> int:
    """The number of workers that run a task, by their titles. A task is claimed some time before it starts."""
    titles = [" ".join(worker.cmdline()) for worker in supervisor.workers()]
    return sum("underway worker" in title and "idle" not in title for title in titles)


def _bring_about(state: str, connection: psycopg.Connection[Any], supervisor: Supervisor, proxy: Proxy) -> int:
    """Returns the number of runs."""
    if state == "committing":
        doomed.shorts.enqueue_many(range(20_000))
        eventually(lambda: states(connection).get("succeeded", 0) > 100)
        return 20_000
    if state == "idle":
        return 0
    doomed.told.enqueue_many(["never", "never"])
    eventually(lambda: states(connection) == {"in_progress": 2})
    eventually(lambda: _running(supervisor) == 2, what="two steps have started")
    if state == "database down":
        proxy.__exit__()
        supervisor.until("cannot connect to the database, trying again")
    return 2


@pytest.mark.parametrize("when", ["seen before", "seen together", "seen after", "stalled between"])
def test_workers_that_die_of_the_same_signal_are_not_to_blame(
    when: str,
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
    stage: Path,
) -> None:
    """The supervisor sees their deaths before its own signal, together with it, or after it; or before it, and then
    it is stopped for longer than such a death waits for its verdict.
    """
    bind(doomed.app)
    finished = doomed.told.enqueue("curtain")
    (stage / "curtain").touch()
    supervisor = start_supervisor(
        "apps.doomed:app", "--procs", "2", "--grace", GRACE,
        env={"PYTHONPATH": str(APPS.parent), "HOSTILE_FOLDER": str(stage)},
    )  # fmt: skip
    assert finished.wait(20) is Status.SUCCEEDED
    doomed.told.enqueue_many(["never"] * 6)
    eventually(lambda: states(connection).get("in_progress", 0) >= 2)
    eventually(lambda: _running(supervisor) == 2, what="two steps have started")
    workers = supervisor.workers()
    if when == "seen together":
        supervisor.send(signal.SIGSTOP)
    if when == "seen after":
        supervisor.send(signal.SIGTERM)
        supervisor.until("SIGTERM: finishing")
    for worker in workers:
        worker.terminate()
    if when in ("seen before", "stalled between"):
        # The supervisor has seen their deaths, and waits half a second for its own signal: the test must not pause.
        eventually(lambda: not any(worker.is_running() for worker in workers), what="they are collected")
    if when == "stalled between":
        supervisor.send(signal.SIGSTOP)
    if when != "seen after":
        supervisor.send(signal.SIGTERM)
    if when in ("seen together", "stalled between"):
        time.sleep(1)
        supervisor.send(signal.SIGCONT)
    assert supervisor.wait() == 1, "running steps did not finish"
    assert states(connection) == {"succeeded": 1, "pending": 6}
    ended = outcomes(connection)
    assert ended.pop("released") >= 2  # the spare and replacement workers may have started other tasks
    assert ended == {"succeeded": 1}
    assert "attempt released: the worker died: signal SIGTERM" in supervisor.log
    assert value(connection, "select sum(attempts + crashes)::int from underway.runs") == 0


@pytest.mark.parametrize("it_last", [False, True])
def test_all_are_terminated_while_they_boot(it_last: bool, start_supervisor: Callable[..., Supervisor]) -> None:
    supervisor = start_supervisor("slow_boot", "--procs", "2")
    workers = eventually(lambda: len(found := supervisor.workers()) == 3 and found)
    assert workers
    for process in [*workers, supervisor] if it_last else [supervisor, *workers]:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.1 if it_last else 0)
    assert supervisor.wait() == 0, supervisor.log


needs_namespaces = pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True).returncode != 0,
    reason="unshare --pid --fork --mount-proc is not permitted here",
)


@needs_namespaces
def test_as_process_1_of_a_container(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    database: str,
    stage: Path,
    tmp_path: Path,
) -> None:
    bind(doomed.app)
    doomed.told.enqueue("curtain")
    # Process 1 inherits from the shell a sidecar and an orphan that exits at once.
    script = 'sleep 600 & (sleep 0.1 &) ; exec "$@"'
    command = [sys.executable, "-m", "underway.cli.supervisor", "apps.doomed:app", "--procs", "1", "--verbose"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        namespace = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script, "sh", *command],
            stdout=file,
            stderr=file,
            env={
                **os.environ,
                "UNDERWAY_DATABASE_URL": database,
                "PYTHONPATH": f"{APPS.parent}:{os.environ.get('PYTHONPATH', '')}",
                "HOSTILE_FOLDER": str(stage),
            },
        )
    try:
        eventually(lambda: states(connection) == {"in_progress": 1}, what=log.read_text())
        (init,) = psutil.Process(namespace.pid).children()
        eventually(lambda: log.read_text().count("worker booted") == 2)
        eventually(lambda: not zombies(init), what="orphans are collected")
        # The death of a worker kills its own orphans only.
        spare = re.findall(r"worker booted .*pid=(\d+)", log.read_text())[1]
        idle = next(child for child in init.children() if _inner_pid(child) == spare)
        idle.kill()
        eventually(lambda: log.read_text().count("worker booted") == 3)
        assert [child for child in init.children() if child.name() == "sleep"], "the sidecar lives"
        init.send_signal(signal.SIGTERM)
        eventually(lambda: "SIGTERM: finishing what runs" in log.read_text())
        (stage / "curtain").touch()
        assert namespace.wait(20) == 0
        assert outcomes(connection) == {"succeeded": 1}
    finally:
        namespace.kill()
        namespace.wait()


def _inner_pid(process: psutil.Process) -> str:
    """The PID inside of its namespace."""
    (line,) = [
        line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("NSpid")
    ]
    return line.split()[-1]

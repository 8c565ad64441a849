"""Children that a step forks: they cannot use its context, they exit when they leave it, and their log is forwarded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Never
from uuid import UUID

import psycopg
import pytest
from apps import forking
from harness import Supervisor, eventually, outcomes
from hypothesis import given
from hypothesis import strategies as st

from underway import Job, Underway
from underway.wire import child_record
from underway.wire.child_record import Record
from underway.worker.child_log import _line

Start = Callable[..., Supervisor]
Connection = psycopg.Connection[Any]


@pytest.fixture
def start(bind: Callable[[Underway], Underway], start_supervisor: Start, stage: Path) -> Start:
    """Start a supervisor for apps/forking.py with one worker."""
    bind(forking.app)
    return lambda *options: start_supervisor("forking", "--procs", "1", *options, env={"FOLDER": str(stage)})


# Invalid uses of cx


@pytest.mark.parametrize("job", [forking.uses, forking.uses_async], ids=lambda job: job.name)
def test_a_child_cannot_use_the_context_of_its_step(
    start: Start, connection: Connection, job: Job[str, Any, dict[str, str], Any]
) -> None:
    run = job.enqueue("of the step")
    assert start("--until-idle").wait() == 0
    said = run.result()
    assert said.pop("plain") == f"{run.id} 1 ['made']"
    assert said.keys() == forking.USES.keys()
    for use, error in said.items():
        assert error.startswith(f"InsideStep: {use} was used in a child process of the step"), error
    assert _results(connection, "notes") == ["of the step"]


def test_a_connection_opened_before_the_fork_belongs_to_the_parent(start: Start, connection: Connection) -> None:
    connection.execute("create table written (text text)")
    runs = forking.connections.enqueue_many(["first", "second"])
    assert start("--until-idle").wait() == 0
    for run in runs:
        said = run.result()
        assert said.pop("close") == "None"
        for use, error in said.items():
            assert error.startswith("InsideStep: cx.tx was used in a child process of the step"), (use, error)
    written = connection.execute("select text from written order by text").fetchall()
    assert [text for (text,) in written] == ["first after", "first before", "second after", "second before"]


def test_a_context_cannot_be_pickled(start: Start) -> None:
    run = forking.pickles.enqueue()
    start()
    assert run.result(30).startswith("InsideStep: cx cannot be passed to another process")


def test_a_context_ends_with_its_step(start: Start) -> None:
    start()
    forking.keeps.enqueue().result(20)
    said = forking.uses_kept.enqueue().result(20)
    assert said.keys() == forking.USES.keys()
    for use, error in said.items():
        assert error.startswith(f"InsideStep: {use} belongs to an attempt that has ended"), error


def test_a_thread_cannot_enqueue_a_run_after_its_step_has_ended(
    start: Start, connection: Connection, stage: Path
) -> None:
    run = forking.threads.enqueue()
    assert start("--until-idle").wait() == 0
    run.result()
    eventually((stage / "given").exists)
    *runs, error = (stage / "given").read_text().splitlines()
    assert runs
    assert error.startswith("InsideStep('cx.enqueue belongs to an attempt that has ended")
    rows = connection.execute("select id from underway.runs where job = 'notes'").fetchall()
    assert {id for (id,) in rows} == set(map(UUID, runs))


# Children that leave a step


@pytest.mark.parametrize("job", [forking.returns, forking.returns_async], ids=lambda job: job.name)
def test_a_child_that_leaves_the_step_exits(
    start: Start, connection: Connection, stage: Path, job: Job[str, Never, int, None]
) -> None:
    connection.execute("create table written (text text)")
    ways = {"returns": 1, "raises": 1, "exits": 3, "returns-tx": 1, "raises-tx": 1, "exits-tx": 3}
    runs = {how: job.enqueue(how) for how in ways}
    supervisor = start("--until-idle")
    assert supervisor.wait() == 0
    assert {how: run.result() for how, run in runs.items()} == ways
    assert outcomes(connection) == {"succeeded": len(ways)}
    assert connection.execute("select count(distinct pid) from underway.attempt").fetchone() == (1,)
    assert {path.read_text() for path in stage.iterdir()} == {"once\n"}
    written = connection.execute("select text from written order by text").fetchall()
    assert [text for (text,) in written] == ["exits-tx", "raises-tx", "returns-tx"]
    assert supervisor.log.count("ERROR   a child process returned from the step that forked it") == 2
    assert supervisor.log.count("ERROR   a child process of the step raised") == 2
    assert supervisor.log.count("ValueError: of the child") == 2


def test_a_child_of_a_state_factory_runs_no_step(start: Start, stage: Path) -> None:
    run = forking.pids.enqueue()
    start()
    assert run.result(20) == 1
    assert len((stage / "told").read_text().splitlines()) == 1


# Their log


@pytest.mark.parametrize("method", ["fork", "pool"])
def test_log_records_of_a_child_are_forwarded(start: Start, method: str) -> None:
    run = forking.logs.enqueue(method)
    supervisor = start("--until-idle", "--log-format", "json")
    assert supervisor.wait() == 0
    lines = [json.loads(line) for line in supervisor.log.splitlines()]
    heard = [line for line in lines if line.get("run") == str(run.id)]
    two_lines, printed, long, exception = heard
    assert {line["logger"] for line in (two_lines, long, exception)} == {
        "logs.log_in_children" if method == "fork" else "pages"
    }
    assert [line["level"] for line in heard] == ["warning", "info", "info", "error"]
    assert two_lines["message"] == "page 7\nin two lines"
    assert printed["message"] == "printed, "
    assert long["message"].startswith("? \x00 \x1b xxx")
    assert long["message"].endswith("xxxthe end")
    assert exception["message"].startswith("not rendered\nTraceback")
    assert exception["message"].endswith("ValueError: font missing")


@given(
    st.integers(), st.text(), st.text(max_size=6000), st.binary(max_size=20).filter(lambda text: b"\x1e" not in text)
)
def test_a_record_is_one_line_that_is_written_atomically(level: int, logger: str, message: str, before: bytes) -> None:
    line = _line(level, logger, message)
    assert len(line) <= child_record.LONGEST
    assert line.index(b"\n") == len(line) - 1
    found = child_record.find(before + line[:-1])
    assert found is not None
    printed, record = found
    assert printed == before
    assert 0 <= record.level <= 100
    if len(message) < 600 and len(logger) <= 200:
        assert record[1:] == tuple(text.encode(errors="replace").decode() for text in (logger, message))


NO_RECORDS = [b"", b"{}", b"[1]", b'["1","a","b"]', b'[1e9,"a","b"]', b'[999,"a","b"]', b'[1,"a","b",2]', b"\xff"]


@pytest.mark.parametrize("line", [b"plain", *(child_record.MARK + rest for rest in NO_RECORDS)])
def test_a_malformed_record_is_plain_output(line: bytes) -> None:
    assert child_record.find(line) is None


def test_a_record_survives_encoding_and_decoding() -> None:
    record = Record(30, "pages", "page 7\nin two lines")
    assert child_record.find(child_record.encode(record)) == (b"", record)


def _results(connection: Connection, job: str) -> list[Any]:
    query = "select result from underway.runs where job = %s and state = 'succeeded'"
    return [result for (result,) in connection.execute(query, [job])]

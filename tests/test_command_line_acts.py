"""What `underway` changes: cancel, retry, pause, shutdown, dead letters; and what it says when it cannot."""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from apps import states
from apps.states import Order
from db import IN_AN_HOUR, Connection, insert
from harness import Supervisor, eventually
from harness import states as count_states
from underway_command import document, output, refusal, underway, underway_process, widest

from underway import Status, Underway
from underway.cli.supervisors import STILL_THERE

Start = Callable[..., Supervisor]
Bind = Callable[[Underway], Underway]


def dead(connection: Connection, label: str = "pdf-dead", error: str = "it broke") -> str:
    """A failed run with a dead-letter label."""
    run = insert(connection, job="render", step="page")
    connection.execute("select underway.cancel(%s)", [run])
    connection.execute(
        "update underway.finished_run set state = 'failed', dead_letter = %s, error = %s where id = %s",
        [label, error, run],
    )
    return run


def test_cancel_by_id_job_and_key(connection: Connection, database: str) -> None:
    pending, waiting = insert(connection), insert(connection, state="waiting", due_at=IN_AN_HOUR)
    assert output("cancel", pending, database=database) == f"cancelled {pending}\n"
    assert document("cancel", waiting, database=database) == {"id": waiting, "state": "cancelled"}
    assert count_states(connection) == {"cancelled": 2}
    assert f"run {pending} cannot be cancelled: it is cancelled" in refusal("cancel", pending, database=database)

    for key in ("a", "b", "c"):
        insert(connection, job="keyed", unique_key=key)
    insert(connection, job="other")
    assert output("cancel", "--job", "keyed", "--key", "b", database=database) == "cancelled 1 run\n"
    assert output("cancel", "--job", "keyed", "--key", "b", database=database) == "cancelled 0 runs\n"
    assert document("cancel", "--job", "keyed", database=database)["cancelled"] == 2
    assert count_states(connection) == {"cancelled": 5, "pending": 1}
    insert(connection, job="keyed", unique_key="a")
    insert(connection, job="keyed", concurrency_key="a", holds_key=True)
    done = document("cancel", "--job", "keyed", "--concurrency-key", "a", database=database)
    left = {"step": 1}
    assert done == {"job": "keyed", "key": None, "concurrency_key": "a", "cancelled": 1, "without_key": left}
    assert count_states(connection) == {"cancelled": 6, "pending": 2}
    said = underway("cancel", "--job", "keyed", "--concurrency-key", "a", database=database)
    assert said.stdout == "cancelled 0 runs\n"
    assert said.stderr == "note: live runs of keyed without any concurrency key were left out: 1 at step step\n"


def test_cancel_a_run_in_progress(bind: Bind, start_supervisor: Start, database: str, tmp_path: Path) -> None:
    bind(states.app)
    run = states.lasting.enqueue(Order(1))
    supervisor = start_supervisor("states", "--procs", "1", env={"STATES_FOLDER": str(tmp_path)})
    eventually(lambda: run.status() == Status.IN_PROGRESS)
    supervisor.send(signal.SIGSTOP)  # or it may have closed the run before the command has looked at it again
    assert output("cancel", str(run.id), database=database) == f"cancelling {run.id}: its step is being stopped\n"
    supervisor.send(signal.SIGCONT)
    assert run.wait(20) == Status.CANCELLED
    assert f"run {run.id} cannot be cancelled: it is cancelled" in refusal("cancel", str(run.id), database=database)


def test_retry_goes_on_from_the_step_that_failed(bind: Bind, start_supervisor: Start, database: str) -> None:
    bind(states.app)
    refused = states.refusing.enqueue(Order(-1))
    start_supervisor("states", "--procs", "1")
    assert refused.wait(20) == Status.FAILED
    done = document("retry", str(refused.id), "--input", '{"number": 3}', database=database)
    assert done == {"id": str(refused.id), "step": "refuse"}
    assert refused.wait(20) == Status.SUCCEEDED
    assert [attempt.outcome for attempt in refused.attempts()] == ["failed", "succeeded"]
    assert f"run {refused.id} cannot go on: it is succeeded" in refusal("retry", str(refused.id), database=database)


def test_what_cannot_be_retried(connection: Connection, database: str) -> None:
    live, failed = insert(connection), dead(connection)
    assert "cannot go on: it is pending" in refusal("retry", live, database=database)
    cancelled = insert(connection)
    output("cancel", cancelled, database=database)
    for command in ("retry", "redrive"):
        message = refusal(command, cancelled, database=database)
        assert message == f"Error: run {cancelled} was cancelled, and a cancel is final: enqueue its input again\n"
    assert "--input is no JSON" in refusal("retry", failed, "--input", "{number: 1}", database=database, code=2)
    connection.execute("update underway.finished_run set unique_key = 'k'")
    insert(connection, job="render", unique_key="k")
    message = refusal("retry", failed, database=database)
    assert message == f"Error: run {failed} cannot go on: another run of render is live under its key 'k'\n"


def test_a_paused_queue_begins_nothing_until_it_is_resumed(
    bind: Bind, start_supervisor: Start, database: str, connection: Connection
) -> None:
    bind(states.app)
    note = "note: no job, run or supervisor has a queue 'pdf' yet; "
    for text in ("is paused", "was paused already"):
        done = underway("pause", "pdf", database=database)
        assert (done.returncode, done.stdout) == (0, f"pdf {text}\n")
        assert done.stderr == f"{note}there are none; undo it by: underway resume pdf\n"
    assert "pdf    paused" in output("queues", database=database)
    paused, free = states.refusing.enqueue(Order(1)), states.orders.enqueue(Order(1))
    start_supervisor("states", "--procs", "1")
    assert free.wait(20) == Status.SUCCEEDED
    assert paused.status() == Status.PENDING
    assert document("resume", "pdf", database=database) == {
        "queue": "pdf",
        "paused": False,
        "changed": True,
        "known": True,
    }
    assert paused.wait(20) == Status.SUCCEEDED
    assert output("resume", "pdf", database=database) == "pdf was not paused\n"
    assert output("pause", "pdf", database=database) == "pdf is paused\n", "its supervisor has it"
    done = underway("resume", "pfd", database=database)
    assert (done.returncode, done.stdout) == (0, "pfd was not paused\n")
    assert done.stderr == note.replace("pdf", "pfd") + "there are 'default', 'pdf', 'slow'\n"


def test_shut_down_one_supervisor_then_all(start_supervisor: Start, database: str, tmp_path: Path) -> None:
    first, second = start_supervisor("states", "--procs", "1"), start_supervisor("states", "--procs", "1")
    found = eventually(lambda: both if len(both := document("supervisors", database=database)) == 2 else [])
    (one,) = [supervisor["id"] for supervisor in found if supervisor["pid"] == first.pid]
    done = underway("shutdown", one[:8], "--wait", "20", database=database)
    assert (done.returncode, done.stdout) == (0, "1 of 1 supervisor gone\n"), done.stderr
    assert first.wait() == 0
    assert second.process.poll() is None
    assert document("shutdown", "--all", database=database)["gone"] == []
    assert second.wait() == 0
    assert output("shutdown", "--all", "--wait", "5", database=database) == "0 of 0 supervisors gone\n"
    assert "no supervisor has an id that begins with 00" in refusal("shutdown", "00", database=database)


def test_shutdown_does_not_wait_for_one_that_was_killed(connection: Connection, database: str) -> None:
    connection.execute(
        "insert into underway.supervisor (id, host, pid, app, seen_at)"
        " values (%s, 'host', 1, 'app', now() - interval '1 minute')",
        [killed := uuid4()],
    )
    done = underway("shutdown", "--all", "--wait", "60", database=database)
    assert (done.returncode, done.stdout) == (0, "0 of 1 supervisor gone\n")
    why = "it was killed, or cannot reach the database"
    assert done.stderr == f"not waited for: {killed} (silent, seen 1m ago): {why}\n"
    assert document("shutdown", "--all", "--wait", "60", database=database)["silent"] == [str(killed)]


def test_shutdown_waits_no_longer_than_it_is_told(
    bind: Bind, start_supervisor: Start, database: str, tmp_path: Path
) -> None:
    bind(states.app)
    run = states.lasting.enqueue(Order(1))
    supervisor = start_supervisor("states", "--procs", "1", env={"STATES_FOLDER": str(tmp_path)})
    eventually(lambda: run.status() == Status.IN_PROGRESS)
    done = underway("shutdown", "--all", "--wait", "0.5", "--json", database=database)
    assert done.returncode == STILL_THERE
    told = json.loads(done.stdout)
    assert (len(told["asked"]), told["gone"]) == (1, [])
    done = underway("shutdown", "--all", "--wait", "0.1", database=database)
    assert (done.returncode, done.stdout) == (STILL_THERE, "0 of 1 supervisor gone\n")
    assert re.fullmatch(rf"still there after 0.1 s: {told['asked'][0]} \(busy, seen \d+s ago\)\n", done.stderr)
    (tmp_path / "1").touch()
    assert supervisor.wait() == 0
    assert run.status() == Status.SUCCEEDED


def test_dead_letters(connection: Connection, database: str) -> None:
    assert output("dead-letters", database=database) == "no dead letters\n"
    runs = [dead(connection, error=f"Traceback (most recent call last):\nValueError: page {n}") for n in range(4)]
    other = dead(connection, "other")
    text = output("dead-letters", database=database)
    assert [line.split()[:2] for line in text.splitlines()] == [["LABEL", "RUNS"], ["other", "1"], ["pdf-dead", "4"]]
    text = output("dead-letters", "pdf-dead", "--limit", "3", database=database)
    assert widest(text) <= 80
    assert [line.split()[0] for line in text.splitlines()[1:]] == runs[:3]
    assert "ValueError" in text
    assert document("dead-letters", "pdf-dead", database=database)[0]["input"] == {"n": 1}
    nothing = "the label 'nothing'; there are 'other', 'pdf-dead'\n"
    assert output("dead-letters", "nothing", database=database) == f"no run has {nothing}"
    for command in ("redrive", "discard"):
        said = refusal(command, "--label", "nothing", database=database)
        assert said == f"Error: no run and no queue has the dead-letter {nothing.removeprefix('the ')}"

    assert output("redrive", "--label", "pdf-dead", "--limit", "1", database=database) == "redrove 1 run\n"
    assert output("discard", runs[1], database=database) == f"discarded {runs[1]}\n"
    assert f"run {runs[1]} has no dead-letter label" in refusal("discard", runs[1], database=database)
    assert output("redrive", runs[2], "--input", "5", database=database) == f"redrove {runs[2]}\n"
    assert document("discard", "--label", "pdf-dead", database=database) == {"label": "pdf-dead", "discarded": 1}
    live = connection.execute("select id::text, input from underway.run order by id").fetchall()
    assert live == [(runs[0], {"n": 1}), (runs[2], 5)]
    labels = connection.execute("select id::text from underway.finished_run where dead_letter is not null").fetchall()
    assert labels == [(other,)]


def test_as_processes_they_do_it_too(connection: Connection, database: str) -> None:
    live, first, second, third = insert(connection), dead(connection), dead(connection), dead(connection)
    for command, run in {"cancel": live, "retry": first, "redrive": second, "discard": third}.items():
        done = underway_process(command, run, database=database)
        assert (done.returncode, done.stderr) == (0, "")
        assert run in done.stdout
    assert count_states(connection) == {"cancelled": 1, "pending": 2, "failed": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cancel"], "give a RUN, or --job JOB"),
        (["cancel", "1", "--job", "a"], "give a RUN, or --job JOB"),
        (["cancel", "1", "--key", "a"], "a key needs --job JOB"),
        (["cancel", "--job", "a", "--key", "a", "--concurrency-key", "a"], "--key or --concurrency-key, not both"),
        (["shutdown"], "give a SUPERVISOR, or --all"),
        (["shutdown", "1", "--all"], "give a SUPERVISOR, or --all"),
        (["redrive"], "give a RUN, or --label LABEL"),
        (["redrive", "1", "--limit", "2"], "--limit needs --label LABEL"),
        (["redrive", "--label", "a", "--input", "2"], "--input is for one RUN"),
        (["discard", "1", "--label", "a"], "give a RUN, or --label LABEL"),
        (["list", "--state", "done"], "'done' is not one of 'pending'"),
    ],
)
def test_wrong_options(arguments: list[str], message: str) -> None:
    done = underway(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_an_id_in_place_of_a_name(connection: Connection, database: str) -> None:
    """No run has it for a name, and nothing would be done."""
    run = dead(connection)
    for arguments, kind, instead in [
        (["dead-letters", run], "a label", "underway show"),
        (["redrive", "--label", run], "a label", "underway redrive"),
        (["discard", "--label", run], "a label", "underway discard"),
        (["cancel", "--job", run], "a job with such runs", "underway cancel"),
        (["cancel", "--job", run, "--key", "a"], "a job with such runs", "underway cancel"),
        (["quarantine", "--release", "--all", "--job", run], "a job with such runs", "underway quarantine --release"),
    ]:
        message = refusal(*arguments, database=database, code=2)
        assert f"{run} is the id of a run, not {kind}: {instead} {run}\n" in message
    named = insert(connection, job=run)  # as a job may be
    assert output("cancel", "--job", run, database=database) == "cancelled 1 run\n"
    assert "cancelled" in output("show", named, database=database)


def test_a_role_that_may_not(database: str, connection: Connection) -> None:
    """What Postgres says is said to people, not as a traceback."""
    connection.execute("drop role if exists underway_reader")
    connection.execute("create role underway_reader login")
    try:
        url = psycopg.conninfo.make_conninfo(database, user="underway_reader")
        assert "Error: permission denied for schema underway" in refusal("list", database=url)
    finally:
        connection.execute("drop role underway_reader")

"""Commands of `underway` that change something: cancel, retry, pause, shutdown, dead letters; and their errors."""

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
from underway.cli.commands.shutdown import SHUTDOWN_TIMED_OUT

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
    assert f"cannot cancel run {pending}: its state is cancelled" in refusal("cancel", pending, database=database)

    for key in ("a", "b", "c"):
        insert(connection, job="keyed", unique_key=key)
    insert(connection, job="other")
    assert output("cancel", "--job", "keyed", "--key", "b", database=database) == "cancelled 1 run\n"
    assert output("cancel", "--job", "keyed", "--key", "b", database=database) == "cancelled 0 runs\n"
    assert document("cancel", "--job", "keyed", database=database)["cancelled"] == 2
    assert count_states(connection) == {"cancelled": 5, "pending": 1}
    insert(connection, job="keyed", unique_key="a")
    insert(connection, job="keyed", concurrency_key="a", holds_key=True)
    cancelled = document("cancel", "--job", "keyed", "--concurrency-key", "a", database=database)
    left = {"step": 1}
    assert cancelled == {"job": "keyed", "key": None, "concurrency_key": "a", "cancelled": 1, "without_key": left}
    assert count_states(connection) == {"cancelled": 6, "pending": 2}
    done = underway("cancel", "--job", "keyed", "--concurrency-key", "a", database=database)
    assert done.stdout == "cancelled 0 runs\n"
    assert done.stderr == "note: skipped live runs of keyed without a concurrency key: 1 at step step\n"


def test_cancel_a_run_in_progress(bind: Bind, start_supervisor: Start, database: str, tmp_path: Path) -> None:
    bind(states.app)
    run = states.lasting.enqueue(Order(1))
    supervisor = start_supervisor("states", "--procs", "1", env={"STATES_FOLDER": str(tmp_path)})
    eventually(lambda: run.status() == Status.IN_PROGRESS)
    supervisor.send(signal.SIGSTOP)  # or it may finish the run before the command reads its state
    assert output("cancel", str(run.id), database=database) == f"cancelling {run.id}: stopping its step\n"
    supervisor.send(signal.SIGCONT)
    assert run.wait(20) == Status.CANCELLED
    assert f"cannot cancel run {run.id}: its state is cancelled" in refusal("cancel", str(run.id), database=database)


def test_retry_continues_at_the_step_that_failed(bind: Bind, start_supervisor: Start, database: str) -> None:
    bind(states.app)
    refused = states.refusing.enqueue(Order(-1))
    start_supervisor("states", "--procs", "1")
    assert refused.wait(20) == Status.FAILED
    done = document("retry", str(refused.id), "--input", '{"number": 3}', database=database)
    assert done == {"id": str(refused.id), "step": "refuse"}
    assert refused.wait(20) == Status.SUCCEEDED
    assert [attempt.outcome for attempt in refused.attempts()] == ["failed", "succeeded"]
    assert f"cannot retry run {refused.id}: its state is succeeded" in refusal(
        "retry", str(refused.id), database=database
    )


def test_runs_that_cannot_be_retried(connection: Connection, database: str) -> None:
    live, failed = insert(connection), dead(connection)
    assert f"cannot retry run {live}: its state is pending, expected failed" in refusal(
        "retry", live, database=database
    )
    cancelled = insert(connection)
    output("cancel", cancelled, database=database)
    for command in ("retry", "redrive"):
        message = refusal(command, cancelled, database=database)
        assert message == f"Error: run {cancelled} was cancelled, and cancellation is final: enqueue its input again\n"
    assert "--input is not valid JSON" in refusal("retry", failed, "--input", "{number: 1}", database=database, code=2)
    connection.execute("update underway.finished_run set unique_key = 'k'")
    insert(connection, job="render", unique_key="k")
    message = refusal("retry", failed, database=database)
    assert message == f"Error: cannot retry run {failed}: another live run of render has its unique key 'k'\n"


def test_a_paused_queue_starts_no_run_until_it_is_resumed(
    bind: Bind, start_supervisor: Start, database: str, connection: Connection
) -> None:
    bind(states.app)
    note = "note: unknown queue 'pdf': no job, run or supervisor uses it yet; "
    for text in ("paused queue pdf", "queue pdf was already paused"):
        done = underway("pause", "pdf", database=database)
        assert (done.returncode, done.stdout) == (0, f"{text}\n")
        assert done.stderr == f"{note}none exist; to undo, run: underway resume pdf\n"
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
    assert output("resume", "pdf", database=database) == "queue pdf was not paused\n"
    assert output("pause", "pdf", database=database) == "paused queue pdf\n", "its supervisor uses it"
    done = underway("resume", "pfd", database=database)
    assert (done.returncode, done.stdout) == (0, "queue pfd was not paused\n")
    assert done.stderr == note.replace("pdf", "pfd") + "existing: 'default', 'pdf', 'slow'\n"


def test_shut_down_one_supervisor_then_all(start_supervisor: Start, database: str, tmp_path: Path) -> None:
    first, second = start_supervisor("states", "--procs", "1"), start_supervisor("states", "--procs", "1")
    found = eventually(lambda: both if len(both := document("supervisors", database=database)) == 2 else [])
    (one,) = [supervisor["id"] for supervisor in found if supervisor["pid"] == first.pid]
    done = underway("shutdown", one[:8], "--wait", "20", database=database)
    assert (done.returncode, done.stdout) == (0, "1 of 1 supervisor stopped\n"), done.stderr
    assert first.wait() == 0
    assert second.process.poll() is None
    assert document("shutdown", "--all", database=database)["stopped"] == []
    assert second.wait() == 0
    assert output("shutdown", "--all", "--wait", "5", database=database) == "0 of 0 supervisors stopped\n"
    assert "no supervisor ID starts with 00" in refusal("shutdown", "00", database=database)


def test_shutdown_does_not_wait_for_a_killed_supervisor(connection: Connection, database: str) -> None:
    connection.execute(
        "insert into underway.supervisor (id, host, pid, app, seen_at)"
        " values (%s, 'host', 1, 'app', now() - interval '1 minute')",
        [killed := uuid4()],
    )
    done = underway("shutdown", "--all", "--wait", "60", database=database)
    assert (done.returncode, done.stdout) == (0, "0 of 1 supervisor stopped\n")
    reason = "it was killed, or cannot connect to the database"
    assert done.stderr == f"did not wait for {killed} (silent, last seen 1m ago): {reason}\n"
    assert document("shutdown", "--all", "--wait", "60", database=database)["silent"] == [str(killed)]


def test_shutdown_waits_no_longer_than_requested(
    bind: Bind, start_supervisor: Start, database: str, tmp_path: Path
) -> None:
    bind(states.app)
    run = states.lasting.enqueue(Order(1))
    supervisor = start_supervisor("states", "--procs", "1", env={"STATES_FOLDER": str(tmp_path)})
    eventually(lambda: run.status() == Status.IN_PROGRESS)
    done = underway("shutdown", "--all", "--wait", "0.5", "--json", database=database)
    assert done.returncode == SHUTDOWN_TIMED_OUT
    answer = json.loads(done.stdout)
    assert (len(answer["asked"]), answer["stopped"]) == (1, [])
    done = underway("shutdown", "--all", "--wait", "0.1", database=database)
    assert (done.returncode, done.stdout) == (SHUTDOWN_TIMED_OUT, "0 of 1 supervisor stopped\n")
    assert re.fullmatch(rf"still running after 0.1 s: {answer['asked'][0]} \(busy, last seen \d+s ago\)\n", done.stderr)
    (tmp_path / "1").touch()
    assert supervisor.wait() == 0
    assert run.status() == Status.SUCCEEDED


@pytest.mark.parametrize(
    "command",
    [
        ("cancel", "--job", "stats", "--key", "x"),
        ("quarantine", "--release", "--all", "--job", "stats"),
    ],
    ids=" ".join,
)
def test_a_misspelt_job_is_noted(bind: Bind, database: str, command: tuple[str, ...]) -> None:
    assert underway(*command, database=database).stderr == "", "nothing is registered yet"
    bind(states.app).sync()
    known = ", ".join(map(repr, sorted(job.name for job in states.app.manifest().jobs)))
    assert underway(*command, database=database).stderr == f"note: unknown job 'stats'; existing: {known}\n"
    registered = [word if word != "stats" else states.orders.name for word in command]
    assert underway(*registered, database=database).stderr == ""


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
    unknown = "unknown dead-letter label 'nothing'; existing: 'other', 'pdf-dead'\n"
    assert output("dead-letters", "nothing", database=database) == unknown
    for command in ("redrive", "discard"):
        message = refusal(command, "--label", "nothing", database=database)
        assert message == f"Error: {unknown}"

    assert output("redrive", "--label", "pdf-dead", "--limit", "1", database=database) == "redrove 1 run\n"
    assert output("discard", runs[1], database=database) == f"discarded {runs[1]}\n"
    assert f"run {runs[1]} has no dead-letter label" in refusal("discard", runs[1], database=database)
    assert output("redrive", runs[2], "--input", "5", database=database) == f"redrove {runs[2]}\n"
    assert document("discard", "--label", "pdf-dead", database=database) == {"label": "pdf-dead", "discarded": 1}
    live = connection.execute("select id::text, input from underway.run order by id").fetchall()
    assert live == [(runs[0], {"n": 1}), (runs[2], 5)]
    labels = connection.execute("select id::text from underway.finished_run where dead_letter is not null").fetchall()
    assert labels == [(other,)]


def test_the_commands_as_processes(connection: Connection, database: str) -> None:
    live, first, second, third = insert(connection), dead(connection), dead(connection), dead(connection)
    for command, run in {"cancel": live, "retry": first, "redrive": second, "discard": third}.items():
        done = underway_process(command, run, database=database)
        assert (done.returncode, done.stderr) == (0, "")
        assert run in done.stdout
    assert count_states(connection) == {"cancelled": 1, "pending": 2, "failed": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cancel"], "specify either RUN or --job"),
        (["cancel", "1", "--job", "a"], "specify either RUN or --job"),
        (["cancel", "1", "--key", "a"], "--key and --concurrency-key require --job"),
        (
            ["cancel", "--job", "a", "--key", "a", "--concurrency-key", "a"],
            "--key and --concurrency-key are mutually exclusive",
        ),
        (["shutdown"], "specify either SUPERVISOR or --all"),
        (["shutdown", "1", "--all"], "specify either SUPERVISOR or --all"),
        (["redrive"], "specify either RUN or --label"),
        (["redrive", "1", "--limit", "2"], "--limit requires --label"),
        (["redrive", "--label", "a", "--input", "2"], "--input requires RUN"),
        (["discard", "1", "--label", "a"], "specify either RUN or --label"),
        (["list", "--state", "done"], "'done' is not one of 'pending'"),
    ],
)
def test_wrong_options(arguments: list[str], message: str) -> None:
    done = underway(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_run_id_in_place_of_a_name(connection: Connection, database: str) -> None:
    """Without the check, the command would find no run and do nothing."""
    run = dead(connection)
    for arguments, kind, instead in [
        (["dead-letters", run], "a dead-letter label", "underway show"),
        (["redrive", "--label", run], "a dead-letter label", "underway redrive"),
        (["discard", "--label", run], "a dead-letter label", "underway discard"),
        (["cancel", "--job", run], "the name of a job with live runs", "underway cancel"),
        (["cancel", "--job", run, "--key", "a"], "the name of a job with live runs", "underway cancel"),
        (
            ["quarantine", "--release", "--all", "--job", run],
            "the name of a job with quarantined runs",
            "underway quarantine --release",
        ),
    ]:
        message = refusal(*arguments, database=database, code=2)
        assert f"{run} is a run ID, not {kind}; use: {instead} {run}\n" in message
    named = insert(connection, job=run)  # a job may have a UUID as its name
    assert output("cancel", "--job", run, database=database) == "cancelled 1 run\n"
    assert "cancelled" in output("show", named, database=database)


def test_a_role_without_rights(database: str, connection: Connection) -> None:
    """The error of Postgres is printed without a traceback."""
    connection.execute("drop role if exists underway_reader")
    connection.execute("create role underway_reader login")
    try:
        url = psycopg.conninfo.make_conninfo(database, user="underway_reader")
        assert "Error: permission denied for schema underway" in refusal("list", database=url)
    finally:
        connection.execute("drop role underway_reader")

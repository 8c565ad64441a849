"""A run that kills its process is quarantined with evidence, and can be released."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from apps import poison
from cgroups import inside, memory_cgroup
from chaos_report import Count
from harness import Supervisor, eventually, outcomes, states
from underway_command import document, output, refusal, underway, widest

from underway import Quarantined, Status, Underway
from underway.client.run import Run

MIB = 2**20
Bind = Callable[[Underway], Underway]
Start = Callable[..., Supervisor]


def test_evidence_is_kept_and_shown_and_runs_can_be_released(
    bind: Bind, connection: psycopg.Connection[Any], database: str, start_supervisor: Start, tmp_path: Path
) -> None:
    bind(poison.app)
    hows = ["segfault", "exit", "killed"]
    runs = dict(zip(hows, poison.poisoned.enqueue_many(hows), strict=True))
    failed = poison.poisoned.enqueue("raises")
    cured = tmp_path / "cured"
    environment = {"POISON_CURED": str(cured)}
    supervisor = start_supervisor("poison", "--procs", "1", "--until-idle", env=environment)
    assert supervisor.wait() == 0
    assert "attempt crashed, its run is quarantined: the worker died: exit code 7" in supervisor.log
    assert "attempt failed, its run has failed: underway.errors.Fail: only failed" in supervisor.log

    quarantined = {letter.run: letter for letter in poison.app.quarantined()}
    assert quarantined.keys() == set(runs.values()), "but not the run that only failed"
    evidence = {how: quarantined[run] for how, run in runs.items()}
    for how, said in {"segfault": "signal SIGSEGV", "exit": "exit code 7", "killed": "signal SIGKILL"}.items():
        _assert_evidence(evidence[how], f"quarantined after 1 crash: the worker died: {said}\nlast output:\n")
    # The traceback is there although the step had redirected its stderr, and so is the end of 17 KB of output.
    assert "Fatal Python error: Segmentation fault" in evidence["segfault"].error
    assert " in die\n" in evidence["segfault"].error
    assert "Traceback" not in evidence["exit"].error

    segfault = str(runs["segfault"].id)
    listed = output("quarantine", database=database)
    assert segfault in listed
    assert widest(listed) <= 80
    wide = output("quarantine", "--job", "poisoned", "--limit", "9", database=database, columns=160)
    assert {"signal SIGSEGV", "exit code 7", "signal SIGKILL"} <= {line.strip() for line in wide.split("  ")}
    assert output("quarantine", "--job", "other", database=database) == "no quarantined runs\n"
    told = document("quarantine", database=database)
    assert {row["id"]: (row["outcome"], row["crashes"]) for row in told} == {
        str(run.id): ("crashed", 1) for run in runs.values()
    }
    shown = output("show", segfault, database=database)
    assert widest(shown) <= 80
    assert "quarantined   yes; to retry: underway quarantine --release RUN" in shown
    for text in ("signal SIGSEGV", poison.LAST_LINE, "Fatal Python error: Segmentation fault", " MiB"):
        assert text in shown
    attempts = output("attempts", segfault, database=database, columns=100)
    assert "  signal SIGSEGV" in attempts, "not the prefix that all quarantined runs have"
    assert "crashed" in attempts

    assert "is not quarantined: its state is failed" in refusal(
        "quarantine", "--release", str(failed.id), database=database
    )
    cured.touch()
    assert document("quarantine", "--release", segfault, database=database) == {
        "id": segfault,
        "step": "die",
        "released": 1,
    }
    assert connection.execute("select crashes, attempts from underway.run").fetchall() == [(0, 0)]
    done = underway("quarantine", "--release", "--all", "--job", "other", database=database)
    assert (done.returncode, done.stdout) == (0, "released 0 runs\n")
    assert done.stderr.startswith("note: unknown job 'other'; existing: ")
    assert output("quarantine", "--release", "--all", database=database) == "released 2 runs\n"
    assert start_supervisor("poison", "--procs", "1", "--until-idle", env=environment).wait() == 0
    assert {run.result() for run in runs.values()} == {"cured"}
    assert [attempt.outcome for attempt in runs["exit"].attempts()] == ["crashed", "succeeded"]
    assert poison.app.quarantined() == []


def _assert_evidence(letter: Quarantined, begins: str) -> None:
    assert letter.error.startswith(begins), letter.error[:300]
    assert poison.LAST_LINE in letter.error
    assert 7500 < len(letter.error) < 9000, "the last 8 KB"
    assert (letter.outcome, letter.crashes) == ("crashed", 1)
    assert letter.input in ("segfault", "exit", "killed")
    # The step was too short for a sample: this is the kernel's figure for the dead process.
    assert 150 * MIB < (letter.peak_rss or 0) < 400 * MIB
    assert letter.pid is not None


@pytest.mark.parametrize(
    "wrong", [["--release"], ["some"], ["--all"], ["--release", "some", "--all"], ["--release", "some", "--job", "j"]]
)
def test_invalid_arguments_are_refused(database: str, wrong: list[str]) -> None:
    assert "Usage:" in refusal("quarantine", *wrong, database=database, code=2)


def test_a_kill_by_the_kernel_for_memory_is_recognized(
    bind: Bind, connection: psycopg.Connection[Any], start_supervisor: Start, tmp_path: Path
) -> None:
    bind(poison.app)
    neighbours = tmp_path / "neighbours"
    neighbours.mkdir()
    with memory_cgroup(500 * MIB) as group:
        with inside(group):
            supervisor = start_supervisor("poison", "--procs", "2")
        waiting = poison.waiting.enqueue(str(neighbours))
        eventually(lambda: os.listdir(neighbours))
        greedy = poison.devouring.enqueue(1000)
        assert greedy.wait(60) is Status.FAILED
        (attempt,) = greedy.attempts()
        assert attempt.outcome == "out_of_memory"
        killed = "quarantined after 1 crash: the worker died: signal SIGKILL, killed by the kernel for memory"
        assert (attempt.error or "").startswith(killed)
        assert (attempt.peak_rss or 0) > 150 * MIB
        # The other worker is not affected, and its later kill is not attributed to the kernel.
        assert waiting.status() is Status.IN_PROGRESS
        os.kill(int(os.listdir(neighbours)[0]), signal.SIGKILL)
        assert waiting.wait(20) is Status.FAILED
        (attempt,) = waiting.attempts()
        assert attempt.outcome == "crashed"
        assert (attempt.error or "") == "quarantined after 1 crash: the worker died: signal SIGKILL"
        supervisor.end()


@pytest.mark.parametrize(
    "most", [1, pytest.param(2, marks=pytest.mark.chaos), pytest.param(4, marks=pytest.mark.chaos)]
)
def test_a_run_that_kills_its_supervisor_is_found_and_no_innocent_run_is_quarantined(
    bind: Bind, connection: psycopg.Connection[Any], start_supervisor: Start, tmp_path: Path, count: Count, most: int
) -> None:
    bind(poison.app)
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    innocents = poison.innocents.enqueue_many(range(100))
    culprit = poison.culprits.enqueue(str(deaths))
    innocents += poison.innocents.enqueue_many(range(100))

    def start() -> Supervisor:
        return start_supervisor("poison", "--procs", "2", env={"POISON_MOST_CRASHES": str(most)})

    # The first crash is counted for all runs of the supervisor, so it is never the last one.
    all_deaths = max(most, 2)
    supervisor = start()
    for death in range(1, all_deaths + 1):
        assert supervisor.wait() == -signal.SIGKILL
        assert len(os.listdir(deaths)) == death
        # There are always other runs that are lost together with it for the first time.
        innocents += poison.innocents.enqueue_many(range(50))
        supervisor = start()
    assert culprit.wait(20) is Status.FAILED
    # With at most two crashes, each of the others needs an unused worker, which takes half a second each.
    eventually(lambda: states(connection).keys() <= {"succeeded", "failed"}, within=200)
    wrongly = states(connection)["failed"] - 1
    count(supervisors_killed=all_deaths, innocents=len(innocents), innocents_quarantined=wrongly)
    assert states(connection) == {"succeeded": len(innocents), "failed": 1}
    assert len(os.listdir(deaths)) == all_deaths
    told = [(letter.run, letter.crashes, letter.outcome) for letter in poison.app.quarantined()]
    assert told == [(culprit, all_deaths, "lost")]
    lost = connection.execute(
        "select lost, count(*) from (select count(*) as lost from underway.attempt"
        " where outcome = 'lost' and run_id <> %s group by run_id) t group by lost",
        (culprit.id,),
    ).fetchall()
    assert [times for times, _ in lost] == [1], "an innocent run was lost more than once, or none was lost"
    assert sum(_crashes(run, connection) for run in innocents) == lost[0][1]


@pytest.mark.chaos
def test_no_run_is_quarantined_for_what_another_run_left_in_its_worker(
    bind: Bind, connection: psycopg.Connection[Any], start_supervisor: Start, count: Count
) -> None:
    bind(poison.app)
    for number in range(8):
        poison.leaving.enqueue_many(range(5))
        poison.patient.enqueue(number)
    assert start_supervisor("poison", "--procs", "1", "--until-idle").wait(200) == 0
    crashed = outcomes(connection).pop("crashed")
    count(runs=48, crashes=crashed, innocents_quarantined=states(connection).get("failed", 0))
    assert crashed > 8
    assert states(connection) == {"succeeded": 48}


def _crashes(run: Run[Any], connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("select crashes from underway.finished_run where id = %s", (run.id,)).fetchone()
    assert row is not None
    return int(row[0])

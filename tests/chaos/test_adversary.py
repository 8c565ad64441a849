"""Malicious steps: each harms only its own run, and the supervisor keeps working."""

import random
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from apps import adversary
from chaos_settings import SEED
from harness import Supervisor, eventually, outcomes, states

from underway import Underway

Connection = psycopg.Connection[Any]

# How each first attempt ends. Every second attempt succeeds.
CRASHED = """a_child_of_numbers a_hello_of_nonsense a_late_boot_failure a_log_without_level a_next_step_of_one_field
    a_step_that_does_not_exist adopts_no_orphans an_ending_of_its_own another_hello children_without_anything
    its_last_breath_in_the_log keeps_the_output_open seconds_in_words seconds_without_number tokens_in_words
    messages_of_a_supervisor"""
FAILED = """a_result_that_is_no_json a_to_that_was_bent again_after_words cancelled_error generator_exit
    groups_in_groups its_own_cause its_text_exits next_in_a_million_years"""
SUCCEEDED = """half_a_pair_in_the_log half_a_pair_in_the_note kills_the_guardian no_more_files progress_of_nonsense
    results_of_others starts_and_skips_others tells_its_supervisor ten_thousand_threads"""
VERDICTS = {
    **dict.fromkeys(CRASHED.split(), "crashed"),
    **dict.fromkeys(FAILED.split(), "failed"),
    **dict.fromkeys(SUCCEEDED.split(), "succeeded"),
    **dict.fromkeys(["an_interrupt_of_its_own", "an_interrupt_without_text"], "timed_out"),
    "its_text_is_interrupted": "failed",  # a Fail: there is no second attempt
}


@pytest.mark.chaos
def test_every_scenario_is_charged_to_its_own_run(
    bind: Callable[[Underway], Underway], connection: Connection, start_supervisor: Callable[..., Supervisor]
) -> None:
    bind(adversary.app)
    assert VERDICTS.keys() == adversary.scenarios.keys()
    runs, innocents = {}, []
    for how in random.Random(SEED).sample(sorted(VERDICTS), len(VERDICTS)):
        runs[how] = adversary.adversary.enqueue(how)
        innocents += adversary.innocents.enqueue_many(range(3))
    supervisor = start_supervisor("adversary", "--until-idle")
    assert supervisor.wait(240) == 0
    told = {how: run.attempts()[0].outcome for how, run in runs.items()}
    assert told == VERDICTS
    assert states(connection) == {"succeeded": len(runs) + len(innocents) - 1, "failed": 1}
    made = connection.execute(
        "select outcome, attempt_number, count(*) from underway.attempt where run_id = any(%s) group by 1, 2",
        ([run.id for run in innocents],),
    ).fetchall()
    assert made == [("succeeded", 1, len(innocents))]
    assert "Exception in callback" not in supervisor.log


@pytest.mark.chaos
def test_tasks_of_a_worker_stopped_while_idle_go_to_another(
    bind: Callable[[Underway], Underway], connection: Connection, start_supervisor: Callable[..., Supervisor]
) -> None:
    bind(adversary.app)
    supervisor = start_supervisor("adversary")
    supervisor.until("serving")
    eventually(lambda: len(supervisor.workers()) == 3)
    for worker in supervisor.workers():
        worker.suspend()
    adversary.innocents.enqueue_many(range(10))
    eventually(lambda: states(connection) == {"succeeded": 10}, within=45)
    assert outcomes(connection) == {"succeeded": 10}
    assert "did not start its next task within 10 s" in supervisor.log


def test_an_app_that_does_not_import_does_not_wait_for_its_threads(
    database: str, start_supervisor: Callable[..., Supervisor], tmp_path: Any
) -> None:
    app = tmp_path / "threads.py"
    app.write_text("import threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()\n1 / 0\n")
    supervisor = start_supervisor(f"{app}:app")
    assert supervisor.wait(15) == 3
    assert "ZeroDivisionError" in supervisor.log


@pytest.mark.parametrize("weird", ["crashes = 5000, max_crashes = 100000", "attempt_number = 2000000000"])
def test_a_row_with_the_largest_counters_ends_no_supervisor(
    weird: Any,
    bind: Callable[[Underway], Underway],
    connection: Connection,
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(adversary.app)
    adversary.innocents.enqueue(1)
    lapsed = "state = 'in_progress', owner = gen_random_uuid(), lease_expires_at = now() - interval '1 s'"
    connection.execute(f"update underway.run set {lapsed}, {weird}")
    supervisor = start_supervisor("adversary")
    supervisor.until("run taken back")
    run = adversary.innocents.enqueue(2)
    eventually(lambda: run.status() == "succeeded")
    assert supervisor.process.poll() is None

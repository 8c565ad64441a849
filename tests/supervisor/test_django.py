"""Django's connections between tasks: a broken one never reaches the next task."""

from collections.abc import Callable
from pathlib import Path

from apps import djangoing
from harness import Supervisor

from underway import Run, Underway
from underway.testing import using_database
from underway.testing.servers import temporary_cluster

ALIASES = ("default", "kept", "checked")


def test_a_restart_of_postgres_costs_at_most_one_attempt(tmp_path: Path) -> None:
    with temporary_cluster() as cluster:
        url = cluster.url("postgres")
        Underway(url).migrate()
        supervisor = Supervisor(f"{djangoing.__file__}:app", url, tmp_path / "log", "--procs", "1")
        try:
            with using_database(djangoing.app, url):
                (worker,) = {_worker(djangoing.asks.enqueue(alias)) for alias in ALIASES}
            cluster.stop()
            cluster.start()
            with using_database(djangoing.app, url):
                runs = {alias: djangoing.asks.enqueue_many([alias] * 3) for alias in ALIASES}
                assert {_worker(run) for alias in ALIASES for run in runs[alias]} == {worker}
                made = {alias: sorted(len(run.attempts()) for run in runs[alias]) for alias in ALIASES}
            # Only with CONN_MAX_AGE and without health checks does the first query fail.
            assert made == {"default": [1, 1, 1], "kept": [1, 1, 2], "checked": [1, 1, 1]}
        finally:
            supervisor.end()


def test_conn_max_age_is_respected(
    bind: Callable[[Underway], Underway], start_supervisor: Callable[..., Supervisor]
) -> None:
    bind(djangoing.app)
    start_supervisor("djangoing", "--procs", "1")
    sessions = {alias: {djangoing.asks.enqueue(alias).result(20) for _ in range(3)} for alias in ALIASES}
    assert {alias: len(pids) for alias, pids in sessions.items()} == {"default": 3, "kept": 1, "checked": 1}


def test_an_error_while_closing_connections_fails_no_attempt(
    bind: Callable[[Underway], Underway], start_supervisor: Callable[..., Supervisor]
) -> None:
    bind(djangoing.app)
    supervisor = start_supervisor("djangoing", "--procs", "1")
    djangoing.fails_to_close.enqueue().result(20)
    run = djangoing.asks.enqueue("default")
    run.result(20)
    assert len(run.attempts()) == 1
    supervisor.until("WARNING django.db.close_old_connections() failed")


def _worker(run: Run[int]) -> int | None:
    """The worker's PID in the last attempt, if the run has succeeded."""
    run.result(60)
    return run.attempts()[-1].pid

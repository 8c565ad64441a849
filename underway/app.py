"""The registry of jobs, and the door to one database."""

import inspect
import logging
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload
from uuid import UUID

from typing_extensions import TypeVar

from underway.client import dead_letters as letters
from underway.client import quarantine, runs
from underway.client import schedules as scheduling
from underway.definition import options
from underway.definition.context import refuse_inside_step
from underway.definition.job import Job, NewJob
from underway.definition.loading import forbid_during_import
from underway.definition.manifest import Manifest, Queue
from underway.definition.options import RunOptions
from underway.errors import InvalidOption, JobDefinitionError, NoDatabase, SupervisorFailed, UnderwayError

if TYPE_CHECKING:
    import psycopg

    from underway.postgres.pools import Pools

log = logging.getLogger("underway")

R = TypeVar("R")
S = TypeVar("S")
Hook = TypeVar("Hook", bound=Callable[[], object])


class Underway:
    """Your app: the jobs you declare and the database they live in.

    `database` is a connection string or `embedded:`; without it UNDERWAY_DATABASE_URL is used, else DATABASE_URL.
    Nothing is opened before the first use.
    """

    def __init__(self, database: str | None = None) -> None:
        self._database = database
        self._jobs: dict[str, Job[Any, Any, Any]] = {}
        self._queues: dict[str, Queue] = {}
        self._worker_end_hooks: list[Callable[[], object]] = []
        # Keyed by PID: a forked child must not use or close its parent's connections.
        self._pools: dict[int, Pools] = {}
        # The modules that created this app and its jobs, the latest last: `run` makes workers import the latest.
        self._made_in = [_calling_module()]
        self._locks: dict[int, threading.RLock] = {}

    @overload
    def job(self, name: str) -> NewJob: ...
    @overload
    def job(self, name: str, *, state: Callable[[], Awaitable[S]]) -> NewJob[S]: ...
    @overload
    def job(self, name: str, *, state: Callable[[], S]) -> NewJob[S]: ...
    def job(self, name: str, *, state: Callable[[], Any] | None = None) -> NewJob[Any]:
        """Begin a job; its name is what its runs are kept under, so it outlives code.

        `state` makes what each worker keeps as `cx.state` for the job's steps: called at a worker's first task of the
        job, within that task's limits; if it raises, that attempt has failed, and the next task tries again.
        """
        if name in self._jobs:
            raise JobDefinitionError(f"duplicate job name {name!r}: each job of an app needs its own")
        self._made_in.append(_calling_module())
        return NewJob(self, name, state)

    def _declare(self, job: Job[Any, Any, Any]) -> None:
        known = self._jobs.get(job.name)
        if known is not None and known._steps != job._steps[: len(known._steps)]:
            raise JobDefinitionError(f"duplicate job name {job.name!r}: each job of an app needs its own")
        self._jobs[job.name] = job

    def queue(self, name: str, *, dead_letter: str | None = None) -> None:
        """Declare a queue. A run that fails for good in it is labelled with `dead_letter`: see `dead_letters`.

        A queue without such a label needs no declaration. No label is the text of a UUID, which `redrive` and `discard`
        take for the id of a run.
        """
        declared = Queue(
            options.checked_name("queue", name),
            None if dead_letter is None else options.checked_label("dead_letter", dead_letter),
        )
        if self._queues.setdefault(name, declared) != declared:
            raise InvalidOption(f"queue {name!r} is declared twice with different dead_letter labels")

    def on_worker_end(self, hook: Hook) -> Hook:
        """Register a function that each worker calls before it exits, to flush spans and events or to close a state.

        Use it as a decorator or as a plain call. Hooks are called in reverse order of registration. If one raises, the
        error is logged and the next one is called. All hooks together have 5 seconds; then the worker is killed. A
        killed worker (timeout, memory limit, cancel, crash) calls none.
        """
        if not callable(hook) or inspect.iscoroutinefunction(hook):
            raise InvalidOption(
                f"on_worker_end takes a synchronous function without arguments, not {hook!r}: "
                f"no event loop runs when a worker exits; call asyncio.run(...) in the function"
            )
        self._worker_end_hooks.append(hook)
        return hook

    @property
    def jobs(self) -> dict[str, Job[Any, Any, Any]]:
        """The declared jobs by name."""
        return dict(self._jobs)

    @property
    def database(self) -> str | None:
        """The database as named; None if nobody has named one."""
        if self._database is not None:  # "" is a variable that was not set: better no database than another one
            return self._database
        return os.environ.get("UNDERWAY_DATABASE_URL") or os.environ.get("DATABASE_URL") or None

    def manifest(self) -> Manifest:
        """All jobs as pure data. Raises JobDefinitionError if the steps of one do not fit together."""
        jobs = tuple(job.manifest() for job in self._jobs.values())
        return Manifest(jobs, self.database, tuple(self._queues.values()))

    # The database

    @contextmanager
    def connection(self) -> "Iterator[psycopg.Connection[Any]]":
        """A connection from the app's pool in a transaction: committed at the end, rolled back by an exception.

        Opens the pool at first use. Raises NoDatabase, SchemaMissing and its siblings, psycopg.OperationalError.
        """
        with self._connections().held() as connection:
            yield connection

    @contextmanager
    def _own(self) -> "Iterator[psycopg.Connection[Any]]":
        """One of the app's own connections, in autocommit mode."""
        with self._connections().statement() as connection:
            yield connection

    @contextmanager
    def _given_or_own(self, conn: "psycopg.Connection[Any] | None") -> "Iterator[psycopg.Connection[Any]]":
        """The caller's, which stays in its transaction; else one of our own."""
        import psycopg

        if conn is None:
            with self._own() as connection:
                yield connection
        elif isinstance(conn, psycopg.Connection):
            yield conn
        else:
            hint = "; pass an async connection to underway.aio" if isinstance(conn, psycopg.AsyncConnection) else ""
            raise InvalidOption(f"conn must be a psycopg.Connection, not {type(conn).__name__}{hint}")

    def _connections(self) -> "Pools":
        """The pools of this process. Before they are created, a connection checks the URL and the schema version."""
        pid = os.getpid()
        if (pools := self._pools.get(pid)) is not None:
            return pools
        with self._opening():  # otherwise each of several threads could open its own pools
            return self._pools.get(pid) or self._open_pools(pid)

    def _open_pools(self, pid: int) -> "Pools":
        from underway.postgres.pools import Pools

        pools = Pools(self._checked_url())
        # A signal handler that enqueues may have interrupted this thread and created the pools already.
        known = self._pools.setdefault(pid, pools)
        if known is pools:
            # If the interpreter's shutdown closed the pools, they would wait for threads that have already ended: since
            # Python 3.13, a program that had enqueued never exited.
            weakref.finalize(self, _close, self._pools, pid)
        return known

    def _opening(self) -> threading.RLock:
        """This process's lock for opening pools.

        It is reentrant because signal handlers and logging handlers may enqueue. There is one per process: if another
        thread forks while the lock is held, the child's copy is never released.
        """
        return self._locks.setdefault(os.getpid(), threading.RLock())

    def _checked_url(self) -> str:
        """What to connect with, once a connection has shown that the address is right and the schema fits.

        A pool would try again in the background for half a minute; a wrong address should say so now.
        """
        import psycopg

        from underway.postgres import client_queries, migrate
        from underway.postgres import connection as connect

        url = connect.conninfo(self._named_database())
        with psycopg.connect(url) as connection:
            migrate.check(client_queries.applied_migrations(connection))
        return url

    def close(self) -> None:
        """Close the app's connections; they open again when needed."""
        with self._opening():
            _close(self._pools, os.getpid())

    def migrate(self) -> list[str]:
        """Create or update the schema `underway`; returns the names of the migrations applied. Safe to repeat."""
        import psycopg

        from underway.postgres import connection as connect
        from underway.postgres import migrate

        forbid_during_import("migrate")
        with psycopg.connect(connect.conninfo(self._named_database())) as connection:
            return migrate.migrate(connection)

    def sync(self) -> list[str]:
        """Register the jobs for `select underway.enqueue(...)`, and the queues; returns the names of the jobs.

        A supervisor does it too.
        """
        from underway.postgres import admin_queries, client_queries

        forbid_during_import("sync")
        with self.connection() as connection:
            manifest = self.manifest()
            # By name: deployments of code that names them in another order would each wait for the other.
            for job in sorted(manifest.jobs, key=lambda job: job.name):
                client_queries.register_job(connection, job.name, job.steps[0].name, job.steps[0].placement)
            for queue in sorted(manifest.queues, key=lambda queue: queue.name):
                admin_queries.register_queue(connection, queue.name, queue.dead_letter)
        return list(self._jobs)

    def _named_database(self) -> str:
        if self.database is None:
            raise NoDatabase
        return self.database

    # Runs

    def get_run(self, run_id: UUID | str) -> runs.Run[Any]:
        """A handle of a run, from anywhere. Raises RunNotFound, InvalidOption for what is no UUID."""
        from underway.postgres import client_queries

        run_id = options.checked_id(run_id)
        with self._own() as connection:
            name = client_queries.job_of(connection, run_id)
        return self._handle(run_id, runs.known_job(run_id, name))

    def _handle(self, run_id: UUID, job: str) -> runs.Run[Any]:
        """A handle of a run of this job, without a look whether there is one."""
        return runs.Run(self, run_id, self._result_type(job), created=False)

    def _result_type(self, job: str) -> Any:
        """Any for a job that this code does not know."""
        declared = self._jobs.get(job)
        return Any if declared is None else declared.result_type

    def cancel(self, run_id: UUID | str, *, conn: "psycopg.Connection[Any] | None" = None) -> bool:
        """Cancel a run by its id, as Run.cancel does."""
        return runs.Run(self, options.checked_id(run_id), Any).cancel(conn=conn)

    def pause(self, queue: str, *, conn: "psycopg.Connection[Any] | None" = None) -> bool:
        """Let no run of this queue begin, on any supervisor, until `resume`; False if it was paused already.

        Running steps finish. Tasks that were claimed but have not started are released shortly. A queue may be paused
        before anything uses it. If neither this app nor the database knows the queue, a warning is logged that lists
        the existing ones.
        """
        from underway.postgres import admin_queries, inspection

        forbid_during_import("pause")
        options.checked_name("queue", queue)
        with self._given_or_own(conn) as connection:
            if queue not in self._own_queues() and not inspection.knows_queue(connection, queue):
                known = self._own_queues() | inspection.known_queues(connection)
                log.warning(
                    "pausing unknown queue %r: no job, run or supervisor uses it yet; %s",
                    queue,
                    admin_queries.existing(known - {queue}),
                )
            return admin_queries.pause(connection, queue)

    def _own_queues(self) -> set[str]:
        used = {spec.placement.queue for job in self._jobs.values() for _, spec in job._steps}
        return used | self._queues.keys()

    def resume(self, queue: str, *, conn: "psycopg.Connection[Any] | None" = None) -> bool:
        """Undo `pause`; False if the queue was not paused."""
        from underway.postgres import admin_queries

        forbid_during_import("resume")
        with self._given_or_own(conn) as connection:
            return admin_queries.resume(connection, options.checked_name("queue", queue))

    def dead_letters(self, label: str, *, limit: int = 100) -> list[letters.DeadLetter]:
        """The failed runs with this dead-letter label, the oldest first. Raises InvalidOption for the id of a run."""
        return letters.listed(self, label, limit)

    def redrive(
        self,
        run_or_label: runs.Run[Any] | UUID | str,
        *,
        input: Any = letters.UNCHANGED,
        limit: int | None = None,
        conn: "psycopg.Connection[Any] | None" = None,
    ) -> int:
        """Let a failed run go on, at its last step, with all counters at zero; returns how many do.

        A Run or a UUID, also as text, is one run, with a dead-letter label or without, and may be given another `input`
        for that step. Any other text is a label: all runs that have it, or `limit` of them, the oldest first. A run
        stays where it is while another is live under its unique key. Raises PayloadError if the input does not fit the
        step, UnknownJob if this app does not have the step, RunCancelled for a cancelled run: that is final, enqueue
        its input again. Raises InvalidOption for a label that no run has and no queue gives; it names those there are.
        """
        return letters.redrive(self, run_or_label, input, limit, conn)

    def discard(
        self, run_or_label: runs.Run[Any] | UUID | str, *, conn: "psycopg.Connection[Any] | None" = None
    ) -> int:
        """Take the dead-letter label off a run, or off all that have it; returns how many.

        They stay readable as failed runs until their `keep` has passed. Raises InvalidOption for an unknown label, as
        `redrive` does.
        """
        return letters.discard(self, run_or_label, conn)

    def quarantined(self, job: str | None = None, *, limit: int = 100) -> list[quarantine.Quarantined]:
        """Runs whose process died once too often, of one job or all, the newest first. `redrive` releases one."""
        return quarantine.listed(self, job, limit)

    def _cancel_all(self, job: Job[Any, Any, Any], conn: "psycopg.Connection[Any] | None") -> int:
        return runs.cancel_all(self, job.name, conn)

    def _cancel_key(
        self,
        job: Job[Any, Any, Any],
        unique_key: str | None,
        concurrency_key: str | None,
        conn: "psycopg.Connection[Any] | None",
    ) -> int:
        return runs.cancel_key(self, job, unique_key, concurrency_key, conn)

    def _enqueue(
        self, job: Job[Any, Any, R], value: Any, conn: "psycopg.Connection[Any] | None", given: RunOptions
    ) -> runs.Run[R]:
        return runs.enqueue(self, job, value, conn, given)

    def _enqueue_many(
        self, job: Job[Any, Any, R], values: Iterable[Any], conn: "psycopg.Connection[Any] | None", given: RunOptions
    ) -> list[runs.Run[R]]:
        return runs.enqueue_many(self, job, values, conn, given)

    # Schedules

    def schedules(self) -> list[scheduling.Schedule]:
        """All schedules in the database, also those of jobs that this app does not know; by job and name."""
        return scheduling.list_schedules(self)

    def _schedule(
        self,
        job: Job[Any, Any, Any],
        cron: str,
        value: Any,
        name: str,
        catch_up: scheduling.CatchUp,
        overlap: bool,
        conn: "psycopg.Connection[Any] | None",
    ) -> scheduling.Schedule:
        return scheduling.schedule(self, job, cron, value, name, catch_up, overlap, conn)

    def _unschedule(self, job: Job[Any, Any, Any], name: str, conn: "psycopg.Connection[Any] | None") -> bool:
        return scheduling.unschedule(self, job.name, name, conn)

    # Running

    def run(self, procs: int = 2, *, until_idle: bool = False) -> int:
        """Migrate, then run a supervisor with `procs` workers until it is stopped.

        Returns 0 if no steps were running when it stopped, and 1 if the stop interrupted running steps and released
        their runs. Raises SupervisorFailed if the supervisor was killed or did not start, for example because the
        workers cannot import the app.

        The supervisor is a process of its own (`underway-supervisor FILE:NAME`), as in production: nothing is
        supervised in here. With `until_idle` it stops when no run of this app is pending, in progress or waiting for
        a retry. Raises UnderwayError if this app is no global of a module that can be imported again.
        """
        forbid_during_import("run")
        refuse_inside_step("app.run", "a supervisor already runs this step")
        address = self._address()
        self.migrate()
        command = [sys.executable, "-P", "-m", "underway.cli.supervisor", address, "--procs", str(procs)]
        if until_idle:
            command.append("--until-idle")
        code = _run_in_foreground(command)
        if code not in (0, 1):
            raise SupervisorFailed(f"the supervisor of {address} {_ended(code)}; see its log", code)
        return code

    def _address(self) -> str:
        """APP, under which another process finds this very app."""
        for module in self._modules():
            for name, value in list(getattr(module, "__dict__", {}).items()):
                if value is self and name.isidentifier():
                    return f"{_module_source(module)}:{name}"
        raise UnderwayError(
            "app.run() starts a supervisor that imports this app, but it is not a global of any module: "
            "assign it in a module, as in: app = Underway()"
        )

    def _modules(self) -> list[Any]:
        """All modules, first the one that declared a job last: it usually imports the app and the other jobs.

        `__main__` comes last, because it may only import the app.
        """
        main = sys.modules["__main__"]
        makers = [sys.modules[name] for name in reversed(self._made_in) if name in sys.modules]
        others = [module for module in list(sys.modules.values()) if module is not main]
        return [*makers, *others, main]


def _calling_module() -> str:
    """The name of the module that called the caller of this function."""
    return str(sys._getframe(2).f_globals.get("__name__"))


def _close(pools: "dict[int, Pools]", pid: int) -> None:
    if pid == os.getpid() and pid in pools:
        pools.pop(pid).close()


def _module_source(module: Any) -> str:
    """How a new process can import this module from the current folder: its name, or else the path of its file."""
    name, file, spec = module.__name__, getattr(module, "__file__", None), getattr(module, "__spec__", None)
    program = name in ("__main__", "__mp_main__")
    if program and spec is not None:  # python -m package.module
        return str(spec.name)
    if file is None or not Path(file).is_file():
        if program:
            raise UnderwayError(
                "app.run() starts a supervisor that imports this app, but code from a REPL, a notebook or python -c "
                "cannot be imported: put the app and its steps into a file, and import them"
            )
        return str(name)
    known, root = _name_by_file(Path(file).resolve())
    if "." in name and known != name:  # a package without __init__.py
        return str(name)
    return name if root == Path.cwd() and known == name else str(Path(file).resolve())


def _name_by_file(file: Path) -> tuple[str, Path]:
    """The module name of a file, and the import root that contains it."""
    parts = [] if file.stem == "__init__" else [file.stem]
    root = file.parent
    while (root / "__init__.py").exists():
        parts.insert(0, root.name)
        root = root.parent
    return ".".join(parts), root


def _ended(code: int) -> str:
    from underway.supervisor.shutdown import EXIT_CODES, ExitCode

    if code < 0:
        return f"was killed by signal {-code} ({signal.strsignal(-code)})"
    if code not in EXIT_CODES:
        return f"ended with exit code {code}"
    return f"ended with exit code {code}, {ExitCode(code).name.lower().replace('_', '-')}: {EXIT_CODES[ExitCode(code)]}"


def _run_in_foreground(command: list[str]) -> int:
    """Run a command, passing on the signals that ask us to stop, and return its exit code."""
    # A session of its own: Ctrl-C in a terminal reaches us alone, and is passed on once.
    process = subprocess.Popen(command, start_new_session=True)
    # HUP comes when the terminal is closed. The supervisor, which has none, would take it for a request to reload.
    forwarded = {number: number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)}
    forwarded[signal.SIGHUP] = signal.SIGTERM
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {
            number: signal.signal(number, lambda got, _: process.send_signal(forwarded[signal.Signals(got)]))
            for number in forwarded
        }
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

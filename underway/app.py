"""The app: the registry of jobs, and the facade of what a client can ask of its database."""

import inspect
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload
from uuid import UUID

from typing_extensions import TypeVar

from underway.client import dead_letters, operations, quarantine, schedules
from underway.client.current_step import refuse_inside_step
from underway.client.database import Database
from underway.client.dead_letters import UNCHANGED, DeadLetter
from underway.client.job import Job, NewJob
from underway.client.quarantine import Quarantined
from underway.client.registry import Registry
from underway.client.run import Run
from underway.client.schedules import Schedule
from underway.definition import options
from underway.definition.app_import import forbid_during_import
from underway.definition.manifest import Manifest
from underway.errors import InvalidOption, JobDefinitionError, SupervisorFailed, UnderwayError

if TYPE_CHECKING:
    import psycopg

S = TypeVar("S")
Hook = TypeVar("Hook", bound=Callable[[], object])


class Underway:
    """Your app: the jobs you declare and the database they live in.

    `database` is a connection string or `embedded:`; without it UNDERWAY_DATABASE_URL is used, else DATABASE_URL.
    Nothing is opened before the first use.
    """

    def __init__(self, database: str | None = None) -> None:
        self.database = Database(database)
        self.registry: Registry[Job[Any, Any, Any]] = Registry(self.database)
        # The modules that created this app and its jobs, the latest last: `run` makes workers import the latest.
        self._made_in = [_calling_module()]

    # Declarations

    @overload
    def job(self, name: str) -> NewJob: ...
    @overload
    def job(self, name: str, *, state: Callable[[], Awaitable[S]]) -> NewJob[S]: ...
    @overload
    def job(self, name: str, *, state: Callable[[], S]) -> NewJob[S]: ...
    def job(self, name: str, *, state: Callable[[], Any] | None = None) -> NewJob[Any]:
        """Begin a job. Its runs are stored under its name, which must therefore stay the same when the code changes.

        `state` makes the object that each worker keeps as `cx.state` for the job's steps. It is called at a worker's
        first task of the job, within the limits of that task. If it raises, that attempt fails, and the next task tries
        again.
        """
        if name in self.registry.jobs:
            raise JobDefinitionError(f"duplicate job name {name!r}: each job of an app needs its own")
        self._made_in.append(_calling_module())
        return NewJob(self.registry, name, state)

    def queue(self, name: str, *, dead_letter: str | None = None) -> None:
        """Declare a queue. A run that fails for good in it gets the label `dead_letter`: see `dead_letters`.

        A queue without such a label needs no declaration. A label must not be the text of a UUID, which `redrive` and
        `discard` treat as the ID of a run.
        """
        self.registry.declare_queue(name, dead_letter)

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
        self.registry.worker_end_hooks.append(hook)
        return hook

    @property
    def jobs(self) -> dict[str, Job[Any, Any, Any]]:
        """The declared jobs by name."""
        return dict(self.registry.jobs)

    def manifest(self) -> Manifest:
        """All declarations as pure data. Raises JobDefinitionError if the steps of a job do not fit together."""
        return self.registry.manifest()

    # The database

    @contextmanager
    def connection(self) -> "Iterator[psycopg.Connection[Any]]":
        """A connection from the app's pool in a transaction: committed at the end, rolled back by an exception.

        Opens the pool at first use. Raises NoDatabase, SchemaMissing and its siblings, psycopg.OperationalError.
        """
        with self.database.connection() as connection:
            yield connection

    def close(self) -> None:
        """Close the app's connections; they open again when needed."""
        self.database.close()

    def migrate(self) -> list[str]:
        """Create or update the schema `underway`. Returns the names of the migrations applied. Safe to repeat."""
        forbid_during_import("migrate")
        return self.database.migrate()

    def sync(self) -> list[str]:
        """Register the jobs for `select underway.enqueue(...)`, and the queues. Returns the names of the jobs.

        A supervisor does it at its start.
        """
        return self.database.run(operations.register(self.registry))

    # Runs

    def get_run(self, run_id: UUID | str) -> Run[Any]:
        """A handle of a run, from anywhere. Raises RunNotFound, and InvalidOption for an ID that is not a UUID."""
        run_id = options.checked_id(run_id)
        return self._handle(run_id, self.database.run(operations.job_of(run_id)))

    def cancel(self, run_id: UUID | str, *, conn: "psycopg.Connection[Any] | None" = None) -> bool:
        """Cancel a run by its ID, as Run.cancel does."""
        return self.database.run(operations.cancel(options.checked_id(run_id), conn), conn)

    def _handle(self, run_id: UUID, job: str) -> Run[Any]:
        """A handle of a run that is known to exist."""
        return Run(self.database, run_id, self.registry.result_type(job), created=False)

    # Queues

    def pause(self, queue: str, *, conn: "psycopg.Connection[Any] | None" = None) -> bool:
        """Start no run of this queue, on any supervisor, until `resume`. Returns False if it was paused already.

        Running steps finish. Tasks that were claimed but have not started are released shortly. A queue may be paused
        before anything uses it. If neither this app nor the database knows the queue, a warning is logged that lists
        the existing ones.
        """
        return self.database.run(operations.pause(self.registry, queue), conn)

    def resume(self, queue: str, *, conn: "psycopg.Connection[Any] | None" = None) -> bool:
        """Undo `pause`. Returns False if the queue was not paused."""
        return self.database.run(operations.resume(queue), conn)

    # Failed runs

    def dead_letters(self, label: str, *, limit: int = 100) -> list[DeadLetter]:
        """The failed runs with this dead-letter label, the oldest first. Raises InvalidOption for the ID of a run."""
        return self.database.run(dead_letters.dead_letters(label, limit, self._handle))

    def redrive(
        self,
        run_or_label: Run[Any] | UUID | str,
        *,
        input: Any = UNCHANGED,
        limit: int | None = None,
        conn: "psycopg.Connection[Any] | None" = None,
    ) -> int:
        """Continue a failed run at the step that failed, with all counters at zero. Returns the number of runs.

        A Run or a UUID, also as text, is one run, with or without a dead-letter label, and may be given another `input`
        for that step. Any other text is a label: all runs that have it are redriven, or the `limit` oldest. A run stays
        failed while another is live under its unique key. Raises PayloadError if the input does not fit the step,
        UnknownJob if this app does not have the step, and RunCancelled for a cancelled run: a cancel is final, so
        enqueue its input again. Raises InvalidOption for a label that no run has and no queue gives; the message names
        the existing labels.
        """
        return self.database.run(dead_letters.redrive(self.registry, run_or_label, input, limit), conn)

    def discard(self, run_or_label: Run[Any] | UUID | str, *, conn: "psycopg.Connection[Any] | None" = None) -> int:
        """Remove the dead-letter label from a run, or from all runs that have it. Returns the number of runs.

        They stay readable as failed runs until their `keep` has passed. Raises InvalidOption for an unknown label, as
        `redrive` does.
        """
        return self.database.run(dead_letters.discard(self.registry, run_or_label), conn)

    def quarantined(self, job: str | None = None, *, limit: int = 100) -> list[Quarantined]:
        """The runs whose process died too often, of one job or all, the newest first. `redrive` releases one."""
        return self.database.run(quarantine.quarantined(job, limit, self._handle))

    def release_quarantined(
        self, job: str | None = None, *, limit: int | None = None, conn: "psycopg.Connection[Any] | None" = None
    ) -> int:
        """Redrive the quarantined runs of one job or all, or the `limit` oldest. Returns the number of runs."""
        return self.database.run(quarantine.release_quarantined(job, limit), conn)

    # Schedules

    def schedules(self) -> list[Schedule]:
        """All schedules in the database by job and name, including those of jobs that this app does not know."""
        return self.database.run(schedules.schedules())

    # Running

    def run(self, procs: int = 2, *, until_idle: bool = False) -> int:
        """Migrate, then run a supervisor with `procs` workers until it is stopped.

        Returns 0 if no steps were running when it stopped, and 1 if the stop interrupted running steps and released
        their runs. Raises SupervisorFailed if the supervisor was killed or did not start, for example because the
        workers cannot import the app.

        The supervisor is a process of its own (`underway-supervisor FILE:NAME`), as in production. With `until_idle` it
        stops when no run of this app is pending, in progress or waiting for a retry. Raises UnderwayError if this app
        is not a global of a module that can be imported again.
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
        """APP, by which another process finds this app."""
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
    from underway.supervisor.exit_codes import EXIT_CODES, ExitCode

    if code < 0:
        return f"was killed by signal {-code} ({signal.strsignal(-code)})"
    if code not in EXIT_CODES:
        return f"ended with exit code {code}"
    return f"ended with exit code {code}, {ExitCode(code).name.lower().replace('_', '-')}: {EXIT_CODES[ExitCode(code)]}"


def _run_in_foreground(command: list[str]) -> int:
    """Run a command, forward the signals that ask us to stop, and return its exit code."""
    # In a session of its own: Ctrl-C in a terminal reaches this process alone, and is forwarded once.
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

"""Supervisors for apps/chaos.py on a separate server, and checks of how they end."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg
from apps import chaos
from chaos_settings import SEED
from harness import Supervisor
from places import APPS
from psycopg.conninfo import make_conninfo

from underway.guardian.script import MARK
from underway.postgres.embedded import Cluster
from underway.supervisor.exit_codes import ExitCode
from underway.testing.servers import temporary_cluster

OURS = "chaos-supervisor"
DRAIN_SECONDS = 300.0
START_SECONDS = 20.0
STOP_SECONDS = 60.0
# All processes of a supervisor must have ended this long after it. (On a quiet machine a tenth of this is enough.)
BURIAL_SECONDS = 10.0
SAY_SECONDS = 5.0


@contextmanager
def chaos_database() -> Iterator[tuple[Cluster, str]]:
    """A separate server with a migrated database to which the app is bound."""
    with temporary_cluster() as cluster:
        cluster.create_database("chaos")
        chaos.app.database.named = url = cluster.url("chaos")
        try:
            chaos.app.migrate()
            chaos.app.sync()
            yield cluster, url
        finally:
            chaos.app.close()
            chaos.app.database.named = None


@dataclass(eq=False)
class Serving:
    """A supervisor, and the mark by which its processes are found."""

    supervisor: Supervisor
    mark: str
    started_at: float
    expected: set[int] = field(default_factory=set)
    deadline: float = 0.0

    def ended_as_it_may(self, code: int) -> bool:
        if code == -signal.SIGTERM:  # no handler yet
            return "serving" not in self.supervisor.log
        if code == ExitCode.DATABASE_UNREACHABLE:  # only possible at the start
            return time.monotonic() < self.started_at + START_SECONDS
        return code in self.expected


class Fleet:
    """All supervisors that were started, and the faults found in them."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = make_conninfo(url, application_name=OURS)
        self._folder = folder
        self._daemons = folder / "daemons"
        self._daemons.mkdir()
        self._id = str(uuid4())
        self._said = time.monotonic()
        self.serving: list[Serving] = []
        self.leaving: list[Serving] = []
        self.gone: list[Serving] = []
        self.started = 0
        self.faults: list[str] = []
        self.hidden = 0
        self.peak_mib = 0

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        for serving in [*self.serving, *self.leaving]:
            serving.supervisor.end()
        for process in self._daemons_alive():
            send_quietly(process, signal.SIGKILL)

    def start(self, *options: str) -> Serving:
        self.started += 1
        mark = f"{self._id}/{self.started};"
        environment = {"CHAOS_MARK": mark, "CHAOS_FOLDER": str(self._daemons), "CHAOS_SEED": str(SEED)}
        log = self._folder / f"supervisor{self.started}.log"
        address = f"{APPS / 'chaos'}.py:app"
        supervisor = Supervisor(address, self._url, log, "--procs", "2", "--grace", "5", *options, env=environment)
        serving = Serving(supervisor, mark, time.monotonic())
        self.serving.append(serving)
        return serving

    def replace(self, serving: Serving, expected: set[int]) -> None:
        """Expect the supervisor to end with one of these exit codes, and start another."""
        self._leave(serving, expected)
        self.start()

    def _leave(self, serving: Serving, expected: set[int]) -> None:
        self.serving.remove(serving)
        serving.expected = expected
        serving.deadline = time.monotonic() + STOP_SECONDS
        self.leaving.append(serving)

    def look_after(self) -> None:
        """Check the supervisors that have ended."""
        self.peak_mib = max([self.peak_mib, *(serving.supervisor.peak_mib for serving in self.serving)])
        for serving in list(self.serving):
            if serving.supervisor.process.poll() is not None:
                self.replace(serving, set())
        for serving in list(self.leaving):
            code = serving.supervisor.process.poll()
            if code is None and time.monotonic() < serving.deadline:
                continue
            self.leaving.remove(serving)
            self.gone.append(serving)
            serving.deadline = time.monotonic() + BURIAL_SECONDS
            if code is None:
                self._fault(serving, f"did not end in {STOP_SECONDS} s")
                serving.supervisor.end()
            elif not serving.ended_as_it_may(code):
                self._fault(serving, f"ended with {code}, expected {serving.expected}")
        for serving in list(self.gone):
            if time.monotonic() >= serving.deadline:
                self.gone.remove(serving)
                self._bury(serving)

    def _bury(self, serving: Serving) -> None:
        if left := marked(serving.mark):
            self._fault(serving, f"left behind {[(process.pid, _command(process)) for process in left]}")
        for text in ("Traceback (most recent call last)", "was never retrieved", "Exception in callback"):
            if text in serving.supervisor.log:
                self._fault(serving, f"{text!r} in its log", serving.supervisor.log.index(text))

    def _fault(self, serving: Serving, text: str, at: int | None = None) -> None:
        log = serving.supervisor.log
        excerpt = log[-2000:] if at is None else log[max(at - 300, 0) : at + 3000]
        self.faults.append(f"supervisor {serving.mark}: {text}\n{excerpt}")

    def workers(self) -> list[psutil.Process]:
        """Only of supervisors that serve: if its first worker is killed, a supervisor exits at once."""
        workers = []
        for serving in self.serving:
            with suppress(psutil.Error):
                if "serving" in serving.supervisor.log:
                    workers += serving.supervisor.workers()
        return workers

    def stop(self) -> None:
        """Terminate all, and check that no process is left."""
        for serving in list(self.serving):
            serving.supervisor.send(signal.SIGTERM)
            self._leave(serving, {ExitCode.CLEAN, ExitCode.KILLED_WORK})
        self._settle()

    def _settle(self) -> None:
        while self.leaving:
            self.look_after()
            time.sleep(0.05)
        deadline = time.monotonic() + BURIAL_SECONDS
        while marked(f"{self._id}/") and time.monotonic() < deadline:
            time.sleep(0.1)
        for serving in self.gone:
            self._bury(serving)
        self.gone.clear()
        self.hidden = len(self._daemons_alive())

    def finish(self, say: Callable[[], None]) -> None:
        """Let an undisturbed supervisor finish all runs. (--until-idle does not wait for delayed runs.)"""
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline:
            last = self.start("--until-idle")
            while last.supervisor.process.poll() is None and time.monotonic() < deadline:
                self.say_sometimes(say)
                time.sleep(0.1)
            self._leave(last, {ExitCode.CLEAN})
            last.deadline = time.monotonic()
            self._settle()
            with psycopg.connect(self._url) as connection:
                if connection.execute("select 1 from underway.run limit 1").fetchone() is None:
                    return
        self.faults.append(f"not finished within {DRAIN_SECONDS} s")

    def say_sometimes(self, say: Callable[[], None]) -> None:
        if time.monotonic() >= self._said + SAY_SECONDS:
            self._said = time.monotonic()
            say()

    def _daemons_alive(self) -> list[psutil.Process]:
        """Processes of steps that can be attributed only by their parent."""
        alive = []
        for name in os.listdir(self._daemons):
            with suppress(psutil.Error):
                process = psutil.Process(int(name))
                if chaos.DAEMON_SECONDS in process.cmdline():
                    alive.append(process)
        return alive


def marked(mark: str) -> list[psutil.Process]:
    """The workers with this mark, and the processes that they have started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environment = process.environ()
            if MARK in environment and environment.get("CHAOS_MARK", "").startswith(mark):
                found.append(process)
    return found


def _command(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return "?"


def send_quietly(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.Error):
        process.send_signal(number)

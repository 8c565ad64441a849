"""Real supervisors and workers, and functions that wait for events."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import psycopg

T = TypeVar("T")


def eventually(look: Callable[[], T], *, within: float = 20.0, what: str = "") -> T:
    """Call `look` until its answer is truthy, and return that; fail after `within` seconds. The interval grows."""
    began = time.monotonic()
    while not (answer := look()):
        waited = time.monotonic() - began
        assert waited < within, f"not within {within} s: {what or look}"
        time.sleep(min(max(0.01, waited / 10), 0.05))
    return answer


class Supervisor:
    """`underway-supervisor`, started as by a user, with its log in a file."""

    def __init__(self, app: str, database: str, log: Path, *options: str, env: dict[str, str] | None = None) -> None:
        self.log_file = log
        env = dict(env or {})
        if "PYTHONPATH" in env:  # in addition to the tested package's path
            env["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "underway.cli.supervisor", app, *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "UNDERWAY_DATABASE_URL": database, **env},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, within: float = 30.0) -> int:
        """Its exit code."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the supervisor did not end within {within} s:\n{self.log[-3000:]}") from None

    def until(self, text: str, within: float = 20.0) -> None:
        """Wait for a text in its log."""
        eventually(lambda: text in self.log, within=within, what=f"{text!r} in the log:\n{self.log[-3000:]}")

    def workers(self) -> list[psutil.Process]:
        """Its worker processes, the spare included."""
        found = []
        for child in psutil.Process(self.pid).children():
            try:
                if is_worker(child):
                    found.append(child)
            except psutil.Error:
                continue
        return found

    def guardian(self) -> psutil.Process:
        """The guardian process, which kills the workers if the supervisor is gone."""
        (guardian,) = [
            child
            for child in psutil.Process(self.pid).children()
            if child.status() != psutil.STATUS_ZOMBIE and any("guardian/script.py" in word for word in child.cmdline())
        ]
        return guardian

    def kill_with_guardian(self) -> None:
        """Kill the supervisor and its guardian. Both are stopped first, so neither can react to the other's death."""
        both = [psutil.Process(self.pid), self.guardian()]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in both:
                process.send_signal(number)
        self.process.wait()

    @property
    def peak_mib(self) -> int:
        """The peak memory in bytes, as counted by the kernel; 0 if it has ended."""
        with suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) // 1024
        return 0

    def end(self) -> None:
        """For fixtures: kill it in any state, with all its descendants."""
        if self.process.poll() is None:
            below = psutil.Process(self.pid).children(recursive=True)
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                for process in below:
                    if process.is_running():
                        process.kill()


def is_worker(process: psutil.Process) -> bool:
    """Recognized by its command line, which a worker overwrites after its boot."""
    return any(word.startswith(("underway.worker", "underway worker ")) for word in process.cmdline())


def lives(process: psutil.Process) -> bool:
    """Whether it is alive. A zombie is not, nor is another process with the same PID, nor one that exits meanwhile."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def zombies(process: psutil.Process) -> list[psutil.Process]:
    """Its children that have exited and were not waited for."""
    return [child for child in process.children() if child.is_running() and not lives(child)]


def states(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """The number of runs by state."""
    return dict(connection.execute("select state, count(*) from underway.runs group by state").fetchall())


def outcomes(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """The number of attempts by outcome."""
    return dict(connection.execute("select outcome, count(*) from underway.attempt group by outcome").fetchall())

"""The machine on which the figures were measured, and how much other processes used it."""

import os
import platform
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.testbed import Testbed


@dataclass(frozen=True)
class Machine:
    cpu: str
    cores: int
    python: str
    postgres: str
    settings: dict[str, str]
    code: str

    @property
    def line(self) -> str:
        durability = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        software = f"Python {self.python}; PostgreSQL {self.postgres} ({durability})"
        return f"underway {self.code}; {self.cpu}, {self.cores} cores; {software}"


def describe(testbed: Testbed) -> Machine:
    return Machine(
        _cpu_model(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        platform.python_version(),
        str(testbed.value("show server_version")).split()[0],
        {name: str(testbed.value("select current_setting(%s)", name)) for name in ("fsync", "synchronous_commit")},
        _code(),
    )


def _code() -> str:
    """The commit that is measured; in a copy without git, the content of its file COMMIT."""
    root = Path(__file__).parent.parent
    if (note := root / "COMMIT").exists():
        return note.read_text().strip()
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "of an unknown commit"


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class Neighbours:
    """Noisy neighbours: the CPU time that other processes use, or that the hypervisor gives to other guests."""

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed
        self._busy, self._own, self._at = _busy_seconds(), self._own_seconds(), time.monotonic()

    def share(self) -> float:
        """The share of all cores that others have used since construction, 0 to 1."""
        others = (_busy_seconds() - self._busy) - (self._own_seconds() - self._own)
        return max(0.0, others / (time.monotonic() - self._at) / (os.cpu_count() or 1))

    def _own_seconds(self) -> float:
        """CPU time of this process, the server, and their descendants, including exited children of these."""
        me = psutil.Process()
        seconds = 0.0
        for process in [me, *me.children(recursive=True), *self._testbed.postgres_processes()]:
            with suppress(psutil.Error):
                seconds += sum(process.cpu_times()[:4])
        return seconds


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times[:8]) - times.idle - getattr(times, "iowait", 0.0))


def load() -> float:
    return os.getloadavg()[0]

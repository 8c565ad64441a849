"""The CPU time of a measurement, by process: supervisor, workers, Postgres, this process."""

import os
from collections.abc import Iterable

import psutil

from benchmarks.testbed import Supervisor, Testbed


class CpuUsage:
    """CPU seconds since construction, by kind of process."""

    def __init__(self, testbed: Testbed, *supervisors: Supervisor) -> None:
        self._testbed = testbed
        self._supervisors = supervisors
        self._before = self._read()

    def _read(self) -> dict[str, float]:
        postmaster, *backends = self._testbed.postgres_processes()
        return {
            "supervisor": _seconds(supervisor.process for supervisor in self._supervisors),
            "workers": _seconds(worker for supervisor in self._supervisors for worker in supervisor.workers()),
            # A process that has exited, such as an autovacuum worker, counts in the postmaster's child times.
            "postgres": _seconds([postmaster, *backends]) + sum(postmaster.cpu_times()[2:4]),
            "benchmark": _seconds([psutil.Process(os.getpid())]),
        }

    def since_start(self) -> dict[str, float]:
        after = self._read()
        return {name: after[name] - before for name, before in self._before.items()}


def _seconds(processes: Iterable[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        try:
            total += sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    return total

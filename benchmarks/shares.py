"""Where the CPU time of a measurement went: supervisor, workers, Postgres, this process."""

import os
from collections.abc import Iterable

import psutil

from benchmarks.stage import Stage, Supervisor


class Shares:
    """CPU seconds since construction, by whom they were used."""

    def __init__(self, stage: Stage, *supervisors: Supervisor) -> None:
        self._stage = stage
        self._supervisors = supervisors
        self._before = self._read()

    def _read(self) -> dict[str, float]:
        postmaster, *backends = self._stage.postgres_processes()
        return {
            "supervisor": _seconds(supervisor.process for supervisor in self._supervisors),
            "workers": _seconds(worker for supervisor in self._supervisors for worker in supervisor.workers()),
            # What has ended meanwhile (an autovacuum worker) is in the postmaster's own account.
            "postgres": _seconds([postmaster, *backends]) + sum(postmaster.cpu_times()[2:4]),
            "benchmark": _seconds([psutil.Process(os.getpid())]),
        }

    def taken(self) -> dict[str, float]:
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

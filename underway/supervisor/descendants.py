"""What hangs below a supervisor: the keeper, what workers have started, and orphans that nobody else collects."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from logging import getLogger

from underway.supervisor import keeper
from underway.supervisor.worker_process import WorkerProcess

log = getLogger("underway.supervisor")


class Descendants:
    """`mark` begins the marks of all workers; `workers` tells the processes that are no orphans."""

    def __init__(self, mark: str, workers: Callable[[], set[int]]) -> None:
        self._mark = mark
        self._workers = workers
        self._strangers: set[int] = set()
        self._doomed: list[WorkerProcess] = []
        self._dead: list[WorkerProcess] = []
        self._start_keeper()

    def _start_keeper(self) -> None:
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, self._mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def keep_keeper(self) -> None:
        if self._keeper.poll() is not None:
            log.error("the keeper is gone, starting another")
            self._let_go()
            try:
                self._start_keeper()
            except OSError as error:  # a step may have used up what processes we may have; the next tick tries again
                log.error("no keeper can be started: %s", error)

    def dismiss_keeper(self) -> None:
        self._let_go()
        self._keeper.wait()

    def _let_go(self) -> None:
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()

    def disown_strangers(self) -> None:
        """Leave alone what is here by now: what a shell has left to us, as in `sidecar & exec underway-supervisor ...`,
        or, where we are process 1 of a container, an embedded Postgres.
        """
        self._strangers = keeper.children_of(os.getpid()) - self._ours()

    def kill(self, worker: WorkerProcess) -> None:
        """It, and all below it, in the loop's next turn."""
        self._search_soon()
        self._doomed.append(worker)

    def bury(self, worker: WorkerProcess) -> None:
        """It has died. In the loop's next turn kill what it has left behind; then let it report its death."""
        self._search_soon()
        self._dead.append(worker)

    def _search_soon(self) -> None:
        if not self._doomed and not self._dead:
            asyncio.get_running_loop().call_soon(self._search)

    def _search(self) -> None:
        """One look at all processes for all of this turn. (Where 64 workers were killed each by itself, in a busy
        machine, the loop stood still for 40 s: meanwhile all other leases lapsed too.)
        """
        doomed, dead, self._doomed, self._dead = self._doomed, self._dead, [], []
        dead = [worker for worker in dead if worker.collect()]
        try:
            keeper.kill_below(
                [worker.mark for worker in doomed + dead], [worker.pid for worker in doomed if worker.alive]
            )
            if dead:
                self._kill_adopted()
        except OSError as error:  # with every descriptor in use, only what we know by its number is killed
            log.error("what workers have started may survive them: %s", error)
        self.collect_adopted()
        for worker in dead:
            worker.report_death()

    def _kill_adopted(self) -> None:
        """What was re-parented to us: whatever a dead worker left behind that hid from the search.

        Only a dead worker's orphans come to us, since living workers are subreapers themselves.
        """
        if orphans := keeper.children_of(os.getpid()) - self._ours() - self._strangers:
            keeper.kill_below([], orphans)

    def collect_adopted(self) -> None:
        """Collect orphans that have died, or they stay as zombies."""
        ours = self._ours()
        with contextlib.suppress(ChildProcessError):
            while (exited := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if exited.si_pid in ours:
                    return  # its pidfd will tell; it hides the others, who are collected at the next tick
                os.waitpid(exited.si_pid, os.WNOHANG)

    def _ours(self) -> set[int]:
        return self._workers() | {self._keeper.pid}

"""What hangs below a supervisor beside its workers: the keeper, and orphans that nobody else collects."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from logging import getLogger

from underway.supervisor import keeper

log = getLogger("underway.supervisor")


class Descendants:
    """`mark` begins the marks of all workers; `workers` tells the processes that are no orphans."""

    def __init__(self, mark: str, workers: Callable[[], set[int]]) -> None:
        self._mark = mark
        self._workers = workers
        self._strangers: set[int] = set()
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

    def bury_adopted(self) -> None:
        """Kill what was re-parented to us: whatever a dead worker left behind that hid from the search.

        Only a dead worker's orphans come to us, since living workers are subreapers themselves.
        """
        try:
            if orphans := keeper.children_of(os.getpid()) - self._ours() - self._strangers:
                keeper.kill_below(None, orphans)
        except OSError as error:  # no descriptor is left to look with; the next death looks again
            log.error("orphans of dead workers may have been overlooked: %s", error)
        self.collect_adopted()

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

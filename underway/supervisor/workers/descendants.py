"""What hangs below a supervisor: the guardian, what workers have started, and orphans that nobody else collects."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from logging import getLogger

from underway.guardian import script
from underway.supervisor.temporary_folders import Temporary, remove
from underway.supervisor.workers.guardian import GuardianProcess
from underway.supervisor.workers.process import WorkerProcess

log = getLogger("underway.supervisor")


class Descendants:
    """`mark` begins the marks of all workers; `workers` tells the processes that are no orphans."""

    def __init__(self, mark: str, workers: Callable[[], set[int]]) -> None:
        self._workers = workers
        self._strangers: set[int] = set()
        self._killing: list[WorkerProcess] = []
        self._dead: list[WorkerProcess] = []
        self._struck: set[int] = set()  # workers that the guardian has killed, or is about to
        self._spared: set[int] = set()  # resource trackers of dead workers, which have a short time to clean up
        self.temporary = Temporary(mark)
        self.guardian = GuardianProcess(mark, self.temporary.folder, self.temporary.lock)

    def ignore_existing_children(self) -> None:
        """Leave alone what is here by now: what a shell has left to us, as in `sidecar & exec underway-supervisor ...`,
        or, where we are process 1 of a container, an embedded Postgres.
        """
        self._strangers = script.children_of(os.getpid()) - self._ours()

    def kill(self, worker: WorkerProcess) -> None:
        """It, and all below it, in the loop's next turn."""
        self._search_soon()
        self._killing.append(worker)

    def on_exit(self, worker: WorkerProcess) -> None:
        """It has died. In the loop's next turn kill what it has left behind; then let it report its death."""
        self._search_soon()
        self._dead.append(worker)

    def _search_soon(self) -> None:
        if not self._killing and not self._dead:
            asyncio.get_running_loop().call_soon(self._search)

    def _search(self) -> None:
        """One look at all processes for all of this turn. (Where 64 workers were killed each by itself, in a busy
        machine, the loop stood still for 40 s: meanwhile all other leases expired too.)
        """
        killing, dead, self._killing, self._dead = self._killing, self._dead, [], []
        dead = [worker for worker in dead if worker.reap()]
        self._tell_whom_the_guardian_killed(dead)
        spared: set[int] = set()
        try:
            script.kill_below(
                [worker.mark for worker in killing + dead], [worker.pid for worker in killing if worker.alive], spared
            )
            if dead:
                self._kill_adopted(spared)
        except OSError as error:  # with every descriptor in use, only what we know by its number is killed
            log.error("what workers have started may survive them: %s", error)
        self._spare(spared)
        self.reap_adopted()
        for worker in dead:
            remove(worker.temporary)
            worker.report_death()

    def _tell_whom_the_guardian_killed(self, dead: list[WorkerProcess]) -> None:
        """Mark dead workers that the guardian killed. It reports before it kills, so they are all still in our list."""
        if self.guardian.has_struck():
            self._struck |= self._workers()
        for worker in dead:
            if worker.pid in self._struck:
                self._struck.discard(worker.pid)
                if worker.exit_code == -signal.SIGKILL:
                    worker.cut_off()

    # Resource trackers, which may outlive their worker briefly

    def _spare(self, spared: set[int]) -> None:
        if news := spared - self._spared:
            self._spared |= news
            asyncio.get_running_loop().call_later(script.TRACKER_SECONDS, self._end_spared, news)

    def _end_spared(self, spared: set[int]) -> None:
        """Kill trackers that have not exited in time, which may be impostors, and everything they have started."""
        late = spared & self._spared
        self._spared -= late
        try:
            if living := script.living(late):
                script.kill_below([], living)
                self._kill_adopted(set())
        except OSError as error:
            log.error("what a worker has started may survive it: %s", error)

    async def settle(self) -> None:
        """Wait until all spared processes have exited."""
        with contextlib.suppress(OSError):
            while self._spared and script.living(self._spared):
                await asyncio.sleep(0.005)

    def _kill_adopted(self, spared: set[int]) -> None:
        """What was re-parented to us: whatever a dead worker left behind that hid from the search.

        Only a dead worker's orphans come to us, since living workers are subreapers themselves.
        """
        if orphans := script.children_of(os.getpid()) - self._ours() - self._strangers - self._spared - spared:
            script.kill_below([], orphans)

    def reap_adopted(self) -> None:
        """Collect orphans that have died, or they stay as zombies."""
        ours = self._ours()
        with contextlib.suppress(ChildProcessError):
            while (exited := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if exited.si_pid in ours:
                    return  # its pidfd will tell; it hides the others, who are collected at the next tick
                os.waitpid(exited.si_pid, os.WNOHANG)
                self._spared.discard(exited.si_pid)

    def tend(self) -> None:
        """Every second: see that the guardian runs, and collect dead orphans."""
        self.guardian.check()
        self.reap_adopted()

    def dismiss(self) -> None:
        """Dismiss the guardian after all workers have ended."""
        self.guardian.dismiss()
        self.temporary.close()

    def _ours(self) -> set[int]:
        return self._workers() | {self.guardian.pid}

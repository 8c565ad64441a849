"""The processes below a supervisor: the guardian, workers, what workers have started, and adopted orphans."""

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
    """`mark` is the prefix of all workers' marks. `workers` returns the process IDs of the living workers."""

    def __init__(self, mark: str, workers: Callable[[], set[int]]) -> None:
        self._workers = workers
        self._strangers: set[int] = set()
        self._killing: list[WorkerProcess] = []
        self._dead: list[WorkerProcess] = []
        self._struck: set[int] = set()  # workers that the guardian has killed, or is about to
        self._spared: set[int] = set()  # resource trackers of dead workers, which get a short time to clean up
        self.temporary = Temporary(mark)
        self.guardian = GuardianProcess(mark, self.temporary.folder, self.temporary.lock)

    def ignore_existing_children(self) -> None:
        """Never kill the children that exist now: those of the shell before `exec underway-supervisor`, or an embedded
        Postgres if the supervisor is process 1 of a container.
        """
        self._strangers = script.children_of(os.getpid()) - self._ours()

    def kill(self, worker: WorkerProcess) -> None:
        """Kill the worker and everything below it, in the event loop's next turn."""
        self._search_soon()
        self._killing.append(worker)

    def on_exit(self, worker: WorkerProcess) -> None:
        """The worker has died. In the event loop's next turn, kill what it has left behind, then report its death."""
        self._search_soon()
        self._dead.append(worker)

    def _search_soon(self) -> None:
        if not self._killing and not self._dead:
            asyncio.get_running_loop().call_soon(self._search)

    def _search(self) -> None:
        """Search all processes once for all workers of this turn. (When 64 workers were killed one by one on a busy
        machine, the event loop was blocked for 40 s, and all other leases expired too.)
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
        except OSError as error:  # if all descriptors are in use, only the workers themselves are killed
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
        """Kill the orphans that we have adopted: a dead worker's descendants that the search did not find.

        Living workers are subreapers themselves, so all orphans come from dead workers.
        """
        if orphans := script.children_of(os.getpid()) - self._ours() - self._strangers - self._spared - spared:
            script.kill_below([], orphans)

    def reap_adopted(self) -> None:
        """Collect the exit status of dead orphans, which would otherwise stay as zombies."""
        ours = self._ours()
        with contextlib.suppress(ChildProcessError):
            while (exited := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if exited.si_pid in ours:
                    return  # its pidfd reports it; the orphans behind it are collected at the next tick
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

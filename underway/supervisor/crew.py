"""The workers of one supervisor: started, kept at strength with one spare, replaced, stopped."""

import asyncio
import contextlib
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from logging import getLogger

from underway import wire
from underway.manifest import Lane, Manifest, Step
from underway.supervisor import keeper
from underway.supervisor.worker_process import Overseer, WorkerProcess

log = getLogger("underway.supervisor")

BOOT_SECONDS = 60.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 30.0


class Crew:
    """Keeps `size` workers at work and one more booted and idle, which takes a dead worker's place at once."""

    def __init__(self, app: str, size: int, supervisor_id: str) -> None:
        self.size = size
        self.listener: Overseer | None = None  # hears what is said of tasks
        self.active: list[WorkerProcess] = []
        self.spare: WorkerProcess | None = None
        self.booting: list[WorkerProcess] = []
        self.first_manifest: asyncio.Future[Manifest] = asyncio.get_running_loop().create_future()
        self.boot_error = ""
        self.lanes: dict[Lane, Step] = {}
        self._welcome: wire.Welcome | None = None
        self._app = app
        self._supervisor_id = supervisor_id
        self._serial = itertools.count(1)
        self._boot_failures = 0
        self._stopping = False

    @property
    def workers(self) -> Iterator[WorkerProcess]:
        """All that live, at whatever they are."""
        yield from self.active
        yield from self.booting
        if self.spare is not None:
            yield self.spare

    def start(self) -> None:
        self._start_keeper()
        for _ in range(self.size + 1):
            self._boot()

    def welcome(self, message: wire.Welcome) -> None:
        """What every worker is told before its first task."""
        self._welcome = message
        for worker in self.workers:
            if worker.ready:
                worker.send(message)

    def _start_keeper(self) -> None:
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, f"{self._supervisor_id}/"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _boot(self) -> None:
        serial = next(self._serial)
        taken = {worker.slot for worker in self.workers}
        slot = next(number for number in itertools.count(1) if number not in taken)
        # The mark ends in a character that no number has: worker 1 must not be taken for worker 10.
        worker = WorkerProcess(self._app, slot, f"{self._supervisor_id}/{serial};", self)
        self.booting.append(worker)

    # What worker processes report

    def received(self, worker: WorkerProcess, message: wire.Message) -> None:
        if isinstance(message, wire.Hello):
            self._booted(worker, message)
        elif isinstance(message, wire.BootFailed):
            self._say_why(worker, message)
        elif self.listener is not None:
            self.listener.received(worker, message)

    def settled(self) -> None:
        if self.listener is not None:
            self.listener.settled()

    def died(self, worker: WorkerProcess) -> None:
        self._remove(worker)
        self._bury_adopted()
        if self.listener is not None:
            self.listener.died(worker)

    def _booted(self, worker: WorkerProcess, hello: wire.Hello) -> None:
        worker.manifest = Manifest.from_json(hello.payload)
        worker.lanes = dict(worker.manifest.lanes())
        if self._welcome is not None:
            worker.send(self._welcome)
        self.booting.remove(worker)
        self._boot_failures = 0
        if len(self.active) < self.size:
            self.active.append(worker)
        else:
            self.spare = worker
        self._changed()
        if not self.first_manifest.done():
            self.first_manifest.set_result(worker.manifest)
        log.debug("worker booted", extra={"about": {"worker": worker.slot, "pid": worker.pid}})

    def _say_why(self, worker: WorkerProcess, failure: wire.BootFailed) -> None:
        self.boot_error = failure.payload.decode(errors="replace")
        log.error("the app does not import:\n%s", self.boot_error, extra={"about": {"worker": worker.slot}})

    def _remove(self, worker: WorkerProcess) -> None:
        """After its death: the spare takes its place, and a new spare is booted."""
        if worker in self.booting:
            self.booting.remove(worker)
            self._boot_failed(worker)
            return
        if worker is self.spare:
            self.spare = None
        else:
            self.active.remove(worker)
            if self.spare is not None:
                self.active.append(self.spare)
                self.spare = None
        self._changed()
        if not self._stopping:
            self._boot()

    def _boot_failed(self, worker: WorkerProcess) -> None:
        if self._stopping:
            return
        self._boot_failures += 1
        if not self.first_manifest.done():
            evidence = self.boot_error or worker.output.evidence() or "no output"
            self.first_manifest.set_exception(BootError(f"{worker.exit_text}\n{evidence}"))
        pause = min(_FIRST_PAUSE * 2 ** min(self._boot_failures - 1, 10), _LONGEST_PAUSE) * random.uniform(0.8, 1.2)  # noqa: S311
        log.error(
            "worker did not boot (%s), trying again in %.1f s", worker.exit_text, pause,
            extra={"about": {"worker": worker.slot, "pid": worker.pid}},
        )  # fmt: skip
        asyncio.get_running_loop().call_later(pause, self._boot_again)

    def _boot_again(self) -> None:
        if not self._stopping:
            self._boot()

    def _changed(self) -> None:
        lanes: dict[Lane, Step] = {}
        for worker in self.active:
            lanes |= worker.lanes
        self.lanes = lanes

    def kill_slow_boots(self, now: float) -> None:
        """A boot may take its time, but not for ever."""
        for worker in self.booting:
            if now - worker.started_at > BOOT_SECONDS:
                log.error("worker did not boot within %.0f s", BOOT_SECONDS, extra={"about": {"worker": worker.slot}})
                worker.kill()

    def _bury_adopted(self) -> None:
        """Kill what was re-parented to us: whatever a dead worker left behind that hid from the search.

        Only a dead worker's orphans come to us, since living workers are subreapers themselves.
        """
        known = {worker.pid for worker in self.workers} | {self._keeper.pid}
        if strangers := keeper.children_of(os.getpid()) - known:
            keeper.kill_below(None, strangers)
        self.collect_adopted()

    def collect_adopted(self) -> None:
        """Collect orphans that have died, or they stay as zombies."""
        known = {worker.pid for worker in self.workers} | {self._keeper.pid}
        with contextlib.suppress(ChildProcessError):
            while (exited := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if exited.si_pid in known:
                    return  # its pidfd will tell; it hides the others, who are collected at the next tick
                os.waitpid(exited.si_pid, os.WNOHANG)

    def keep_keeper(self) -> None:
        if self._keeper.poll() is not None:
            log.error("the keeper is gone, starting another")
            self._start_keeper()

    # Stopping

    def stop_booting(self) -> None:
        """No more replacements from here on."""
        self._stopping = True

    async def kill_all(self) -> None:
        """Nothing that we started outlives this."""
        self._stopping = True
        for worker in list(self.workers):
            worker.kill()
        while any(True for _ in self.workers):
            await asyncio.sleep(0.002)
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait()


class BootError(Exception):
    """The first worker did not come up; the message holds its traceback or its last output."""

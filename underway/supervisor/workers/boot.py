"""Workers that have been started but have not booted, and slots that wait after a failed boot."""

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from logging import getLogger

from underway.supervisor.workers.process import LAST_WORDS_SECONDS, WorkerProcess
from underway.text import storable
from underway.wire import messages

log = getLogger("underway.supervisor")

BOOT_SECONDS = 60.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 30.0
_LONGEST_TROUBLE = 300


class WorkerBoots:
    """`trouble` is the reason of the latest failed boot, until a worker boots. `start` starts a worker for a slot."""

    def __init__(self, start: Callable[[int], WorkerProcess], rng: random.Random) -> None:
        self._start = start
        self._rng = rng
        self.trouble = ""
        self._booting: dict[WorkerProcess, str] = {}  # with the boot errors that have been reported
        self._pausing: dict[int, asyncio.TimerHandle] = {}
        self._failures: dict[int, int] = {}  # in a row, by slot
        self._stopped = False

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(list(self._booting))

    @property
    def pausing(self) -> set[int]:
        return set(self._pausing)

    def begin(self, slot: int) -> None:
        try:
            worker = self._start(slot)
        except OSError as error:
            self.failed(slot, f"no process can be started: {error}")
            return
        self._booting[worker] = ""
        asyncio.get_running_loop().call_later(BOOT_SECONDS, self._give_up, worker)

    def _give_up(self, worker: WorkerProcess) -> None:
        """Kill a worker that is still booting."""
        if worker in self._booting:
            log.error("worker did not boot within %.0f s", BOOT_SECONDS, extra={"about": {"worker": worker.slot}})
            worker.kill(f"killed: it did not boot within {BOOT_SECONDS:.0f} s", last_words=LAST_WORDS_SECONDS)

    def record_boot_error(self, worker: WorkerProcess, failure: messages.BootFailed, *, aloud: bool) -> None:
        self._booting[worker] = failure.payload.decode(errors="replace").rstrip()
        if aloud:
            log.error("the app does not import:\n%s", self._booting[worker], extra={"about": {"worker": worker.slot}})

    def done(self, worker: WorkerProcess) -> None:
        """The worker has booted."""
        del self._booting[worker]
        self.trouble = ""
        log.debug("worker booted", extra={"about": {"worker": worker.slot, "pid": worker.pid}})

    def died(self, worker: WorkerProcess) -> str:
        """The worker has died while booting. Returns what is known about the reason."""
        said = self._booting.pop(worker) or worker.output.evidence() or "no output"
        return f"{worker.kill_message or worker.exit_text}\n{said}"

    def failed(self, slot: int, why: str) -> None:
        """Try again in 0.1, 0.2, 0.4, ... 30 s. Each slot has its own back-off, and each pause is up to a fifth
        longer or shorter, so that slots that fail together drift apart.
        """
        failures = self._failures[slot] = self._failures.get(slot, 0) + 1
        pause = min(_FIRST_PAUSE * 2.0 ** min(failures - 1, 20), _LONGEST_PAUSE) * self._rng.uniform(0.8, 1.2)
        lines = why.splitlines()
        self.trouble = storable(f"workers do not boot: {lines[-1][:_LONGEST_TROUBLE]}")
        log.error("worker did not boot (%s), trying again in %.1f s", lines[0], pause,
                  extra={"about": {"worker": slot}})  # fmt: skip
        self._pausing[slot] = asyncio.get_running_loop().call_later(pause, self._end_pause, slot)

    def _end_pause(self, slot: int) -> None:
        del self._pausing[slot]
        if not self._stopped:
            self.begin(slot)

    def reset_backoff(self, slot: int) -> None:
        """The last worker of this slot has worked, so the next one may start at once."""
        self._failures.pop(slot, None)

    def end(self) -> None:
        """The app is reloaded: forget failures, and kill booting workers, which have imported old code."""
        for worker in self:
            worker.kill()
        for timer in self._pausing.values():
            timer.cancel()
        self._pausing.clear()
        self._failures.clear()

    def stop(self) -> None:
        """Start no more workers."""
        self._stopped = True


class BootError(Exception):
    """The first worker did not boot. The message has its traceback or its last output. `terminated` says whether it
    died of a SIGTERM, which may have been sent to the supervisor too.
    """

    def __init__(self, message: str, *, terminated: bool) -> None:
        super().__init__(message)
        self.terminated = terminated


def working_folder() -> str | None:
    """The current folder by the name that the shell has for it, with symbolic links; None if that is unknown.

    A deployment changes a link to another folder. By the real path, reloaded workers would import the old release.
    """
    named = os.environ.get("PWD", "")
    try:
        return named if os.path.isabs(named) and os.path.samefile(named, ".") else None
    except OSError:
        return None

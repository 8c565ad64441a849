"""Workers that have been started and not yet said hello, and slots that wait after a failure until they try again."""

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
    """`trouble` says why workers do not come up, for as long as none has since. `start` makes a worker for a slot."""

    def __init__(self, start: Callable[[int], WorkerProcess], rng: random.Random) -> None:
        self._start = start
        self._rng = rng
        self.trouble = ""
        self._booting: dict[WorkerProcess, str] = {}  # with the error of those that have told theirs
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
        """A boot may take its time, but not for ever."""
        if worker in self._booting:
            log.error("worker did not boot within %.0f s", BOOT_SECONDS, extra={"about": {"worker": worker.slot}})
            worker.kill(f"killed: it did not boot within {BOOT_SECONDS:.0f} s", last_words=LAST_WORDS_SECONDS)

    def record_boot_error(self, worker: WorkerProcess, failure: messages.BootFailed, *, aloud: bool) -> None:
        self._booting[worker] = failure.payload.decode(errors="replace").rstrip()
        if aloud:
            log.error("the app does not import:\n%s", self._booting[worker], extra={"about": {"worker": worker.slot}})

    def done(self, worker: WorkerProcess) -> None:
        """It has booted."""
        del self._booting[worker]
        self.trouble = ""
        log.debug("worker booted", extra={"about": {"worker": worker.slot, "pid": worker.pid}})

    def died(self, worker: WorkerProcess) -> str:
        """What is known of why."""
        said = self._booting.pop(worker) or worker.output.evidence() or "no output"
        return f"{worker.kill_message or worker.exit_text}\n{said}"

    def failed(self, slot: int, why: str) -> None:
        """Try again in 0.1, 0.2, 0.4, ... 30 s: for each slot by itself, so that one does not slow down the others,
        and each time a fifth more or less, so that those that fail together drift apart.
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
        """The last worker of this slot was of use: there is no reason to wait with the next."""
        self._failures.pop(slot, None)

    def end(self) -> None:
        """Forget what failed, and end what has begun: it has read code that is no longer wanted."""
        for worker in self:
            worker.kill()
        for timer in self._pausing.values():
            timer.cancel()
        self._pausing.clear()
        self._failures.clear()

    def stop(self) -> None:
        """No more from here on."""
        self._stopped = True


class BootError(Exception):
    """The first worker did not come up; the message holds its traceback or its last output. `terminated` if it died of
    a TERM, which may have been sent to us too.
    """

    def __init__(self, message: str, *, terminated: bool) -> None:
        super().__init__(message)
        self.terminated = terminated


def working_folder() -> str | None:
    """Where workers look for the app: here, by the name that the shell has for it.

    A deployment moves a link to another folder; by the folder itself, reloaded workers would find the old release.
    """
    named = os.environ.get("PWD", "")
    try:
        return named if os.path.isabs(named) and os.path.samefile(named, ".") else None
    except OSError:
        return None

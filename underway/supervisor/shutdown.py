"""What signals mean to a supervisor: how it stops, in which order, with which exit code; and when it reloads."""

import asyncio
import os
import signal
from collections.abc import Callable
from logging import getLogger

log = getLogger("underway.supervisor")

# Of a TERM that was sent to all of us we may hear so much later than of what it has done to our workers.
_TERM_SECONDS = 0.5
# If we have just stood still, the loop finds timers that are due before it finds a signal: that is in its pipe in the
# next turn, and does what it is to do in the one after.
_TERM_TURNS = 3


class StopRequest:
    """What the signals ask for: `draining` after the first TERM or INT, `now` after a second one or QUIT."""

    def __init__(self) -> None:
        self.draining = asyncio.Event()
        self.now = asyncio.Event()
        self._signalled = False

    def listen(self, on_reload: Callable[[], None]) -> None:
        """HUP asks to reload, except in a terminal that has just been closed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain_then_now, number)
        loop.add_signal_handler(signal.SIGQUIT, self._at_once)
        loop.add_signal_handler(signal.SIGHUP, self._reload, on_reload, _has_terminal())
        # They would end us on the spot, whoever sends them: a step to its parent, or hands used to another server.
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF):
            loop.add_signal_handler(number, self._unknown, number)

    @staticmethod
    def end_listening() -> None:
        """Nothing is left to stop. (A second TERM, just after an idle supervisor's last word, took its exit code away:
        a loop that is closed leaves signals to their default.)
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    def drain(self) -> None:
        self.draining.set()

    def _drain_then_now(self, number: signal.Signals) -> None:
        if self._signalled:
            self._at_once()
            return
        self._signalled = True
        if not self.draining.is_set():
            log.info("%s: finishing what runs, claiming nothing more; once more to stop now", number.name)
            self.drain()

    def _reload(self, on_reload: Callable[[], None], had_terminal: bool) -> None:
        if had_terminal and not _has_terminal():
            self._drain_then_now(signal.SIGHUP)
        elif self.draining.is_set():
            log.info("SIGHUP: nothing is reloaded, the supervisor stops")
        else:
            log.info("SIGHUP: reloading, one worker after the other")
            on_reload()

    def _unknown(self, number: signal.Signals) -> None:
        log.warning("%s means nothing here: HUP reloads, TERM and INT stop", number.name)

    def _at_once(self) -> None:
        log.warning("stopping now")
        self.draining.set()
        self.now.set()

    async def settled(self, is_done: Callable[[], bool], seconds: float) -> bool:
        """Wait until it is done, at most so long and not beyond a request to stop now; whether it is done."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not is_done():
            if self.now.is_set() or asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True


async def until_unheard() -> None:
    """Until a TERM of which our workers have died would have been heard, if it had been sent to us too."""
    await asyncio.sleep(_TERM_SECONDS)
    for _ in range(_TERM_TURNS):
        await asyncio.sleep(0)


def _has_terminal() -> bool:
    """Whether Ctrl-C could reach us; no more when the terminal's window was closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True

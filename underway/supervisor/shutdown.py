"""What signals mean to a supervisor: how it stops, with which exit code, and when it reloads."""

import asyncio
import os
import signal
from collections.abc import Callable
from logging import getLogger

log = getLogger("underway.supervisor")

# When SIGTERM goes to the whole group, worker deaths may be seen this long before our own signal.
_TERM_SECONDS = 0.5
# If this process has just been stopped, the event loop finds timers that are due before it finds a signal: it reads the
# signal from its pipe in the next turn, and handles it in the one after.
_TERM_TURNS = 3


class StopRequest:
    """`draining` is set by the first TERM or INT, `now` by the second one or by QUIT."""

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
        # Their default is to end the process. A step may send them to its parent, or an operator by mistake.
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF):
            loop.add_signal_handler(number, self._unknown, number)

    @staticmethod
    def end_listening() -> None:
        """Ignore signals from here on: nothing is left to stop. (A second TERM, just after the last log line of an idle
        supervisor, changed its exit code: a closed event loop leaves signals to their default.)
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

    async def wait_until(self, is_done: Callable[[], bool], seconds: float) -> bool:
        """Wait until it is done, at most this long, and not after a request to stop now. Returns whether it is done."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not is_done():
            if self.now.is_set() or asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True


async def until_unheard() -> None:
    """Wait until a TERM that has killed workers would have arrived here, if it was sent to the whole group."""
    await asyncio.sleep(_TERM_SECONDS)
    for _ in range(_TERM_TURNS):
        await asyncio.sleep(0)


def _has_terminal() -> bool:
    """Whether this process has a terminal; it has none after the terminal's window was closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True

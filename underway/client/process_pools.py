"""The connection pools of one database in each process that uses it."""

import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from underway.postgres.pools import Pools


class ProcessPools:
    """Keyed by PID: a forked child must not use or close its parent's connections."""

    def __init__(self) -> None:
        self._pools: dict[int, Pools] = {}
        self._locks: dict[int, threading.RLock] = {}

    def get(self, conninfo: Callable[[], str]) -> "Pools":
        """The pools of this process; `conninfo` is called if they are not open yet."""
        pid = os.getpid()
        if (pools := self._pools.get(pid)) is not None:
            return pools
        with self.opening():  # otherwise each of several threads could open its own pools
            return self._pools.get(pid) or self._open(pid, conninfo)

    def _open(self, pid: int, conninfo: Callable[[], str]) -> "Pools":
        from underway.postgres.pools import Pools

        pools = Pools(conninfo())
        # A signal handler that enqueues may have interrupted this thread and created the pools already.
        known = self._pools.setdefault(pid, pools)
        if known is pools:
            # If the interpreter's shutdown closed the pools, they would wait for threads that have already ended: since
            # Python 3.13, a program that had enqueued never exited.
            weakref.finalize(self, _close, self._pools, pid)
        return known

    def opening(self) -> threading.RLock:
        """This process's lock for opening and closing pools.

        It is reentrant because signal handlers and logging handlers may enqueue. There is one per process: if another
        thread forks while the lock is held, the child's copy is never released.
        """
        return self._locks.setdefault(os.getpid(), threading.RLock())

    def close(self) -> None:
        """Close this process's pools; `get` opens new ones."""
        with self.opening():
            _close(self._pools, os.getpid())


def _close(pools: "dict[int, Pools]", pid: int) -> None:
    if pid == os.getpid() and pid in pools:
        pools.pop(pid).close()

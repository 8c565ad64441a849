"""Reaps the zombies that this worker has adopted, and leaves its own children to the code that started them.

A worker is a subreaper: an orphaned descendant becomes its child, and remains a zombie after its exit until the worker
waits for it. (A browser left four zombies per page, until the container reached its process limit.)

The kernel reports the current parent of a process, not the one that started it. And waiting for a child consumes the
exit code that its Popen, Process or waitpid may ask for many tasks later. So the few functions with which Python starts
processes are wrapped to record the PIDs. Every other child was adopted.
"""

import _posixsubprocess
import contextlib
import functools
import os
import subprocess
from collections.abc import Callable
from typing import Any

from underway.guardian.script import children_listed

# If the kernel does not provide these lists, zombies remain until their worker is replaced.
_LISTED = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


class Children:
    """Created before the app is imported, because the app may keep references to the functions that are wrapped."""

    def __init__(self) -> None:
        self.started_any = False  # whether Python code in this process has started a child since the last `reap`
        self._started: set[int] = set()  # children started by Python code that may not have been waited for
        self._starting = 0
        if _LISTED:
            self._wrap_all()

    def _wrap_all(self) -> None:
        os.fork, os.forkpty = self._recording(os.fork), self._recording(os.forkpty)
        os.posix_spawn, os.posix_spawnp = self._recording(os.posix_spawn), self._recording(os.posix_spawnp)
        ways: Any = subprocess, _posixsubprocess  # the latter is multiprocessing's
        ways[0]._fork_exec, ways[1].fork_exec = self._recording(ways[0]._fork_exec), self._recording(ways[1].fork_exec)

    def _recording(self, start: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(start)
        def start_and_record(*arguments: Any, **options: Any) -> Any:
            self._starting += 1  # a child may exit before it is recorded
            try:
                result = start(*arguments, **options)
                self._started.add(result[0] if isinstance(result, tuple) else result)
                self.started_any = True
                return result
            finally:
                self._starting -= 1

        return start_and_record

    def reap(self) -> None:
        """Reap adopted zombies between two tasks. Takes a microsecond if no child has ended or been started."""
        if self._starting or not _LISTED:
            return
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            self._started.clear()
        else:
            if ended is not None or self.started_any:
                self._reap_adopted()
        self.started_any = False

    def _reap_adopted(self) -> None:
        children = set(children_listed(os.getpid()))
        self._started &= children  # the PID of a child that was waited for may be reused by an orphan
        for pid in children - self._started:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

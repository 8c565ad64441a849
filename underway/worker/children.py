"""Collects the zombies that this worker has adopted, and leaves its own children to whoever started them.

A worker is a subreaper: what the children of a step leave behind becomes its child, and when it has ended stays a
zombie until it is waited for. (A browser left four for each page, until the container had no process left to give.)

The kernel tells the present parent of a process, not who has started it; and waiting for a child takes its exit code
from the Popen, Process or waitpid that may ask for it many tasks later. So the few functions by which Python starts
processes note what they return. Every other child was adopted.
"""

import _posixsubprocess
import contextlib
import functools
import os
import subprocess
from collections.abc import Callable
from typing import Any

from underway.keeper import children_listed

# Where the kernel keeps no such lists zombies stay until their worker is replaced.
_LISTED = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


class Children:
    """Made before the app is imported, which may take these functions for itself."""

    def __init__(self) -> None:
        self.news = False  # Python code of this process has started one since the last look
        self._started: set[int] = set()  # by such code, and perhaps not waited for
        self._starting = 0
        if _LISTED:
            self._note_all()

    def _note_all(self) -> None:
        os.fork, os.forkpty = self._noting(os.fork), self._noting(os.forkpty)
        os.posix_spawn, os.posix_spawnp = self._noting(os.posix_spawn), self._noting(os.posix_spawnp)
        ways: Any = subprocess, _posixsubprocess  # the latter is multiprocessing's
        ways[0]._fork_exec, ways[1].fork_exec = self._noting(ways[0]._fork_exec), self._noting(ways[1].fork_exec)

    def _noting(self, start: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(start)
        def starting(*arguments: Any, **options: Any) -> Any:
            self._starting += 1  # a child may end before it is noted
            try:
                result = start(*arguments, **options)
                self._started.add(result[0] if isinstance(result, tuple) else result)
                self.news = True
                return result
            finally:
                self._starting -= 1

        return starting

    def collect(self) -> None:
        """Between two tasks; it takes a microsecond if no child has ended and none was started."""
        if self._starting or not _LISTED:
            return
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            self._started.clear()
        else:
            if ended is not None or self.news:
                self._collect_adopted()
        self.news = False

    def _collect_adopted(self) -> None:
        children = set(children_listed(os.getpid()))
        self._started &= children  # the number of one that was waited for may come again, as an orphan's
        for pid in children - self._started:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

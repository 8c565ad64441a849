"""Kills everything below a supervisor, or below one worker of it.

As a script this is the keeper: it holds the other end of a pipe, and when the supervisor is gone, however it went,
it kills whatever the supervisor had started. It runs with the standard library alone, so that it costs little memory
and nothing can break it. What belongs to a worker is found three ways: by the mark in its environment, by session,
and by parent. A child that called setsid keeps the mark; one that cleared its environment too is still found by its
parent, because workers are subreapers.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterable

MARK = "UNDERWAY_SLOT"


def kill_below(mark: str | None, roots: Iterable[int] = ()) -> int:
    """SIGKILL every process whose mark begins with `mark`, these roots, and all below them; returns how many.

    They are stopped first, until a look finds nothing new: a process that forks while it is hunted cannot get ahead.
    """
    frozen: set[int] = set()
    while new := _belonging(mark, set(roots) | frozen) - frozen:
        for pid in new:
            _signal(pid, signal.SIGSTOP)
        frozen |= new
    for pid in frozen:
        _signal(pid, signal.SIGKILL)
    return len(frozen)


def parents() -> dict[int, int]:
    """The parent of every process that is not a zombie."""
    return _processes()[0]


def children_of(pid: int) -> set[int]:
    return {child for child, parent in parents().items() if parent == pid}


def _belonging(mark: str | None, roots: set[int]) -> set[int]:
    parent_of, sessions = _processes()
    found = {pid for pid in parent_of if pid in roots or (mark and _has_mark(pid, mark))}
    # A session is led by a worker or by a descendant of one, so whoever is in it belongs to us.
    led = {pid for pid in found if sessions[pid] == pid}
    while True:
        more = {
            pid for pid, parent in parent_of.items() if pid not in found and (parent in found or sessions[pid] in led)
        }
        if not more:
            return found - {os.getpid()}
        found |= more
        led |= {pid for pid in more if sessions[pid] == pid}


def _processes() -> tuple[dict[int, int], dict[int, int]]:
    """Parent and session of every process that is not a zombie."""
    parents, sessions = {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The name in parentheses may contain anything, also spaces and parentheses.
                    state, parent, _group, session = file.read().rpartition(b")")[2].split(maxsplit=4)[:4]
            except OSError:
                continue
            if state not in (b"Z", b"X"):
                parents[int(name)], sessions[int(name)] = int(parent), int(session)
    return parents, sessions


def _has_mark(pid: int, mark: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = file.read()
    except OSError:
        return False
    return environment.startswith(f"{MARK}={mark}".encode()) or f"\0{MARK}={mark}".encode() in environment


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    # Twice: what was being started while the supervisor died may have got its mark only after the first look.
    while kill_below(sys.argv[1]):
        pass


if __name__ == "__main__":
    main()

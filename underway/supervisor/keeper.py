"""Kills everything below a supervisor, or below some workers of it.

As a script this is the keeper: it holds the other end of a pipe, and when the supervisor is gone, however it went,
it kills whatever the supervisor had started. It runs with the standard library alone, so that it costs little memory
and nothing can break it. What belongs to a worker is found three ways: by the mark in its environment, by session,
and by parent. A child that called setsid keeps the mark; one that cleared its environment too is still found by its
parent, because workers are subreapers.
"""

import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Iterable

MARK = "UNDERWAY_SLOT"
_PAUSE_SECONDS = 0.1
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


def kill_below(marks: Iterable[str], roots: Iterable[int] = ()) -> int:
    """SIGKILL every process whose mark begins with one of `marks`, these roots, and all below them; returns how many.

    They are stopped first, until a look finds nothing new: a process that forks while it is hunted cannot get ahead.
    Raises OSError if the system does not let us look, after it has killed what it knew.
    """
    wanted = tuple(mark.encode() for mark in marks)
    frozen: set[int] = set()
    strangers: set[int] = set()
    try:
        _freeze(roots, frozen)
        # Before the first look, which takes its time where there are thousands, and longer while they take the CPU.
        _freeze([child for root in roots for child in children_listed(root)], frozen)
        while new := _belonging(wanted, frozen, strangers) - frozen:
            _freeze(new, frozen)
    finally:
        for pid in frozen:
            _signal(pid, signal.SIGKILL)
    return len(frozen)


def parents() -> dict[int, int]:
    """The parent of every process that is not a zombie."""
    return _processes()[0]


def children_of(pid: int) -> set[int]:
    return {child for child, parent in parents().items() if parent == pid}


def children_listed(pid: int) -> list[int]:
    """From the kernel's own lists, one for each thread: a hundred times cheaper than a look at all processes.

    Empty also where the kernel keeps no such lists.
    """
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            children += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
    return children


def _freeze(pids: Iterable[int], frozen: set[int]) -> None:
    for pid in pids:
        _signal(pid, signal.SIGSTOP)
        frozen.add(pid)


def _belonging(marks: tuple[bytes, ...], known: set[int], strangers: set[int]) -> set[int]:
    """`strangers` are those that were looked at before: a mark is inherited by fork, and nobody wins it later."""
    parent_of, sessions = _processes()
    kin: dict[int, list[int]] = {}
    for pid, parent in parent_of.items():
        kin.setdefault(parent, []).append(pid)
        # A session is led by a worker or by a descendant of one, so whoever is in it belongs to us.
        kin.setdefault(sessions[pid], []).append(pid)
    found: set[int] = set()
    _add_with_kin(known & parent_of.keys(), kin, found)
    if marks:
        others = parent_of.keys() - found - strangers
        marked = {pid for pid in others if _is_marked(pid, marks)}
        strangers |= others - marked
        _add_with_kin(marked, kin, found)
    return found - {os.getpid()}


def _add_with_kin(pids: Iterable[int], kin: dict[int, list[int]], found: set[int]) -> None:
    """Those, their children, and the sessions they lead, and so on."""
    left = list(pids)
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += kin.get(pid, ())


def _processes() -> tuple[dict[int, int], dict[int, int]]:
    """Parent and session of every process that is not a zombie."""
    parents, sessions = {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            # The name in parentheses may contain anything, also spaces and parentheses.
            fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split(maxsplit=4)
            if fields and fields[0] not in (b"Z", b"X"):
                parents[int(name)], sessions[int(name)] = int(fields[1]), int(fields[3])
    return parents, sessions


def _is_marked(pid: int, marks: tuple[bytes, ...]) -> bool:
    environment = b"\0" + _read(f"/proc/{pid}/environ")
    return any(rest.startswith(marks) for rest in environment.split(f"\0{MARK}=".encode())[1:])


def _read(path: str) -> bytes:
    """Empty if its process has gone, or is none of ours. By hand: file objects take three times as long."""
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDONLY)
        text = b""
        while part := os.read(descriptor, 64 * 1024):
            text += part
        return text
    except OSError as error:
        if error.errno in _NO_DESCRIPTOR:
            raise
        return b""
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    # Twice: what was being started while the supervisor died may have got its mark only after the first look.
    while _any_left(sys.argv[1]):
        pass


def _any_left(mark: str) -> bool:
    """Kill them. For us a system that has no descriptor to give is no reason to stop."""
    try:
        return kill_below([mark]) > 0
    except OSError:
        time.sleep(_PAUSE_SECONDS)
        return True


if __name__ == "__main__":
    main()

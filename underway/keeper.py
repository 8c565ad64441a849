"""Kills everything below a supervisor, or below some workers of it.

As a script this is the keeper: it holds the other end of a pipe, and when the supervisor is gone, however it went,
it kills whatever the supervisor had started. The supervisor tells it until when workers may run without another word;
when that moment passes in silence, the supervisor is stopped or starved, and the keeper kills the workers before others
may take their runs. It runs with the standard library alone, so that it costs little memory and nothing can break it.

What belongs to a worker is found three ways: by the mark in its environment, by session, and by parent. A child that
called setsid keeps the mark; one that cleared its environment too is still found by its parent, because workers are
subreapers. Resource trackers of Python are given a moment: they remove what a killed process has left in /dev/shm.
"""

import contextlib
import errno
import math
import os
import select
import signal
import sys
import time
from collections.abc import Collection, Iterable

MARK = "UNDERWAY_SLOT"
# A resource tracker ends by itself when all who have its pipe are dead.
TRACKER_SECONDS = 2.0
# What the keeper says when it has killed the workers of a supervisor that lives.
STRUCK = b"struck\n"
_PAUSE_SECONDS = 0.1
_SPARED_PAUSE_SECONDS = 0.01
# The clock of a wait stands still while the machine is suspended: so often the clock of leases is read.
_LOOK_SECONDS = 1.0
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # that of underway.lease_clock


def kill_below(marks: Iterable[str], roots: Iterable[int] = (), spared: set[int] | None = None) -> int:
    """SIGKILL every process whose mark begins with one of `marks`, these roots, and all below them; returns how many.

    Resource trackers among them are added to `spared` instead, if it is given: the caller ends them later.
    They are stopped first, until a look finds nothing new: a process that forks while it is hunted cannot get ahead.
    Raises OSError if the system does not let us look, after it has killed what it knew.
    """
    wanted = tuple(mark.encode() for mark in marks)
    frozen: set[int] = set()
    strangers: set[int] = set()
    try:
        _freeze(roots, frozen)
        # Before the first look, which takes its time where there are thousands, and longer while they take the CPU.
        _freeze([child for root in roots for child in children_listed(root)], frozen, spared)
        while new := _belonging(wanted, frozen, strangers) - frozen - (spared or set()):
            _freeze(new, frozen, spared)
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


def living(pids: Collection[int]) -> set[int]:
    """Those that have not ended."""
    return set(pids) & parents().keys() if pids else set()


def _freeze(pids: Iterable[int], frozen: set[int], spared: set[int] | None = None) -> None:
    for pid in pids:
        _signal(pid, signal.SIGSTOP)
        if spared is not None and _tracks_resources(pid):
            _signal(pid, signal.SIGCONT)
            spared.add(pid)
        else:
            frozen.add(pid)


def _tracks_resources(pid: int) -> bool:
    """By its command line, that of multiprocessing's tracker or of joblib's. Any process may call itself so: whoever
    spares one must see to its end.
    """
    return b"resource_tracker import main" in _read(f"/proc/{pid}/cmdline")


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
    mark, folder = sys.argv[1:]
    _watch(mark)
    _kill_all(mark)
    if folder:
        import shutil  # a megabyte that a supervisor at work does without

        shutil.rmtree(folder, ignore_errors=True)


def _watch(mark: str) -> None:
    """Until the supervisor is gone. Each line of it is the moment at which the first lease lapses, or "inf"."""
    os.set_blocking(0, False)
    ready = select.poll()
    ready.register(0, select.POLLIN)
    lapses_at, text = math.inf, b""
    while True:
        left = lapses_at - time.clock_gettime(_CLOCK)
        if ready.poll(None if left == math.inf else 1000 * max(0.0, min(left, _LOOK_SECONDS))):
            read = os.read(0, 4096)
            if not read:
                return
            *lines, text = (text + read).split(b"\n")
            lapses_at = float(lines[-1]) if lines else lapses_at
        elif left <= 0:  # judged only when all that was written has been read: we may have been stopped ourselves
            _strike(mark)
            lapses_at = math.inf


def _strike(mark: str) -> None:
    """Kill the workers of a supervisor that has not been heard of in time, and say so before it can see their deaths.

    Once: by a second look those would be killed that it starts as soon as it goes on.
    """
    spared: set[int] = set()
    with contextlib.suppress(OSError):
        os.write(1, STRUCK)
    with contextlib.suppress(OSError):
        kill_below([mark], spared=spared)
    _let_finish(spared)
    with contextlib.suppress(OSError):
        kill_below([], spared & living(spared))


def _kill_all(mark: str) -> None:
    # Twice: what was being started while the supervisor died may have got its mark only after the first look.
    spared: set[int] = set()
    while _any_left(mark, spared):
        pass
    _let_finish(spared)
    while _any_left(mark):
        pass


def _let_finish(spared: set[int]) -> None:
    deadline = time.monotonic() + TRACKER_SECONDS
    with contextlib.suppress(OSError):
        while living(spared) and time.monotonic() < deadline:
            time.sleep(_SPARED_PAUSE_SECONDS)


def _any_left(mark: str, spared: set[int] | None = None) -> bool:
    """Kill them. For us a system that has no descriptor to give is no reason to stop."""
    try:
        return kill_below([mark], spared=spared) > 0
    except OSError:
        time.sleep(_PAUSE_SECONDS)
        return True


if __name__ == "__main__":
    main()

"""Kills all processes below a supervisor, or below some of its workers.

Run as a script, this is the guardian. It holds the other end of a pipe: when the supervisor has died, for whatever
reason, the guardian kills all processes that the supervisor has started. The supervisor sends it a deadline until which
the workers may run. If the deadline passes without a new one, the supervisor is stopped or starved of CPU, and the
guardian kills the workers before other supervisors may take their runs. It uses only the standard library, to save
memory and to be robust.

The processes of a worker are found in three ways: by the mark in their environment, by session, and by parent. A child
that called setsid keeps the mark. A child that cleared its environment too is still found by its parent, because
workers are subreapers. Python's resource trackers get extra time to remove what a killed process has left in /dev/shm.
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
# A resource tracker exits by itself when all processes that hold its pipe are dead.
TRACKER_SECONDS = 2.0
# The guardian's message that it kills the workers of a supervisor that still lives.
KILLING_WORKERS = b"killing workers\n"
_PAUSE_SECONDS = 0.1
_SPARED_PAUSE_SECONDS = 0.01
# poll() does not count the time during which the machine is suspended, so the lease clock is read at this interval.
_CLOCK_SECONDS = 1.0
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # see lease_clock


def kill_below(marks: Iterable[str], roots: Iterable[int] = (), spared: set[int] | None = None) -> int:
    """SIGKILL every process whose mark begins with one of `marks`, these roots, and all below them; returns how many.

    If `spared` is given, resource trackers are added to it instead of being killed; the caller must end them later.
    The processes are stopped first, until a search finds no new one, so that none can escape by forking. Raises OSError
    if the system does not let us search; the processes found before are killed.
    """
    wanted = tuple(mark.encode() for mark in marks)
    stopped: set[int] = set()
    unmarked: set[int] = set()
    try:
        _stop(roots, stopped)
        # Before the first search, which takes long if there are thousands of processes, and longer while they run.
        _stop([child for root in roots for child in children_listed(root)], stopped, spared)
        while new := _find_below(wanted, stopped, unmarked) - stopped - (spared or set()):
            _stop(new, stopped, spared)
    finally:
        for pid in stopped:
            _signal(pid, signal.SIGKILL)
    return len(stopped)


def parents() -> dict[int, int]:
    """The parent of every process that is not a zombie."""
    return _processes()[0]


def children_of(pid: int) -> set[int]:
    return {child for child, parent in parents().items() if parent == pid}


def children_listed(pid: int) -> list[int]:
    """The children of a process from the kernel's lists, one per thread: a hundred times cheaper than all processes.

    Empty if the kernel does not provide these lists.
    """
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            children += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
    return children


def living(pids: Collection[int]) -> set[int]:
    """The processes that still exist and are not zombies."""
    return set(pids) & parents().keys() if pids else set()


def _stop(pids: Iterable[int], stopped: set[int], spared: set[int] | None = None) -> None:
    for pid in pids:
        _signal(pid, signal.SIGSTOP)
        if spared is not None and _tracks_resources(pid):
            _signal(pid, signal.SIGCONT)
            spared.add(pid)
        else:
            stopped.add(pid)


def _tracks_resources(pid: int) -> bool:
    """Whether its command line is that of multiprocessing's or joblib's resource tracker.

    Any process can imitate this command line, so a caller that spares the process must still end it later.
    """
    return b"resource_tracker import main" in _read(f"/proc/{pid}/cmdline")


def _find_below(marks: tuple[bytes, ...], known: set[int], unmarked: set[int]) -> set[int]:
    """`unmarked` are processes that need not be inspected again: a process inherits its mark or never has one."""
    parent_of, sessions = _processes()
    related: dict[int, list[int]] = {}
    for pid, parent in parent_of.items():
        related.setdefault(parent, []).append(pid)
        # The leader of a session is a worker or a descendant of one, so all members of the session are below us.
        related.setdefault(sessions[pid], []).append(pid)
    found: set[int] = set()
    _add_with_related(known & parent_of.keys(), related, found)
    if marks:
        others = parent_of.keys() - found - unmarked
        marked = {pid for pid in others if _is_marked(pid, marks)}
        unmarked |= others - marked
        _add_with_related(marked, related, found)
    return found - {os.getpid()}


def _add_with_related(pids: Iterable[int], related: dict[int, list[int]], found: set[int]) -> None:
    """Add these processes, their children and the members of their sessions, recursively."""
    left = list(pids)
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += related.get(pid, ())


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
    """Empty if the process has exited or cannot be read. By os.read, because file objects take three times as long."""
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
        import shutil  # imported late: it takes a megabyte

        shutil.rmtree(folder, ignore_errors=True)


def _watch(mark: str) -> None:
    """Return when the supervisor is gone. Each line it sends is the time at which the first lease expires, or "inf"."""
    os.set_blocking(0, False)
    ready = select.poll()
    ready.register(0, select.POLLIN)
    expires_at, text = math.inf, b""
    while True:
        left = expires_at - time.clock_gettime(CLOCK)
        if ready.poll(None if left == math.inf else 1000 * max(0.0, min(left, _CLOCK_SECONDS))):
            read = os.read(0, 4096)
            if not read:
                return
            *lines, text = (text + read).split(b"\n")
            expires_at = float(lines[-1]) if lines else expires_at
        elif left <= 0:  # only after the pipe has been drained: the guardian itself may have been stopped
            _kill_workers(mark)
            expires_at = math.inf


def _kill_workers(mark: str) -> None:
    """Kill the workers of a supervisor that has missed its deadline, and report it before it can see their deaths.

    It searches only once: a second search could find workers that the supervisor starts when it resumes.
    """
    spared: set[int] = set()
    with contextlib.suppress(OSError):
        os.write(1, KILLING_WORKERS)
    with contextlib.suppress(OSError):
        kill_below([mark], spared=spared)
    _await_trackers(spared)
    with contextlib.suppress(OSError):
        kill_below([], spared & living(spared))


def _kill_all(mark: str) -> None:
    # Until a search finds none: a process that was being started when the supervisor died may get its mark only after
    # the first search.
    spared: set[int] = set()
    while _kill_found(mark, spared):
        pass
    _await_trackers(spared)
    while _kill_found(mark):
        pass


def _await_trackers(spared: set[int]) -> None:
    deadline = time.monotonic() + TRACKER_SECONDS
    with contextlib.suppress(OSError):
        while living(spared) and time.monotonic() < deadline:
            time.sleep(_SPARED_PAUSE_SECONDS)


def _kill_found(mark: str, spared: set[int] | None = None) -> bool:
    """Kill all processes found; returns whether there may be more. If the system has no file descriptors, try again."""
    try:
        return kill_below([mark], spared=spared) > 0
    except OSError:
        time.sleep(_PAUSE_SECONDS)
        return True


if __name__ == "__main__":
    main()

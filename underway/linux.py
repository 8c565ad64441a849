"""What Linux offers a process and Python does not."""

import ctypes
import sys
from typing import NamedTuple

# Fields of /proc/PID/stat, counted from the one after the name. See proc_pid_stat(5).
_STATE, _FLAGS = 0, 6
_ARG_START, _ARG_END = 45, 46
_PF_EXITING = 0x4


class ProcessOption(NamedTuple):
    """An integer that prctl(2) sets and gets."""

    set_by: int
    get_by: int

    def set(self, value: int) -> None:
        ctypes.CDLL(None).prctl(self.set_by, value, 0, 0, 0)

    def get(self) -> int:
        value = ctypes.c_int()
        ctypes.CDLL(None).prctl(self.get_by, ctypes.byref(value), 0, 0, 0)
        return value.value


PARENT_DEATH_SIGNAL = ProcessOption(1, 2)
CHILD_SUBREAPER = ProcessOption(36, 37)


def become_subreaper() -> bool:
    """Adopt orphaned descendants, so that they can be found by their parent. False if the system is not Linux."""
    if sys.platform != "linux":
        return False
    CHILD_SUBREAPER.set(1)
    return True


def request_parent_death_signal(number: int) -> None:
    """Have the kernel send this signal when the parent dies. Does nothing if the system is not Linux."""
    if sys.platform == "linux":
        PARENT_DEATH_SIGNAL.set(number)


def is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger has stopped the process."""
    try:
        return _stat(pid)[_STATE] in (b"T", b"t")
    except (OSError, IndexError):
        return False


def is_exiting(pid: int) -> bool:
    """Whether the kernel is already cleaning up after the process: then its exit code or signal is decided."""
    try:
        return bool(int(_stat(pid)[_FLAGS]) & _PF_EXITING)
    except (OSError, IndexError):
        return False


def command_line_area() -> tuple[int, int]:
    """The addresses between which the kernel reads this process' command line.

    Raises OSError or ValueError if the system does not say.
    """
    fields = _stat("self")
    if len(fields) <= _ARG_END:
        raise ValueError("the system does not say where the command line is")
    return int(fields[_ARG_START]), int(fields[_ARG_END])


def _stat(pid: int | str) -> list[bytes]:
    """The fields of /proc/PID/stat after the name, which may contain spaces and parentheses."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()

"""What Linux offers a process and Python does not."""

import ctypes
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Where the kernel reads the command line of a process: fields of /proc/self/stat, counted from the one after the name.
_ARG_START, _ARG_END = 45, 46


def become_subreaper() -> bool:
    """Adopt orphaned descendants, so that they can be found by their parent. False if the system is not Linux."""
    if sys.platform != "linux":
        return False
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return True


def request_parent_death_signal(number: int) -> None:
    """Have the kernel send this signal when the parent dies. Does nothing if the system is not Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def command_line_area() -> tuple[int, int]:
    """The addresses between which the kernel reads this process' command line.

    Raises OSError or ValueError if the system does not say.
    """
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    if len(fields) <= _ARG_END:
        raise ValueError("the system does not say where the command line is")
    return int(fields[_ARG_START]), int(fields[_ARG_END])

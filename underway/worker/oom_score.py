"""Whom the kernel kills when memory is short: a worker, not what keeps it and others going."""

import contextlib

_MORE_THAN_OTHERS = 500
_MOST = 1000
_FILE = "/proc/self/oom_score_adj"


def prefer_as_oom_victim() -> None:
    """Have the kernel take this worker, and what it starts, before its supervisor, the guardian, or a Postgres nearby.

    By as much as half of the memory there is. A step can take that back; only as root it can do better than they.
    """
    with contextlib.suppress(OSError, ValueError), open(_FILE, "r+") as file:
        wanted = min(int(file.read()) + _MORE_THAN_OTHERS, _MOST)
        file.seek(0)
        file.write(str(wanted))

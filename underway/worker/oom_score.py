"""Which process the kernel kills when memory is short."""

import contextlib

_INCREASE = 500  # as if this process used another half of the machine's memory
_MOST = 1000
_FILE = "/proc/self/oom_score_adj"


def prefer_as_oom_victim() -> None:
    """Have the kernel kill this worker, or a process that it starts, before the supervisor, the guardian or Postgres.

    A step can undo this, but only a step that runs as root can lower the score below that of the supervisor.
    """
    with contextlib.suppress(OSError, ValueError), open(_FILE, "r+") as file:
        score = min(int(file.read()) + _INCREASE, _MOST)
        file.seek(0)
        file.write(str(score))

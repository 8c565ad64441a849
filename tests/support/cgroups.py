"""Temporary memory cgroups, v1 or v2, where the machine allows it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """A cgroup with this memory limit in bytes. Skips the test, with the reason, if none can be created.

    At the end, all its processes are killed.
    """
    root, knob = (V1, "memory.limit_in_bytes") if (V1 / "memory.limit_in_bytes").exists() else (V2, "memory.max")
    group = root / f"underway-test-{os.getpid()}"
    try:
        if root is V2:
            (root / "cgroup.subtree_control").write_text("+memory")
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made: {error}")
    try:
        try:
            (group / knob).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"no memory cgroup can be made: {error}")
        yield group
    finally:
        while pids := (group / "cgroup.procs").read_text().split():
            for pid in pids:
                os.kill(int(pid), 9)
        group.rmdir()


@contextmanager
def inside(group: Path) -> Iterator[None]:
    """Move this process into the group for a while. Processes started meanwhile stay in it."""
    controller = "memory" if group.parent == V1 else ""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    (ours,) = [path.lstrip("/") for _, controllers, path in lines if controllers == controller]
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (group.parent / ours / "cgroup.procs").write_text(str(os.getpid()))

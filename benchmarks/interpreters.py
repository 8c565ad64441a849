"""Finds the Python interpreters on this machine that can create a virtual environment."""

import glob
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

OLDEST = (3, 11)
_NEWEST_MINOR = 14
# A free-threaded build is excluded, because most wheels are missing for it.
_PROBE = """
import sys, sysconfig, ensurepip, venv
print(*sys.version_info[:3]) if not sysconfig.get_config_var("Py_GIL_DISABLED") else None
"""


def candidates() -> Iterator[str]:
    """Candidate interpreters: the current one first, then the newest of each place."""
    yield sys.executable
    for minor in range(_NEWEST_MINOR, OLDEST[1] - 1, -1):
        if found := shutil.which(f"python3.{minor}"):
            yield found
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    yield from sorted(glob.glob(f"{pyenv}/versions/3.*/bin/python3"))


def version(candidate: str) -> tuple[int, ...]:
    """The version, or () if unusable. The candidate is executed, because pyenv has shims for inactive versions too."""
    done = subprocess.run([candidate, "-c", _PROBE], capture_output=True, text=True, check=False)
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else ()

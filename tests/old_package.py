"""underway as it was at migration 1: no keys, no pausing, and no cancelling of what runs.

It comes out of this repository's history. A clone without that (shallow, or no clone at all) fetches the one commit if
it can.
"""

import json
import os
import subprocess
import sys
import tarfile
from functools import cache
from io import BytesIO
from pathlib import Path

COMMIT = "9fd6568c4f3f58227573f5730c05ebc2044e562e"
_REPOSITORY = Path(__file__).parent.parent


class OldPackage:
    """The old package in a folder, and how to run it: by PYTHONPATH, in processes of its own."""

    def __init__(self, folder: Path) -> None:
        self.env = {"PYTHONPATH": str(folder)}

    def run(self, *arguments: str, database: str = "") -> subprocess.CompletedProcess[str]:
        """Python with the old package. -P, or the one in the working directory would come first."""
        env = {**os.environ, **self.env, "UNDERWAY_DATABASE_URL": database}
        return subprocess.run([sys.executable, "-P", *arguments], env=env, capture_output=True, text=True, timeout=60)

    def statements(self) -> dict[str, str]:
        """Its SQL, by name."""
        program = "import json; from underway.postgres.queries import statements; print(json.dumps(statements()))"
        found: dict[str, str] = json.loads(self.run("-c", program).stdout)
        return found


def extract(folder: Path) -> OldPackage | None:
    """The old package, put into this folder; None if the history that has it is out of reach."""
    archive = _archive()
    if archive is None:
        return None
    with tarfile.open(fileobj=BytesIO(archive)) as tree:
        tree.extractall(folder, filter="data")
    return OldPackage(folder)


@cache
def _archive() -> bytes | None:
    archive = _git("archive", COMMIT, "underway")
    if archive is None and _git("fetch", "--quiet", "--depth=1", "origin", COMMIT) is not None:
        archive = _git("archive", COMMIT, "underway")
    return archive


def _git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", "-C", str(_REPOSITORY), *arguments], capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None

"""Run the test suite, the demo and a quick benchmark with every supported Python on this machine: make test-all.

Each Python has its own environment, such as .venv-3.12. Its demo uses a temporary database and report folder, so the
results of `make demo` stay as they are.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import interpreters

Version = tuple[int, ...]


def main() -> int:
    pythons = _pythons()
    print("Pythons:", *map(_dotted, pythons), flush=True)
    results = {version: _results(version, python) for version, python in pythons.items()}
    print()
    for version, by_target in results.items():
        told = (f"{target} {'passed' if passed else 'FAILED'}" for target, passed in by_target.items())
        print(f"{_dotted(version):8} {', '.join(told)}")
    return 0 if all(all(by_target.values()) for by_target in results.values()) else 1


def _pythons() -> dict[Version, str]:
    """The newest interpreter of each minor version, oldest first."""
    found: dict[Version, tuple[Version, str]] = {}
    for candidate in interpreters.candidates():
        version = interpreters.version(candidate)
        if version >= interpreters.OLDEST and version > found.get(version[:2], ((), ""))[0]:
            found[version[:2]] = version, candidate
    return dict(sorted(found.values()))


def _results(version: Version, python: str) -> dict[str, bool]:
    """Whether each target of the Makefile passed."""
    make = ["make", f"VENV=.venv-{_dotted(version[:2])}", f"PYTHON={python}"]
    with _apart(version) as environment:
        return {
            "test": _passes([*make, "test"], environment),
            "demo": _passes([*make, "demo", "ARGS="], environment),
            "bench": _passes([*make, "bench", "ARGS=--quick"], environment),
        }


def _passes(command: list[str], environment: dict[str, str]) -> bool:
    print(f"\n{' '.join(command)}", flush=True)
    return subprocess.run(command, env=environment, check=False).returncode == 0


@contextmanager
def _apart(version: Version) -> Iterator[dict[str, str]]:
    """Environment variables that give the demo its own server and report folder."""
    with tempfile.TemporaryDirectory(prefix="underway-demo-") as folder:
        os.chmod(folder, 0o711)  # as root the server runs as another user, which must be able to enter
        environment = {
            **os.environ,
            "UNDERWAY_EMBEDDED_DIR": f"{folder}/postgres",
            "UNDERWAY_REPORTS": f"{folder}/reports",
        }
        environment.pop("UNDERWAY_DATABASE_URL", None)
        try:
            yield environment
        finally:
            command = Path(f".venv-{_dotted(version[:2])}/bin/underway")
            if command.exists():
                subprocess.run([command, "db", "stop"], env=environment, check=False)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    sys.exit(main())

"""The whole suite, the demo and a quick benchmark on every supported Python of this machine: make test-all.

Each Python has an environment of its own, .venv-3.12. The demo of each has a database and reports of its own, which go
with it: what `make demo` has made stays as it is.
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
    """The newest of each minor version, in order."""
    found: dict[Version, tuple[Version, str]] = {}
    for candidate in interpreters.candidates():
        version = interpreters.version(candidate)
        if version >= interpreters.OLDEST and version > found.get(version[:2], ((), ""))[0]:
            found[version[:2]] = version, candidate
    return dict(sorted(found.values()))


def _results(version: Version, python: str) -> dict[str, bool]:
    """Which targets of the Makefile have passed."""
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
    """An environment in which the demo finds a server and reports of its own."""
    with tempfile.TemporaryDirectory(prefix="underway-demo-") as folder:
        os.chmod(folder, 0o711)  # root's server runs as another user, who has to get in
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

"""A virtual environment for each peer, made on demand from the pinned file in requirements/."""

import glob
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.peers.roster import OURS, Peer

_HERE = Path(__file__).parent
_ENVIRONMENTS = _HERE / ".envs"
_NEWER = ("3.14", "3.13", "3.12")


class Unavailable(Exception):
    """A peer that cannot be measured here, and why."""


def python(peer: Peer, say: Callable[[str], None]) -> Path:
    """The interpreter of the peer's environment. One that is whole already is left as it is."""
    folder = _ENVIRONMENTS / peer.name
    base = _base(peer)
    requirements = requirements_file(peer.name)
    stamp, made_of = folder / "made-of", f"{base}\n{hashlib.sha256(requirements.read_bytes()).hexdigest()}\n"
    if not (stamp.exists() and stamp.read_text() == made_of):
        say(f"installing {peer.name}")
        shutil.rmtree(folder, ignore_errors=True)
        _run([base, "-m", "venv", str(folder)])
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--requirement", str(requirements)])
        stamp.write_text(made_of)
    return folder / "bin/python"


def requirements_file(name: str) -> Path:
    return _HERE / "requirements" / f"{name}.txt"


def version(peer: Peer) -> str:
    """The pinned version; underway is what is in this folder."""
    if peer.name == OURS:
        return "here"
    pins = dict(line.split("==") for line in requirements_file(peer.name).read_text().split())
    return pins[peer.name]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if "error" in line.lower()] or done.stdout.splitlines()
        raise Unavailable(f"its environment cannot be made: {lines[-1] if lines else command}")


def _base(peer: Peer) -> str:
    """Our own Python if it will do, so that as many as possible are measured with the same."""
    for candidate in _candidates():
        if _does(candidate, peer.python):
            return candidate
    raise Unavailable(f"needs Python {'.'.join(map(str, peer.python))} or newer, and there is none with venv")


def _candidates() -> Iterator[str]:
    yield sys.executable
    for newer in _NEWER:
        if found := shutil.which(f"python{newer}"):
            yield found
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    yield from sorted(glob.glob(f"{pyenv}/versions/3.*/bin/python3"))


def _does(candidate: str, least: tuple[int, int]) -> bool:
    """Run, not only looked up: a shim may stand for a Python that is off."""
    program = f"import sys, ensurepip, venv; sys.exit(sys.version_info < {least})"
    return subprocess.run([candidate, "-c", program], capture_output=True, check=False).returncode == 0

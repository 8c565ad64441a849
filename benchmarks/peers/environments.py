"""A virtual environment for each peer, made on demand from the pinned file in requirements/."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks import interpreters
from benchmarks.peers.roster import OURS, Peer

_HERE = Path(__file__).parent
_ENVIRONMENTS = _HERE / ".envs"


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
    for candidate in interpreters.candidates():
        if interpreters.version(candidate) >= peer.python:
            return candidate
    raise Unavailable(f"needs Python {'.'.join(map(str, peer.python))} or newer, and there is none with venv")

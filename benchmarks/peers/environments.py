"""A virtual environment for each peer, created on demand from its pinned file in requirements/."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks import interpreters
from benchmarks.peers.peers import OURS, Peer

_HERE = Path(__file__).parent
_ENVIRONMENTS = _HERE / ".envs"


class Unavailable(Exception):
    """A peer cannot be measured on this machine; the message says why."""


def python(peer: Peer, show_progress: Callable[[str], None]) -> Path:
    """The interpreter of the peer's environment, which is created unless it is complete and up to date."""
    folder = _ENVIRONMENTS / peer.name
    base = _base(peer)
    requirements = requirements_file(peer.name)
    stamp, content = folder / "content", f"{base}\n{hashlib.sha256(requirements.read_bytes()).hexdigest()}\n"
    if not (stamp.exists() and stamp.read_text() == content):
        show_progress(f"installing {peer.name}")
        shutil.rmtree(folder, ignore_errors=True)
        _run([base, "-m", "venv", str(folder)])
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--requirement", str(requirements)])
        stamp.write_text(content)
    return folder / "bin/python"


def requirements_file(name: str) -> Path:
    return _HERE / "requirements" / f"{name}.txt"


def version(peer: Peer) -> str:
    """The pinned version; underway is measured from this working tree."""
    if peer.name == OURS:
        return "here"
    pins = dict(line.split("==") for line in requirements_file(peer.name).read_text().split())
    return pins[peer.name]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if "error" in line.lower()] or done.stdout.splitlines()
        raise Unavailable(f"cannot create its environment: {lines[-1] if lines else command}")


def _base(peer: Peer) -> str:
    """The current Python if it is new enough, so that most peers are measured with the same one."""
    for candidate in interpreters.candidates():
        if interpreters.version(candidate) >= peer.python:
            return candidate
    raise Unavailable(f"needs Python {'.'.join(map(str, peer.python))} or newer with venv, which was not found")

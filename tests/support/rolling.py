"""An app in a file that a test changes while a supervisor runs, as a deployment does."""

from pathlib import Path

_PROGRAM = """\
# {padding}
import os, time
from pathlib import Path
from underway import Context, Done, To, Underway

app = Underway()


def version(cx: Context, number: int) -> Done[str]:
    time.sleep(0.005)
    return To.done("{version}")


def wait(cx: Context, name: str) -> Done[str]:
    while not Path(os.environ["HOSTILE_FOLDER"], name).exists():
        time.sleep(0.01)
    return To.done("{version}")


versions = app.job("versions").step(version)
waits = app.job("waits").step(wait)
{more}
"""


def write(file: Path, version: str, more: str = "") -> None:
    """Write a version of the app, followed by `more`."""
    # Python detects a changed file by its size and the second of its modification.
    padding = "x" * (len(list(file.parent.iterdir())) + sum(map(ord, version)))
    text = _PROGRAM.format(version=version, more=more, padding=padding)
    beside = file.with_suffix(".new")
    beside.write_text(text)
    beside.replace(file)

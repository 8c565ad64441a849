"""What is going on, on stderr: a moving line for people (with rich), else a plain line for each step."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Say = Callable[[str], None]


@contextmanager
def progress() -> Iterator[Say]:
    """Yields the function to say it with."""
    try:
        from rich.console import Console
    except ImportError:
        yield _line
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line
        return
    began = time.monotonic()
    with console.status("starting Postgres", refresh_per_second=2) as status:  # it takes CPU from what is measured
        yield lambda text: status.update(f"{text} [dim]{time.monotonic() - began:.0f} s[/dim]")


def _line(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

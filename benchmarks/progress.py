"""Progress on stderr: a live status line in a terminal with rich, otherwise one plain line per step."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ShowProgress = Callable[[str], None]


@contextmanager
def progress_display() -> Iterator[ShowProgress]:
    """Yields a function that shows a text."""
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
    with console.status(
        "starting Postgres", refresh_per_second=2
    ) as status:  # rarely: refreshing takes CPU from what is measured
        yield lambda text: status.update(f"{text} [dim]{time.monotonic() - began:.0f} s[/dim]")


def _line(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

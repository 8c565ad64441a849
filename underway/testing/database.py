"""Points an app to the database of a test."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from underway.app import Underway
from underway.errors import UnderwayError


@contextmanager
def using_database(app: Underway, url: str) -> Iterator[None]:
    """Point an app to this database within the block. Its connections are closed at the beginning and at the end."""
    named = app.database.named
    app.close()
    app.database.named = url
    try:
        yield
    finally:
        app.close()
        app.database.named = named


def refuse_event_loop(call: str) -> None:
    """Raise UnderwayError in a coroutine: the call blocks until the steps have ended, async steps on their own loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise UnderwayError(f"{call} would block this event loop: await asyncio.to_thread({call}, ...)")

"""Which database an app uses, for the length of a test."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from underway.app import Underway
from underway.errors import UnderwayError


@contextmanager
def using_database(app: Underway, url: str) -> Iterator[None]:
    """Point an app to this database meanwhile, whatever it names itself; its connections are closed at both ends."""
    named = app.database.named
    app.close()
    app.database.named = url
    try:
        yield
    finally:
        app.close()
        app.database.named = named


def refuse_event_loop(call: str) -> None:
    """Raise UnderwayError in a coroutine: steps are run to their ends, those that are async on a loop of their own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise UnderwayError(f"{call} would block this event loop: await asyncio.to_thread({call}, ...)")

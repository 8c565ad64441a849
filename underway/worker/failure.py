"""What an exception that left a step makes of its attempt."""

import traceback
from datetime import timedelta
from typing import cast

from underway.definition.retry import LONGEST
from underway.errors import Fail, Interrupt, Retry
from underway.text import shorten, storable
from underway.worker.outcome import Outcome

_LONGEST_TEXT = 32 * 1024


def outcome_of(error: BaseException) -> Outcome:
    # issubclass, not isinstance, which would ask an exception of user code for its __class__
    kind = type(error)
    if issubclass(kind, Interrupt):
        return Outcome("interrupted", _text(error, headline=message_of(error)))
    if issubclass(kind, Fail):
        return Outcome("fail", _text(error))
    if issubclass(kind, Retry):
        return Outcome("retry", _text(error), retry_after=_seconds(cast(Retry, error)))
    if issubclass(kind, SystemExit | KeyboardInterrupt):
        fix = "a step ends by returning To.next(...) or To.done(...), or by raising Fail or Retry"
        return Outcome("retry", _text(error, headline=f"the step raised {kind.__name__}: {fix}"))
    return Outcome("retry", _text(error))


def message_of(error: BaseException) -> str:
    """str(error), which is user code and may raise anything."""
    try:
        return str(error)
    except BaseException:
        return ""


def _text(error: BaseException, headline: str = "") -> bytes:
    """The traceback as UTF-8 that Postgres can store, of bounded length. Its last line is the error's message."""
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException:  # user code decides what its text is, and may even exit
        text = f"{type(error).__name__} (it cannot be printed)"
    if headline:
        text = f"{headline}\n\n{text}"
    return storable(shorten(text, _LONGEST_TEXT)).encode(errors="replace")


def _seconds(retry: Retry) -> float | None:
    """The delay that a Retry asks for; None if the retry policy decides."""
    try:
        return min(max(cast(timedelta, retry.after), timedelta(0)), LONGEST).total_seconds()
    except BaseException:  # None, or missing in a subclass of the user that does not call our __init__
        return None

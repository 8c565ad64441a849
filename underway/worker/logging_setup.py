"""Logging in a worker: records of user code reach the supervisor, and the app's own handlers work as usual.

An app may configure logging in any way and at any time. But `basicConfig` does nothing if the root logger has a
handler, and `dictConfig` removes and closes existing handlers and disables loggers. (With our handler on the root
logger, `basicConfig` was ignored; `dictConfig` removed the handler, so errors arrived as lines of level info and no
alert fired.) So underway touches nothing that an app configures: the logger of `cx.log` is not registered with logging,
and the records of all other loggers are caught by a parent of the root logger.
"""

import contextlib
import logging
import os
import traceback
from typing import Any, Protocol

from underway.text import encodable, shorten
from underway.wire.messages import Assignment, Log, Scalar
from underway.worker.channel import SupervisorChannel, SupervisorGone
from underway.worker.child_log import ChildLog
from underway.worker.interrupts import InterruptHandler, await_guardian

_LONGEST_RECORD = 16 * 1024
_LONGEST_NAME = 200
_LONGEST_EXTRA = 1000
_MOST_EXTRAS = 32
# The standard attributes of a record, and those that formatters add.
_STANDARD_ATTRIBUTES = frozenset((*vars(logging.makeLogRecord({})), "asctime", "message"))
# The logger of failed attempts. Only for the app's handlers and agents, because the supervisor logs them itself.
_FAILURES = "underway.step"
_FORWARDED = "_forwarded_to_supervisor"

_root = logging.getLogger()


class Logs(Protocol):
    """Logging for the steps that an executor runs."""

    def logger(self, name: str) -> logging.Logger: ...
    def attempt_failed(self, task: Assignment, error: BaseException, level: int = logging.ERROR) -> None: ...


class _PlainLogs:
    """Logging in a test process, which configures logging itself and sees exceptions directly."""

    def logger(self, name: str) -> logging.Logger:
        return logging.getLogger(name)

    def attempt_failed(self, task: Assignment, error: BaseException, level: int = logging.ERROR) -> None:
        pass


PLAIN_LOGS = _PlainLogs()


class ForwardedLogs:
    """Logging in a worker. The app is imported between `begin_import` and `end_import`."""

    def __init__(self, forwarder: "LogForwarder") -> None:
        self._forwarder = forwarder
        self._loggers: dict[str, _StepLogger] = {}
        # The root logger's default, WARNING, would drop INFO records. If this unusual value is still set after the
        # import, the app has not set a level.
        self._our_root_level = forwarder.level - 1

    def begin_import(self) -> None:
        _root.setLevel(self._our_root_level)
        above = logging.Logger("above the root logger")
        above.addHandler(_Unconfigured(self._forwarder))
        _root.parent = above

    def end_import(self) -> None:
        if _root.handlers and _root.level == self._our_root_level:
            _root.setLevel(logging.WARNING)  # Python's default

    def logger(self, name: str) -> logging.Logger:
        """The logger of a step. It reaches the supervisor however the app changes its own loggers."""
        logger = self._loggers.get(name)
        if logger is None:
            logger = self._loggers[name] = _StepLogger(name, self._forwarder)
        return logger

    def attempt_failed(self, task: Assignment, error: BaseException, level: int = logging.ERROR) -> None:
        """Log a failed attempt for the app's handlers and agents. They cannot change how the attempt ends."""
        logger = logging.getLogger(_FAILURES)
        logger.disabled = False  # dictConfig disables all loggers that it does not name, unless it is told not to
        fields = {"run": task.run, "job": task.job, "step": task.step, "attempt": task.attempt}
        try:
            logger.log(level, "attempt %d at %s.%s failed", task.attempt, task.job, task.step,
                       exc_info=error, extra=fields)  # fmt: skip
        except BaseException:  # including SystemExit raised by a handler
            with contextlib.suppress(Exception):
                traceback.print_exc()


class LogForwarder(logging.Handler):
    """Sends records to the supervisor, which adds run, job, step and attempt."""

    def __init__(self, channel: SupervisorChannel, interrupts: InterruptHandler, level: int) -> None:
        super().__init__(level)
        self._channel = channel
        self._interrupts = interrupts
        self._pid = os.getpid()
        self._child_log = ChildLog(interrupts.stderr)
        self.token = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if os.getpid() != self._pid:
                self._child_log.write(record.levelno, record.name, _with_traceback(record))
                return
            self._channel.send(_message(self.token, record))
        except SupervisorGone:
            await_guardian()
        except Exception:
            self.handleError(record)
        self._interrupts.raise_pending()


class _StepLogger(logging.Logger):
    """Forwards each record, then passes it to the registered logger of the same name if that is enabled for its level.

    So the levels, handlers and filters that the app has set for this name or its parents apply to the app's handlers.
    """

    def __init__(self, name: str, forwarder: LogForwarder) -> None:
        super().__init__(name)
        self._forwarder = forwarder
        self._registered = logging.getLogger(name)
        self.parent = self._registered

    def __reduce__(self) -> Any:
        return logging.getLogger, (self.name,)  # another process has no supervisor to forward to

    def isEnabledFor(self, level: int) -> bool:  # ignores logging.disable(), which would silence all later steps
        if self.level:
            return level >= self.level
        return level >= self._forwarder.level or self._registered.isEnabledFor(level)

    def handle(self, record: logging.LogRecord) -> None:
        kept: object = self.filter(record)
        if self.disabled or not kept:
            return
        if isinstance(kept, logging.LogRecord):
            record = kept
        if record.levelno >= (self.level or self._forwarder.level):
            self._forwarder.handle(record)
        if self._registered.isEnabledFor(record.levelno):
            record.__dict__[_FORWARDED] = True
            self._registered.handle(record)

    def addHandler(self, hdlr: logging.Handler) -> None:
        self._registered.addHandler(hdlr)

    def removeHandler(self, hdlr: logging.Handler) -> None:
        self._registered.removeHandler(hdlr)


class _Unconfigured(logging.Handler):
    """On the root logger's parent: forwards records as long as the app has not added a handler to the root logger."""

    def __init__(self, forwarder: LogForwarder) -> None:
        super().__init__(forwarder.level)
        self._forwarder = forwarder

    def handle(self, record: logging.LogRecord) -> bool:
        if not _root.handlers and record.name != _FAILURES and _FORWARDED not in record.__dict__:
            self._forwarder.handle(record)
        return True


def _message(token: int, record: logging.LogRecord) -> Log:
    text = shorten(record.getMessage(), _LONGEST_RECORD).encode(errors="replace")
    name = _cut(record.name, _LONGEST_NAME)
    return Log(token, record.levelno, name, _traceback(record), _extra(record), text)


def _with_traceback(record: logging.LogRecord) -> str:
    message, error = record.getMessage(), _traceback(record)
    return message if error is None else f"{message}\n{error}"


def _traceback(record: logging.LogRecord) -> str | None:
    """The traceback as text. It is not cached in the record, where a formatter of the app would reuse it."""
    parts = [record.exc_text, record.stack_info]
    if record.exc_info:
        parts[0] = logging.Formatter().formatException(record.exc_info)
    text = "\n".join(part for part in parts if part)
    return _cut(text, _LONGEST_RECORD) if text else None


def _extra(record: logging.LogRecord) -> dict[str, Scalar]:
    """The attributes that user code has added to a record: numbers as they are, everything else as text."""
    added = [
        (name, value) for name, value in record.__dict__.items() if name not in _STANDARD_ATTRIBUTES and name[:1] != "_"
    ]
    extra = {_cut(name, _LONGEST_NAME): _scalar(value) for name, value in added[:_MOST_EXTRAS]}
    if len(added) > _MOST_EXTRAS:
        extra["left_out"] = len(added) - _MOST_EXTRAS
    return extra


def _scalar(value: object) -> Scalar:
    if value is None or isinstance(value, bool):
        return value
    if type(value) is float or (type(value) is int and -(2**63) <= value < 2**63):
        return value
    try:
        return _cut(str(value), _LONGEST_EXTRA)
    except Exception:  # a __str__ of user code may raise
        return f"{type(value).__name__} (it cannot be printed)"


def _cut(text: str, most: int) -> str:
    return encodable(shorten(text, most))

"""Formats the supervisor's log lines, as text or as JSON.

Messages contain text from steps and rows. It can neither control the terminal nor start a line that looks like ours.
"""

import json
import logging
import os
import re
import sys
import time
from functools import lru_cache
from typing import Any

import orjson

from underway.printable import printable, printable_json
from underway.supervisor.logs.writer import LogWriter

_INDENT = "\n    "
_NEEDS_NO_QUOTES = re.compile(r"""[^\s="'\\]+""")


class HumanFormatter(logging.Formatter):
    """`12:34:56 INFO  message`, followed by context as `name=value`. Continuation lines are indented."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{clock} {record.levelname[:7]:7} {record.getMessage()}"
        about = getattr(record, "about", {})
        if about:
            text += "  " + " ".join(f"{_quoted(name)}={_quoted(str(value))}" for name, value in about.items())
        if exception := _exception(self, record):
            text += "\n" + exception
        return printable(text).replace("\n", _INDENT)


class JSONFormatter(logging.Formatter):
    """One JSON object per line; the context is among its members."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "about", {}),
        }
        if exception := _exception(self, record):
            line["exception"] = exception
        try:
            return printable_json(orjson.dumps(line, default=str).decode())
        except orjson.JSONEncodeError:  # a lone surrogate, from a file name
            return printable_json(json.dumps(line, default=str))


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    """The traceback of the record, or the traceback text that a worker has sent."""
    text: str | None = getattr(record, "exception", None)
    return formatter.formatException(record.exc_info) if record.exc_info else text


@lru_cache(512)  # all lines of an attempt have the same names and values
def _quoted(text: str) -> str:
    """The text, quoted if necessary: a job's name could otherwise forge the rest of the line."""
    if text.isprintable() and _NEEDS_NO_QUOTES.fullmatch(text):
        return text
    return printable_json(json.dumps(text, ensure_ascii=False))


def configure(*, json: bool, level: int) -> None:
    """Log to stderr, including the exceptions that Python itself would write there: outside of the log, a write might
    block.
    """
    # Without a stderr, the first socket that we open would get its number, and the log.
    descriptor = os.open(os.devnull, os.O_WRONLY) if sys.stderr is None else sys.stderr.fileno()
    handler = LogWriter(descriptor)
    handler.setFormatter(JSONFormatter() if json else HumanFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    own = logging.getLogger("underway.supervisor")
    sys.excepthook = lambda *error: own.critical("the supervisor ends because of a bug", exc_info=error)
    sys.unraisablehook = lambda unraisable: own.error(
        "%s: %r",
        unraisable.err_msg or "exception ignored in",
        unraisable.object,
        exc_info=unraisable.exc_value,
    )

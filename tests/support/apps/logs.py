"""An app that configures logging in the way LOGGING names, at the time LOGGING_WHEN names: import, state or step.

Its own handlers write to the file LOGGING_FILE.
"""

import logging
import logging.config
import os
import pickle
import time
import warnings
from datetime import timedelta
from typing import Any

from underway import Context, Done, Fail, Retry, RetryPolicy, To, Underway

FILE = os.environ.get("LOGGING_FILE", os.devnull)
FORMAT = "MINE %(levelname)s %(name)s %(message)s"
ROOT_HANDLER: dict[str, Any] = {
    "version": 1,
    "formatters": {"mine": {"format": FORMAT}},
    "handlers": {"file": {"class": "logging.FileHandler", "filename": FILE, "formatter": "mine"}},
    "root": {"handlers": ["file"], "level": "DEBUG"},
}

# Imported before the app configures logging, as most libraries are.
library = logging.getLogger("library")
careful = logging.getLogger("careful.library")
careful.addHandler(logging.NullHandler())


def nothing() -> None:
    pass


def basic() -> None:
    logging.basicConfig(filename=FILE, level=logging.DEBUG, format=FORMAT)


def basic_without_level() -> None:
    logging.basicConfig(filename=FILE, format=FORMAT)


def basic_by_force() -> None:
    logging.basicConfig(filename=FILE, level=logging.DEBUG, format=FORMAT, force=True)


def dict_of_root() -> None:
    logging.config.dictConfig(ROOT_HANDLER)


def dict_that_disables() -> None:
    """Disable all existing loggers except the named ones, which is the default of dictConfig."""
    logging.config.dictConfig({**ROOT_HANDLER, "loggers": {"uvicorn": {"level": "INFO"}}})


def dict_without_root() -> None:
    without = {name: value for name, value in ROOT_HANDLER.items() if name != "root"}
    loggers = {"library": {"handlers": ["file"], "level": "DEBUG"}}
    logging.config.dictConfig({**without, "loggers": loggers, "disable_existing_loggers": False})


def empty_dict() -> None:
    logging.config.dictConfig({"version": 1})


def root_at_critical() -> None:
    logging.getLogger().setLevel(logging.CRITICAL)


def root_cleared() -> None:
    logging.getLogger().handlers.clear()


def disable() -> None:
    logging.disable(logging.CRITICAL)


def shutdown() -> None:
    logging.shutdown()


def capture_warnings() -> None:
    logging.captureWarnings(True)


def a_handler_that_raises() -> None:
    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not record.name.startswith("library"):
                raise SystemExit("of a handler")

    logging.getLogger("underway.step").addHandler(Raising())


HOWS = {how.__name__: how for how in (
    nothing, basic, basic_without_level, basic_by_force, dict_of_root, dict_that_disables, dict_without_root,
    empty_dict, root_at_critical, root_cleared, disable, shutdown, capture_warnings, a_handler_that_raises
)}  # fmt: skip
HOW = HOWS[os.environ.get("LOGGING", "nothing")]
WHEN = os.environ.get("LOGGING_WHEN", "import")


def configure_in(when: str) -> None:
    if when == WHEN:
        HOW()


configure_in("import")
library.info("library at import")
app = Underway()
once = RetryPolicy(max_attempts=1)


def make() -> str:
    configure_in("state")
    return "state"


def say(cx: Context[str], number: int) -> Done:
    assert cx.state
    configure_in("step")
    library.info("library of %d", number)
    careful.warning("careful of %d", number)
    warnings.warn(f"warned of {number}", stacklevel=1)
    cx.log.debug("debug of %d", number)
    cx.log.info("info of %d", number)
    cx.log.error("error of %d", number)
    try:
        raise ZeroDivisionError(f"division of {number}")
    except ZeroDivisionError:
        cx.log.exception("exception of %d", number)
    return To.done()


sayings = app.job("sayings", state=make).step(say, retry=once)


class Unprintable:
    def __str__(self) -> str:
        raise ValueError("no text")


EXTRAS: dict[str, Any] = {
    "customer": 17,
    "share": 0.5,
    "urgent": True,
    "nothing": None,
    "path": "two words",
    "pages": [1, 2],
    "huge": 2**70,
    "unprintable": Unprintable(),
    "half": "\ud800",
    "long": "x" * 5000,
    # Names that the supervisor uses itself.
    "run": "forged",
    "level": "forged",
    "logger": "forged",
    "exception": "forged",
}


def add(cx: Context, many: int) -> Done:
    cx.log.info("with extras", extra=EXTRAS)
    cx.log.info("with many", extra={f"extra{number}": number for number in range(many)})
    cx.log.warning("with a stack", stack_info=True)
    return To.done()


adding = app.job("adding").step(add, retry=once)


class Collected(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def use(cx: Context) -> Done[list[str]]:
    """Use `cx.log` like any other logger."""
    own, of_its_name = Collected(), Collected()
    cx.log.addHandler(own)
    logging.getLogger("using.use").addHandler(of_its_name)
    cx.log.info("one")
    cx.log.setLevel(logging.WARNING)
    cx.log.info("not enabled")
    cx.log.setLevel(logging.NOTSET)
    cx.log.removeHandler(own)
    cx.log.addFilter(lambda record: "secret" not in record.getMessage())
    cx.log.info("a secret")
    cx.log.info("two")
    logging.LoggerAdapter(cx.log).info("adapted")
    cx.log.getChild("child").info("child")
    pickle.loads(pickle.dumps(cx.log)).info("pickled")
    return To.done([*own.messages, "-", *of_its_name.messages])


using = app.job("using").step(use, retry=once)


# Failures


def fail(cx: Context, how: str) -> Done:
    if how == "raise":
        raise ValueError("raised in the step")
    if how == "fail":
        raise Fail("failed in the step")
    if how == "retry":
        raise Retry("retried in the step")
    if how == "exit":
        raise SystemExit("left in the step")
    if how == "return":
        return "no To"  # type: ignore[return-value]
    if how == "commit":
        cx.tx.execute("create temporary table t (n int unique deferrable initially deferred)")
        cx.tx.execute("insert into t values (1), (1)")
        return To.done()
    while True:
        time.sleep(0.01)


failing = app.job("failing").step(fail, retry=once, timeout=timedelta(seconds=1))
lasting = app.job("lasting").step(fail, retry=once)

"""`cx.log` and other loggers, however and whenever the app configures logging, and the record of a failed attempt."""

import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apps import logs
from harness import Supervisor, eventually

from underway import Status, Underway

Bind = Callable[[Underway], Underway]
Line = dict[str, Any]
WHENS = ("import", "state", "step")
WITH_HANDLERS = ("basic", "basic_by_force", "dict_of_root", "dict_that_disables")


@pytest.fixture
def served(
    bind: Bind, start_supervisor: Callable[..., Supervisor], tmp_path: Path
) -> Callable[..., tuple[list[Line], list[str]]]:
    """The supervisor's log after all runs have ended, and the output of the app's own handlers."""
    bind(logs.app)

    def serve(how: str = "nothing", when: str = "import", *options: str) -> tuple[list[Line], list[str]]:
        own = tmp_path / "own"
        own.touch()
        env = {"LOGGING": how, "LOGGING_WHEN": when, "LOGGING_FILE": str(own)}
        supervisor = start_supervisor("logs", "--procs", "1", "--until-idle", "--log-format", "json", *options, env=env)
        assert supervisor.wait() == 0
        lines = [json.loads(line) for line in supervisor.log_file.read_text().splitlines()]
        return lines, own.read_text().splitlines()

    return serve


def of_logger(lines: list[Line], logger: str) -> list[tuple[str, str]]:
    return [(line["level"], line["message"]) for line in lines if line["logger"] == logger]


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("how", logs.HOWS)
def test_cx_log_reaches_the_supervisor_with_any_logging_configuration(
    served: Callable[..., tuple[list[Line], list[str]]], how: str, when: str
) -> None:
    runs = logs.sayings.enqueue_many([1, 2])
    lines, own = served(how, when)
    assert of_logger(lines, "sayings.say") == [
        (level, f"{what} of {number}")
        for number in (1, 2)
        for level, what in (("info", "info"), ("error", "error"), ("error", "exception"))
    ]
    for number, run in enumerate(runs, start=1):
        assert run.status() is Status.SUCCEEDED
        (raised,) = [line for line in lines if line["message"] == f"exception of {number}"]
        assert raised["exception"].startswith("Traceback")
        assert raised["exception"].endswith(f"ZeroDivisionError: division of {number}")
        assert (raised["run"], raised["job"], raised["step"], raised["attempt"]) == (str(run.id), "sayings", "say", 1)
    if how in WITH_HANDLERS:
        # Only the first attempt is checked: a dictConfig in a step disables existing loggers, as in any program.
        assert Counter(own)["MINE ERROR sayings.say error of 1"] == 1
        assert Counter(own)["MINE DEBUG sayings.say debug of 1"] == 1
        assert ("MINE INFO library library of 1" in own) is (how in ("basic", "basic_by_force"))


@pytest.mark.parametrize("how", ["nothing", "root_cleared", "capture_warnings"])
@pytest.mark.parametrize("when", WHENS)
def test_loggers_of_an_app_without_handlers_reach_the_supervisor_once(
    served: Callable[..., tuple[list[Line], list[str]]], how: str, when: str
) -> None:
    (run,) = logs.sayings.enqueue_many([1])
    lines, _ = served(how, when)
    imported = Counter(line["worker"] for line in lines if line["message"] == "library at import")
    assert set(imported.values()) == {1}, "one record of each worker that has booted"
    assert of_logger(lines, "library").count(("info", "library of 1")) == 1
    assert of_logger(lines, "careful.library") == [("warning", "careful of 1")], "despite its NullHandler"
    assert [line["run"] for line in lines if line["message"] == "library of 1"] == [str(run.id)]
    if how == "capture_warnings":
        ((level, message),) = of_logger(lines, "py.warnings")
        assert level == "warning"
        assert "UserWarning: warned of 1" in message


def test_an_app_that_sets_handlers_but_no_level_gets_pythons_default_level(
    served: Callable[..., tuple[list[Line], list[str]]],
) -> None:
    logs.sayings.enqueue(1)
    lines, own = served("basic_without_level")
    assert "MINE WARNING careful.library careful of 1" in own
    assert not [line for line in own if "library of 1" in line and "careful" not in line]
    assert of_logger(lines, "careful.library") == [], "the app has its own handlers"


def test_extras_are_forwarded_and_cannot_override_our_fields(
    served: Callable[..., tuple[list[Line], list[str]]],
) -> None:
    run = logs.adding.enqueue(50)
    lines, _ = served()
    (line,) = [line for line in lines if line["message"] == "with extras"]
    kept = {name: line[name] for name in logs.EXTRAS if name not in ("long", "run", "level", "logger", "exception")
            if name in line}  # fmt: skip
    assert kept == {
        "customer": 17,
        "share": 0.5,
        "urgent": True,
        "nothing": None,
        "path": "two words",
        "pages": "[1, 2]",
        "huge": str(2**70),
        "unprintable": "Unprintable (it cannot be printed)",
        "half": "?",
    }
    assert len(line["long"]) < 1100
    assert (line["run"], line["level"], line["logger"]) == (str(run.id), "info", "adding.add")
    assert "exception" not in line
    assert {line[f"extra_{name}"] for name in ("run", "level", "logger", "exception")} == {"forged"}
    (many,) = [line for line in lines if line["message"] == "with many"]
    assert many["left_out"] == 18
    (stack,) = [line for line in lines if line["message"] == "with a stack"]
    assert "in add" in stack["exception"]


def test_extras_are_in_human_readable_lines_too(bind: Bind, start_supervisor: Callable[..., Supervisor]) -> None:
    bind(logs.app)
    logs.adding.enqueue(1)
    supervisor = start_supervisor("logs", "--procs", "1", "--until-idle")
    assert supervisor.wait() == 0
    (line,) = [line for line in supervisor.log.splitlines() if "with extras" in line]
    assert ' logger=adding.add customer=17 share=0.5 urgent=True nothing=None path="two words" pages="[1, 2]"' in line


@pytest.mark.parametrize("options", [[], ["--verbose"]], ids=str)
def test_verbose_reaches_the_workers(served: Callable[..., tuple[list[Line], list[str]]], options: list[str]) -> None:
    logs.sayings.enqueue(1)
    lines, _ = served("nothing", "import", *options)
    assert (("debug", "debug of 1") in of_logger(lines, "sayings.say")) is bool(options)


def test_cx_log_behaves_like_any_logger(served: Callable[..., tuple[list[Line], list[str]]]) -> None:
    run = logs.using.enqueue()
    lines, _ = served()
    told = ["one", "two", "adapted", "child", "pickled"]
    assert run.result() == ["one", "-", "one", "two", "adapted", "child", "pickled"]
    assert [line["message"] for line in lines if line["logger"].startswith("using.use")] == told


# Agents


FAILURES = {
    "raise": ("ERROR", "ValueError: raised in the step", Status.FAILED),
    "fail": ("ERROR", "Fail: failed in the step", Status.FAILED),
    "retry": ("WARNING", "Retry: retried in the step", Status.FAILED),
    "exit": ("ERROR", "SystemExit: left in the step", Status.FAILED),
    "return": ("ERROR", "JobDefinitionError: step 'fail' returned str", Status.FAILED),
    "commit": ("ERROR", "UniqueViolation", Status.FAILED),
    "time out": ("ERROR", "Interrupt: timeout", Status.FAILED),
}


@pytest.mark.parametrize("how", [*WITH_HANDLERS, "a_handler_that_raises", "nothing"])
def test_a_failed_attempt_is_logged_for_the_apps_handlers(
    served: Callable[..., tuple[list[Line], list[str]]], how: str
) -> None:
    runs = {what: logs.failing.enqueue(what) for what in FAILURES}
    lines, own = served(how)
    text = "\n".join(own)
    for what, (level, error, status) in FAILURES.items():
        assert runs[what].status() is status
        (attempt,) = runs[what].attempts()
        assert attempt.outcome == ("timed_out" if what == "time out" else "failed")
        assert error.split(":")[0] in (attempt.error or ""), "an exception in a handler is not part of it"
        if how in WITH_HANDLERS:
            assert f"\nMINE {level} underway.step attempt 1 at failing.fail failed\nTraceback" in f"\n{text}"
            assert error in text
    if how in WITH_HANDLERS:
        assert sum("underway.step" in line for line in own) == len(FAILURES)
    # The supervisor has logged it already.
    told = Counter(line["message"].split(":")[0] for line in lines if line.get("job") == "failing")
    assert sum(count for message, count in told.items() if message.startswith("attempt ")) == len(FAILURES)
    assert of_logger(lines, "underway.step") == []
    if how == "nothing":
        assert not [line for line in lines if "Traceback" in line["message"]], "no handler, no word"


def test_a_cancelled_attempt_is_not_logged_as_a_failure(
    bind: Bind, start_supervisor: Callable[..., Supervisor], tmp_path: Path
) -> None:
    bind(logs.app)
    own = tmp_path / "own"
    run = logs.lasting.enqueue("for long")
    supervisor = start_supervisor("logs", "--procs", "1", env={"LOGGING": "basic", "LOGGING_FILE": str(own)})
    eventually(lambda: run.status() is Status.IN_PROGRESS)
    eventually(lambda: own.exists())
    run.cancel()
    assert run.wait(20) is Status.CANCELLED
    after = logs.failing.enqueue("raise")
    assert after.wait(20) is Status.FAILED
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == 0
    text = own.read_text()
    assert "failing.fail failed" in text
    assert "lasting.fail" not in text

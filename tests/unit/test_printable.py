"""Text from steps and rows can neither control the terminal nor forge a line, in the log and on the command line."""

import json
import logging
import re
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from apps import forging
from db import insert
from harness import Supervisor
from hypothesis import given
from hypothesis import strategies as st
from underway_command import output

from underway import Underway
from underway.cli.output import printing as cli_output
from underway.printable import printable, printable_json
from underway.supervisor.logs.format import HumanFormatter, JSONFormatter

HOSTILE = {
    "a forged line": "done\n12:34:56 ERROR the disk is full  worker=1",
    "a forged line behind CR LF": "done\r\n12:34:56 ERROR the disk is full",
    "a line that is written over": "12:34:56 ERROR failed\r12:34:56 INFO  fine ",
    "colours": "\x1b[31mred\x1b[0m",
    "C1 colours": "\x9b31mred",
    "the title of a terminal": "\x1b]0;owned\x07",
    "an answer that is typed": "\x1b[c\x1b[6n",
    "NEL": "one\x85two",
    "line and paragraph separators": "one\u2028two\u2029three",
    "vertical tab, form feed": "one\vtwo\fthree",
    "file separators": "a\x1cb\x1db\x1ec",
    "backspaces": "secret\b\b\b\b\b\bpublic",
    "DEL and NUL": "a\x7fb\0c",
    "text from right to left": "user\u202etxt.exe",
    "isolates and marks": "a\u2066b\u2069c\u200ed\u061ce",
    "a zero-width space": "pay\u200bpal",
    "a tag from another plane": "flag\U000e0041",
    "half of a pair": "name \udce9 of a file",
    "an equals sign": "x run=1 level=error",
    "quotes": 'a"b\\c',
}
# The prefix of a genuine log line.
BEGINNING = re.compile(r"\d\d:\d\d:\d\d ")


def record(message: str, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("underway.worker", logging.INFO, "", 0, "%s", (message,), None)
    vars(made).update(extra)
    return made


def control_sequences(text: str) -> list[str]:
    return [char for char in text if not char.isprintable() and char not in "\n\t"]


@pytest.mark.parametrize("how", HOSTILE)
def test_a_human_readable_line_is_one_line_without_control_sequences(how: str) -> None:
    hostile = HOSTILE[how]
    about = {"job": hostile, hostile: 1}
    text = HumanFormatter().format(record(hostile, about=about, exception=hostile))
    assert not control_sequences(text)
    first, *others = text.split("\n")
    assert BEGINNING.match(first)
    assert all(line.startswith("    ") for line in others)


@pytest.mark.parametrize("value", [*HOSTILE.values(), "", "two words", "it's"])
def test_values_that_could_be_misread_are_quoted(value: str) -> None:
    text = HumanFormatter().format(record("message", about={"job": value, "attempt": 1}))
    quoted = re.fullmatch(r"\S+ INFO +message  job=(\"(?:[^\"\\]|\\.)*\") attempt=1", text)
    assert quoted is not None, text
    assert json.loads(quoted[1]) == value


def test_plain_values_stay_as_they_are() -> None:
    about = {"job": "monthly-statements", "step": "render_1", "path": "/tmp/a.pdf", "pages": 7, "at": "Łódź"}
    text = HumanFormatter().format(record("message", about=about))
    assert text.endswith("message  job=monthly-statements step=render_1 path=/tmp/a.pdf pages=7 at=Łódź")


@pytest.mark.parametrize("how", HOSTILE)
def test_a_json_line_has_no_control_sequences_and_the_same_meaning(how: str) -> None:
    hostile = HOSTILE[how]
    text = JSONFormatter().format(record(hostile, about={"job": hostile, hostile: hostile}, exception=hostile))
    assert not control_sequences(text)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["message"], line["job"], line[hostile], line["exception"]) == (hostile,) * 4


@given(st.text())
def test_escaped_json_decodes_to_the_same_value(text: str) -> None:
    document = json.dumps([text, {text: "é"}], indent=2, ensure_ascii=False)
    escaped = printable_json(document)
    assert not control_sequences(escaped)
    assert json.loads(escaped) == json.loads(document)
    assert "é" in escaped


@given(st.text())
def test_printable_keeps_every_printable_character(text: str) -> None:
    shown = printable(text)
    assert not control_sequences(shown)
    assert len(shown) == len(text)
    assert all(is_ == was or is_ == "\N{REPLACEMENT CHARACTER}" for is_, was in zip(shown, text, strict=True))


def test_the_output_of_a_command_escapes_a_hostile_step_name(capsys: pytest.CaptureFixture[str]) -> None:
    step = "".join(HOSTILE.values()).replace("\udce9", "")
    cli_output.print_result({"step": step}, f"continues at step {step}", as_json=False)
    assert not control_sequences(capsys.readouterr().out)
    cli_output.print_result({"step": step}, f"continues at step {step}", as_json=True)
    said = capsys.readouterr().out
    assert not control_sequences(said)
    assert json.loads(said) == {"step": step}


def test_json_of_a_command_has_no_control_sequences(database: str, connection: psycopg.Connection[Any]) -> None:
    hostile = "".join(HOSTILE.values()).replace("\0", "").replace("\udce9", "")
    run = insert(connection, job="\x9b31m", input=json.dumps(hostile))
    said = output("show", str(run), "--json", database=database)
    assert not control_sequences(said)
    found = json.loads(said)
    assert (found["job"], found["input"]) == ("\x9b31m", hostile)


def test_a_hostile_step_cannot_forge_log_lines(
    bind: Callable[[Underway], Underway], start_supervisor: Callable[..., Supervisor]
) -> None:
    bind(forging.app)
    runs = forging.forging.enqueue_many(list(map(_without_half_a_pair, HOSTILE.values())))
    supervisor = start_supervisor("forging", "--procs", "1", "--until-idle")
    assert supervisor.wait() == 0
    text = supervisor.log_file.read_bytes().decode()
    assert not control_sequences(text)
    lines = text.rstrip("\n").split("\n")
    assert all(BEGINNING.match(line) or line.startswith("    ") for line in lines)
    for run in runs:
        assert run.result() is None
    assert not [line for line in lines if re.match(r"\S+ ERROR +the disk is full", line)]


def _without_half_a_pair(text: str) -> str:
    return text.replace("\udce9", "").replace("\0", "")

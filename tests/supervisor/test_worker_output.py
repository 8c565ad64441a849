"""How the output of steps is logged: progress bars, output beyond the limit, and the evidence of a crash."""

import asyncio
import json
import logging
import os
import re
from collections.abc import Callable
from typing import Any

import pytest
from apps import printing
from apps.printing import MIB
from harness import Supervisor
from hypothesis import given
from hypothesis import strategies as st

from underway import Run, Status, Underway
from underway.supervisor.logs import worker_output
from underway.supervisor.logs.output_quota import OUTPUT_LIMIT, OutputQuota
from underway.supervisor.logs.worker_output import WorkerOutput

Bind = Callable[[Underway], Underway]
Start = Callable[..., Supervisor]
DROPPED = re.compile(
    r"([\d,]+) lines, ([\d,.]+) MiB of output dropped: "
    r"more than the ([\d.]+) MiB that an attempt may print and log \(--output-limit\)"
)


def logged(start_supervisor: Start, *options: str) -> list[dict[str, Any]]:
    """All log lines of a supervisor that runs until it is idle."""
    supervisor = start_supervisor("printing", "--procs", "1", "--until-idle", "--log-format", "json", *options)
    assert supervisor.wait() == 0
    return [json.loads(line) for line in supervisor.log_file.read_text().splitlines()]


def about(lines: list[dict[str, Any]], run: Run[Any]) -> list[str]:
    return [line["message"] for line in lines if line.get("run") == str(run.id)]


def test_output_printed_before_a_record_is_logged_before_it(bind: Bind, start_supervisor: Start) -> None:
    bind(printing.app)
    texts = [f"report {number}" for number in range(20)]
    made = printing.print_and_log.enqueue_many(texts)
    lines = logged(start_supervisor)
    for run, text in zip(made, texts, strict=True):
        assert about(lines, run) == [f"{text} printed", f"{text} logged"]


# Rewritten lines


@pytest.mark.parametrize("ends", ["", "\n", "\r\n"])
def test_the_last_state_of_a_progress_bar_is_logged(bind: Bind, start_supervisor: Start, ends: str) -> None:
    bind(printing.app)
    run = printing.bars.enqueue(ends)
    (state,) = about(logged(start_supervisor), run)
    assert state == f"pages: 100%|{'#' * 20}| 2000/2000"


def test_a_progress_bar_that_erases_itself_leaves_its_last_state(bind: Bind, start_supervisor: Start) -> None:
    bind(printing.app)
    run = printing.bars.enqueue(f"\r{' ' * 50}\r")
    (state,) = about(logged(start_supervisor), run)
    assert state.startswith("pages: 100%")


def test_crlf_lines_and_progress_states_between_lines(bind: Bind, start_supervisor: Start) -> None:
    bind(printing.app)
    run = printing.paging.enqueue(1)
    assert "\n".join(about(logged(start_supervisor), run)) == "page 3\na line\nanother\npage 4"


class Reading:
    """Output that arrives in pieces, as from a slow step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int = OUTPUT_LIMIT) -> None:
        reader, self.writer = os.pipe()
        os.set_blocking(reader, False)
        self.lines: list[str] = []
        monkeypatch.setattr(worker_output.log, "info", lambda _, line, **about: self.lines.append(line))
        monkeypatch.setattr(worker_output.log, "warning", lambda _, line, **about: self.lines.append(line))
        monkeypatch.setattr(worker_output.log, "isEnabledFor", lambda level: True)
        self.output = WorkerOutput(reader, lambda token: {}, limit)

    def write(self, *pieces: bytes) -> "Reading":
        for piece in pieces:
            os.write(self.writer, piece)
            self.output.read()
        return self

    def end(self) -> list[str]:
        os.close(self.writer)
        self.output.read_rest()
        return self.lines


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    def read(*pieces: bytes) -> list[str]:
        async def main() -> list[str]:
            return Reading(monkeypatch).write(*pieces).end()

        return asyncio.run(main())

    return read


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"one\r", b"\ntwo\n"], ["one", "two"]),
        ([b"\r 1%", b"\r 2", b"0%\r", b"\r 30%"], [" 30%"]),
        ([b"1%\r", b"2%\r", b"done\n"], ["done"]),
        ([b"\r100%", b"\n", b"next\n"], ["100%", "next"]),
        ([b"wait ", b"and see\r", b"  \r"], ["wait and see"]),
        ([b"a\rb ", b"c\n"], ["b c"]),
        ([b"\r\r\r\n"], [""]),
        ([b"caf\xc3", b"\xa9\n"], ["café"]),
    ],
    ids=repr,
)
def test_lines_that_arrive_in_pieces(reading: Callable[..., list[str]], pieces: list[bytes], lines: list[str]) -> None:
    assert reading(*pieces) == lines


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"a", b"bc", b" "]), max_size=12), st.data())
def test_lines_do_not_depend_on_how_the_output_is_split(texts: list[bytes], data: st.DataObject) -> None:
    text = b"".join(texts)
    cut = data.draw(st.integers(0, len(text)))
    with pytest.MonkeyPatch.context() as patch:

        async def main(*pieces: bytes) -> list[str]:
            return Reading(patch).write(*filter(None, pieces)).end()

        whole, in_two = asyncio.run(main(text)), asyncio.run(main(text[:cut], text[cut:]))
    assert [line.strip() for line in "\n".join(whole).split("\n")] == [
        line.strip() for line in "\n".join(in_two).split("\n")
    ]


def test_a_long_progress_bar_is_logged_periodically(
    monkeypatch: pytest.MonkeyPatch, reading: Callable[..., list[str]]
) -> None:
    monkeypatch.setattr(worker_output, "_REWRITTEN_SECONDS", -1.0)  # each time that it is read
    assert reading(b"\r1%", b"\r2%", b"\r3%", b"\r4%\n") == ["2%", "3%", "4%"]


# Output beyond the limit


def test_output_above_the_limit_is_dropped_and_reported_once(bind: Bind, start_supervisor: Start) -> None:
    bind(printing.app)
    first, second = printing.chatting.enqueue(5), printing.chatting.enqueue(5)
    lines = logged(start_supervisor)
    for run in (first, second):
        messages = about(lines, run)
        assert sum(map(len, messages)) <= OUTPUT_LIMIT * 1.2
        kept = sum(message.count("x" * 99) for message in messages)
        (told,) = filter(None, map(DROPPED.fullmatch, messages))
        dropped = int(told[1].replace(",", ""))
        written = 5 * MIB // 100 // 100 * 100
        assert kept > 5000
        assert kept + dropped == written + 1, "and `not urgent`"
        assert float(told[2]) == pytest.approx(dropped / MIB * 100, abs=0.1)
        assert told[3] == "1.0"
        assert "not urgent" not in messages
        assert "urgent" in messages, "an error after a flood"
        assert messages[-1] == told[0]


def test_the_limit_is_an_option(bind: Bind, start_supervisor: Start) -> None:
    bind(printing.app)
    run = printing.chatting.enqueue(3)
    messages = about(logged(start_supervisor, "--output-limit", "8 MiB"), run)
    assert sum(message.count("x" * 99) for message in messages) == 3 * MIB // 100 // 100 * 100
    assert not list(filter(None, map(DROPPED.fullmatch, messages)))


@pytest.mark.parametrize(("job", "most"), [(printing.logging_much, MIB), (printing.shouting, MIB * 9 // 8)])
def test_log_records_count_too(bind: Bind, start_supervisor: Start, job: Any, most: int) -> None:
    bind(printing.app)
    run = job.enqueue(3000)
    messages = about(logged(start_supervisor), run)
    *kept, told = messages
    assert most * 0.8 < sum(map(len, kept)) <= most
    match = DROPPED.fullmatch(told)
    assert match is not None
    assert len(kept) + int(match[1].replace(",", "")) == 3000
    assert [int(message.split()[1]) for message in kept] == list(range(len(kept))), "one gap"


def test_a_crash_has_its_evidence_after_any_amount_of_output(bind: Bind, start_supervisor: Start) -> None:
    bind(printing.app)
    run = printing.crashing.enqueue(3)
    messages = about(logged(start_supervisor), run)
    assert run.status() is Status.FAILED
    (attempt,) = run.attempts()
    assert "these are my last words" in (attempt.error or "")
    assert len(list(filter(None, map(DROPPED.fullmatch, messages)))) == 1


def test_an_unused_quota_reports_nothing() -> None:
    allowance = OutputQuota(1000)
    assert allowance.take(200)
    assert allowance.renew() == ""
    assert not allowance.take(2000)
    assert not allowance.take(1), "one gap"
    assert allowance.take(1, level=logging.ERROR)
    assert allowance.renew().startswith("2 lines, 0.0 MiB of output dropped")
    assert allowance.take(200)


def test_output_between_two_tasks_counts_for_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> list[str]:
        reading = Reading(monkeypatch, limit=1000).write(b"y" * 2000 + b"\n")
        reading.output.forget()
        return reading.write(b"of the task\n").end()

    told, line = asyncio.run(main())
    assert told.startswith("1 line, 0.0 MiB")
    assert line == "of the task"

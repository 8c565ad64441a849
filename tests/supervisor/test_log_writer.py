"""A supervisor keeps working if its log is not read or cannot be written, and reports the missing lines."""

import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from apps import talking
from harness import eventually
from places import APPS

from underway import Status, Underway
from underway.supervisor.logs import writer as log_writer
from underway.supervisor.logs.writer import LogWriter

Bind = Callable[[Underway], Underway]

_LINES = log_writer._MOST_WAITING // 1000


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe of the smallest possible size."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def _logger(descriptor: int) -> tuple[logging.Logger, LogWriter]:
    logger, handler = logging.Logger("told"), LogWriter(descriptor)
    logger.addHandler(handler)
    return logger, handler


def _read_until(reader: int, last: str) -> list[str]:
    read = b""
    while not read.endswith(f"{last}\n".encode()):
        read += os.read(reader, 65_536)
    return read.decode().splitlines()


def test_lines_wait_for_their_reader_in_order(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    logger, handler = _logger(writer)
    for number in range(10_000):
        logger.info("line %d", number)
    assert _read_until(reader, "line 9999") == [f"line {number}" for number in range(10_000)]
    handler.close()


def test_excess_lines_are_dropped_and_the_gap_is_reported(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    logger, handler = _logger(writer)
    for number in range(2 * _LINES):
        logger.info("%d %s", number, "x" * 1000)
    logger.info("last of the first")
    # Lines are accepted again only when there is room for many.
    os.read(reader, 4096)
    logger.info("one of many")
    for _ in range(_LINES * 3 // 4):
        os.read(reader, 1000)
    eventually(lambda: handler._taken - handler._done < log_writer._ENOUGH_READ)
    logger.info("first of the second")
    *_, last, notice, after = _read_until(reader, "first of the second")
    kept = int(last.split()[0]) + 1
    assert kept < _LINES
    assert notice == f"{2 * _LINES - kept + 2:,} log lines dropped: the log was not read"
    assert after == "first of the second"
    handler.close()


def test_a_bug_that_ends_the_supervisor_is_logged() -> None:
    program = """
from underway.supervisor.logs import format
format.configure(json=False, level=20)
raise ValueError("a bug")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 1
    assert re.match(r"\S+ CRITICA the supervisor ends because of a bug\n    Traceback", done.stderr)
    assert done.stderr.endswith("ValueError: a bug\n")


def test_an_ignored_exception_is_logged() -> None:
    program = """
from underway.supervisor.logs import format
format.configure(json=True, level=20)
class Leaving:
    def __del__(self): raise ValueError("a bug")
Leaving()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 0
    (line,) = map(json.loads, done.stderr.splitlines())
    assert "Leaving.__del__" in line["message"]
    assert line["exception"].endswith("ValueError: a bug")


def test_lines_lost_to_a_full_disk_are_reported(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    full = os.open("/dev/full", os.O_WRONLY)
    logger, handler = _logger(full)
    logger.info("one")
    logger.info("two\nin two lines")
    eventually(lambda: handler._failed == 3)
    os.dup2(writer, full)  # there is room again
    logger.info("four")
    assert _read_until(reader, "four") == ["3 log lines dropped: they could not be written", "four"]
    handler.close()
    os.close(full)


def test_a_pipe_made_non_blocking_by_its_reader_loses_no_line(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    logger, handler = _logger(writer)
    for number in range(5_000):
        logger.info("line %d", number)
    assert _read_until(reader, "line 4999") == [f"line {number}" for number in range(5_000)]
    handler.close()


@pytest.mark.parametrize(
    "becomes",
    [
        "it is not read",
        pytest.param("its reader is gone", marks=pytest.mark.chaos),
        pytest.param("the disk is full", marks=pytest.mark.chaos),
        pytest.param("there is none", marks=pytest.mark.chaos),
    ],
)
def test_a_supervisor_keeps_working_if_its_log_is_stuck_or_closed(
    bind: Bind, database: str, pipe: tuple[int, int], becomes: str
) -> None:
    bind(talking.app)
    reader, stderr = pipe
    if becomes == "its reader is gone":
        os.dup2(os.open(os.devnull, os.O_RDONLY), reader)
    elif becomes == "the disk is full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), stderr)
    flood = talking.floods.enqueue(0.1)
    command = [sys.executable, "-m", "underway.cli.supervisor", f"{APPS}/talking.py:app", "--procs", "1"]
    if becomes == "there is none":
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    supervisor = subprocess.Popen(
        command, stderr=stderr, env={**os.environ, "UNDERWAY_DATABASE_URL": database}, start_new_session=True
    )
    try:
        assert flood.wait(20) is Status.SUCCEEDED
        # The unread log has not ended it, and it does not wait for a reader when it stops.
        assert talking.sitting.enqueue(0.0).result(10) == 1
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(10) == 0
    finally:
        supervisor.kill()
        supervisor.wait()

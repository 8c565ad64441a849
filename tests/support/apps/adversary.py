"""Malicious steps, which attack the supervisor, other runs or the log. Each does so at its first attempt only."""

import asyncio
import ctypes
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from underway import Context, Done, Fail, Interrupt, Retry, RetryPolicy, To, Underway
from underway.wire import frames
from underway.wire import messages as wire

app = Underway()

WIRE = int(sys.argv[2]) if "underway.worker" in sys.orig_argv else -1

Scenario = Callable[[Context], Any]
scenarios: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    scenarios[function.__name__] = function
    return function


# Long enough that nothing is pipelined behind another step, which could forge messages about it.
LONG = 0.06


def misbehave(cx: Context, how: str) -> To[str, Any]:
    time.sleep(LONG)
    if cx.attempt > 1:
        return To.done("survived")
    returned: To[str, Any] = scenarios[how](cx)
    return returned


def follow(cx: Context, how: str) -> Done[str]:
    time.sleep(LONG)
    return To.done(how)


def innocent(cx: Context, number: int) -> Done[int]:
    time.sleep(LONG)
    return To.done(number)


quick = RetryPolicy(max_attempts=3, initial_interval=timedelta(milliseconds=20))
adversary = app.job("adversary").step(misbehave, retry=quick, timeout=timedelta(seconds=20)).step(follow)
innocents = app.job("innocents").step(innocent, timeout=timedelta(seconds=20))


# Frames that look like ours


def forge(*messages: wire.Message) -> None:
    data = b"".join(map(frames.encode, messages))
    while data:
        data = data[os.write(WIRE, data) :]


def result(token: int, **fields: Any) -> wire.Result:
    plain: dict[str, Any] = {"next_started": None, "ending": "done", "next_step": None, "retry_after": None}
    plain |= {"spawned": [], "seconds": 0.1, "cpu_seconds": 0.1, "peak_rss": 1, "payload": b'"forged"'}
    return wire.Result(token, **{**plain, **fields})


def token_of(cx: Context) -> int:
    token: int = cx._worker._token  # type: ignore[attr-defined]
    return token


@scenario
def results_of_others(cx: Context) -> Done[str]:
    forge(*(result(token) for token in range(200) if token != token_of(cx)))
    return To.done("in vain")


@scenario
def starts_and_skips_others(cx: Context) -> Done[str]:
    own = token_of(cx)
    forge(*(kind(token) for token in range(200) if token != own for kind in (wire.Started, wire.Skipped)))
    return To.done("in vain")


@scenario
def a_next_step_of_one_field(cx: Context) -> None:
    forge(result(token_of(cx), ending="next", next_step=["follow"]))
    time.sleep(60)


@scenario
def a_step_that_does_not_exist(cx: Context) -> None:
    forge(result(token_of(cx), ending="next", next_step=[7, {}, "x", [], None, 1.5, "y"]))
    time.sleep(60)


@scenario
def seconds_in_words(cx: Context) -> None:
    forge(result(token_of(cx), seconds="two"))
    time.sleep(60)


@scenario
def seconds_without_number(cx: Context) -> None:
    forge(result(token_of(cx), seconds=float("nan")))
    time.sleep(60)


@scenario
def an_ending_of_its_own(cx: Context) -> None:
    forge(result(token_of(cx), ending="glorious"))
    time.sleep(60)


@scenario
def children_without_anything(cx: Context) -> None:
    forge(result(token_of(cx), spawned=[{}]))
    time.sleep(60)


@scenario
def a_child_of_numbers(cx: Context) -> None:
    forge(result(token_of(cx), spawned=[{"id": 1, "job": 2, "input": "3"}]))
    time.sleep(60)


@scenario
def a_result_that_is_no_json(cx: Context) -> None:
    forge(result(token_of(cx), payload=b"\xff{"))
    time.sleep(60)


@scenario
def another_hello(cx: Context) -> None:
    forge(wire.Hello(1, app.manifest().to_json()))
    time.sleep(60)


@scenario
def a_hello_of_nonsense(cx: Context) -> None:
    forge(wire.Hello(1, b"[]"))
    time.sleep(60)


@scenario
def a_late_boot_failure(cx: Context) -> None:
    forge(wire.BootFailed(b"Traceback: it was me all along"))
    time.sleep(60)


@scenario
def messages_of_a_supervisor(cx: Context) -> None:
    forge(wire.Welcome("me", "here", "postgresql://elsewhere/"))
    time.sleep(60)


@scenario
def a_log_without_level(cx: Context) -> None:
    forge(wire.Log(token_of(cx), "high", 7, None, {}, b"hello"))  # type: ignore[arg-type]
    time.sleep(60)


@scenario
def progress_of_nonsense(cx: Context) -> Done[str]:
    forge(wire.Progress(token_of(cx), b"{"), wire.Progress(token_of(cx), b'"\\u0000"'))
    time.sleep(1.5)
    return To.done("stored nothing")


@scenario
def tokens_in_words(cx: Context) -> None:
    forge(wire.Started([token_of(cx)]))  # type: ignore[arg-type]
    time.sleep(60)


# What a step may raise and return


class Exits(ValueError):
    def __str__(self) -> str:
        sys.exit("of its text")


@scenario
def its_text_exits(cx: Context) -> None:
    raise Exits


@scenario
def its_text_is_interrupted(cx: Context) -> None:
    class Text(Fail):
        def __str__(self) -> str:
            raise KeyboardInterrupt

    raise Text


@scenario
def an_interrupt_without_text(cx: Context) -> None:
    class Quiet(Interrupt):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    raise Quiet


@scenario
def an_interrupt_of_its_own(cx: Context) -> None:
    raise Interrupt("because I say so")


@scenario
def again_after_words(cx: Context) -> None:
    again = Retry("later")
    again.after = "a while"  # type: ignore[assignment]
    raise again


@scenario
def next_in_a_million_years(cx: Context) -> To[str, Any]:
    return To.next("x", delay=timedelta.max)


@scenario
def generator_exit(cx: Context) -> None:
    raise GeneratorExit


@scenario
def cancelled_error(cx: Context) -> None:
    raise asyncio.CancelledError


@scenario
def groups_in_groups(cx: Context) -> None:
    error: Exception = ValueError("innermost")
    for _ in range(5000):
        error = ExceptionGroup("group", [error])
    raise error


@scenario
def its_own_cause(cx: Context) -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    raise one


@scenario
def half_a_pair_in_the_note(cx: Context) -> Done[str]:
    cx.progress(1, 2, "half \ud800 \0")
    return To.done("noted")


@scenario
def half_a_pair_in_the_log(cx: Context) -> Done[str]:
    cx.log.info("half \ud800 \0")
    logging.getLogger("half \ud800").warning("by name")
    return To.done("logged")


@scenario
def a_to_that_was_bent(cx: Context) -> Any:
    to: Any = To.next("x")
    to.delay = "a while"
    return to


# Attacks on processes


@scenario
def kills_the_guardian(cx: Context) -> Done[str]:
    parent = os.getppid()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                line = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if int(stat[1]) == parent and b"guardian" in line:
                os.kill(int(name), signal.SIGSTOP)
                os.kill(int(name), signal.SIGKILL)
    return To.done("it is started again")


@scenario
def tells_its_supervisor(cx: Context) -> Done[str]:
    for number in (
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGALRM,
        signal.SIGPROF,
        signal.SIGCHLD,
        signal.SIGWINCH,
        signal.SIGPIPE,
        signal.SIGURG,
        signal.SIGCONT,
    ):
        os.kill(os.getppid(), number)
    return To.done("who did not care")


@scenario
def adopts_no_orphans(cx: Context) -> None:
    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)  # not a subreaper any more
    ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # and not notified of the supervisor's death
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(600)"], {"MARK": "hidden"})
        os._exit(0)
    os.wait()
    os._exit(9)


@scenario
def keeps_the_output_open(cx: Context) -> None:
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    os._exit(9)


@scenario
def ten_thousand_threads(cx: Context) -> Done[str]:
    threading.stack_size(64 * 1024)
    stop = threading.Event()
    made: list[threading.Thread] = []
    enough = time.monotonic() + 5  # fewer on a busy machine
    try:
        while len(made) < 10_000 and time.monotonic() < enough:
            made.append(threading.Thread(target=stop.wait, daemon=True))
            made[-1].start()
    except RuntimeError:
        pass
    time.sleep(1.5)
    stop.set()
    return To.done(str(len(made)))


@scenario
def no_more_files(cx: Context) -> Done[str]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    return To.done("none")


@scenario
def its_last_breath_in_the_log(cx: Context) -> None:
    print("x" * 3_000_000 + "\r\n\x1b[2J\x1b]0;title\x07", flush=True)
    os._exit(9)

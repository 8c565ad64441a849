"""A mixed load. CHAOS_SEED, the run's number and the attempt determine what a step does and returns.

CHAOS_FOLDER is a folder in which steps record the processes that they have left behind.
"""

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import time
import zlib
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Never

from underway import Context, Done, Fail, Retry, RetryPolicy, To, Underway
from underway.client.job import Job
from underway.definition.options import StepOptions

app = Underway()

SEED = os.environ.get("CHAOS_SEED", "")
# An unusual duration, by which left-behind processes are distinguished from others that reuse their PIDs.
DAEMON_SECONDS = "86413"
MOST_ATTEMPTS = 4
MOST_CRASHES = 20
MOST_POISONINGS = 3


@dataclass
class Item:
    """`number` is different for every run."""

    number: int


@dataclass
class Half:
    number: int
    value: int


@dataclass
class Answer:
    number: int
    value: int


@dataclass
class Birth:
    """The attempt that enqueued a child, and the child's number."""

    parent: str
    step: str
    attempt: int
    nth: int


def checksum(text: str) -> int:
    return zlib.crc32(text.encode())


def luck(cx: Context, item: Item) -> float:
    """A number between 0 and 1, fixed for this attempt. Late attempts get a good one, because back-offs grow."""
    if cx.attempt > 5:
        return 1.0
    return random.Random(f"{SEED}/{cx.job}/{cx.step}/{item.number}/{cx.attempt}").random()


def answer(cx: Context, item: Item) -> Done[Answer]:
    return To.done(Answer(item.number, value_of(cx.job, item.number)))


def value_of(job: str, number: int) -> int:
    """The result that a job computes from the number of a run."""
    value = checksum(f"{job} {number}")
    return checksum(f"{value}") if job == "pairs" else value


def children_of(step: str, number: int) -> int:
    """How many children a run of this number enqueues at a step of the job parents."""
    return number % 4 if step == "spawn" else number % 3


# Innocents


def noop(cx: Context, item: Item) -> Done[Answer]:
    return answer(cx, item)


def first(cx: Context, item: Item) -> To[Half]:
    half = Half(item.number, checksum(f"{cx.job} {item.number}"))
    return To.next(half, delay=timedelta(seconds=0.3)) if item.number % 7 == 0 else To.next(half)


def second(cx: Context, half: Half) -> Done[Answer]:
    return To.done(Answer(half.number, checksum(f"{half.value}")))


def burn(cx: Context, item: Item) -> Done[Answer]:
    end = time.process_time() + 0.005 + 0.295 * luck(cx, item) ** 2
    while time.process_time() < end:
        pass
    return answer(cx, item)


def leave_daemons(cx: Context, item: Item) -> Done[Answer]:
    """Start a daemon that can be attributed only by its parent."""
    for environment in (None, {"PATH": os.defpath}):
        daemon = subprocess.Popen(["sleep", DAEMON_SECONDS], start_new_session=True, env=environment)
        Path(os.environ["CHAOS_FOLDER"], str(daemon.pid)).touch()
        daemon.returncode = 0  # not ours to collect
    return answer(cx, item)


# Parents: an attempt that fails after cx.enqueue must have no children


def spawn(cx: Context, item: Item) -> To[Item]:
    _enqueue_children(cx, item)
    return To.next(item)


def spawn_and_end(cx: Context, item: Item) -> Done[Answer]:
    _enqueue_children(cx, item)
    return answer(cx, item)


def _enqueue_children(cx: Context, item: Item) -> None:
    for nth in range(children_of(cx.step, item.number)):
        cx.enqueue(children, Birth(str(cx.run_id), cx.step, cx.attempt, nth))
    if luck(cx, item) < 0.2:
        raise RuntimeError("after cx.enqueue")
    if luck(cx, item) < 0.25:
        os._exit(1)


def child(cx: Context, birth: Birth) -> Done[Birth]:
    return To.done(birth)


# Culprits


def die_sometimes(cx: Context, item: Item) -> Done[Answer]:
    if luck(cx, item) < 0.2:
        _die(item.number)
    return answer(cx, item)


def die(cx: Context, item: Item) -> Done[Answer]:
    _die(item.number)
    return answer(cx, item)


def _die(number: int) -> None:
    match number % 4:
        case 0:
            ctypes.string_at(0)
        case 1:
            os._exit(number % 3)
        case 2:
            os.kill(os.getpid(), signal.SIGKILL)
        case 3:
            subprocess.Popen(["sleep", DAEMON_SECONDS], start_new_session=True)
            os.abort()


def fail_sometimes(cx: Context, item: Item) -> Done[Answer]:
    drawn = luck(cx, item)
    if drawn < 0.05:
        raise Fail("no hope")
    if drawn < 0.2:
        raise Retry(after=timedelta(seconds=drawn))
    if drawn < 0.4:
        raise ValueError(f"drew {drawn}")
    return answer(cx, item)


def take_too_long(cx: Context, item: Item) -> Done[Answer]:
    if luck(cx, item) < 0.5:
        time.sleep(60)
    return answer(cx, item)


def ignore_interrupts(cx: Context, item: Item) -> Done[Answer]:
    while luck(cx, item) < 0.5:
        with contextlib.suppress(BaseException):
            time.sleep(60)
    return answer(cx, item)


def hog(cx: Context, item: Item) -> Done[Answer]:
    block = bytearray(b"x") * ((150 if luck(cx, item) < 0.5 else 10) << 20)
    time.sleep(1)
    del block
    return answer(cx, item)


quick = RetryPolicy(
    max_attempts=MOST_ATTEMPTS, initial_interval=timedelta(seconds=0.05), max_interval=timedelta(seconds=0.5)
)
usual: StepOptions = {"lease": timedelta(seconds=2), "max_crashes": MOST_CRASHES, "retry": quick}
short: StepOptions = {**usual, "timeout": timedelta(seconds=0.3)}
limited: StepOptions = {**usual, "memory_limit": "130 MiB"}
poisonous: StepOptions = {**usual, "max_crashes": MOST_POISONINGS}

children = app.job("children").step(child, **usual)

jobs: dict[str, Job[Item, Never, Any]] = {
    "noops": app.job("noops").step(noop, **usual),
    "pairs": app.job("pairs").step(first, **usual).step(second, **usual),
    "burns": app.job("burns").step(burn, **usual),
    "daemons": app.job("daemons").step(leave_daemons, **usual),
    "parents": app.job("parents").step(spawn, **usual).step(spawn_and_end, **usual),
    "mortals": app.job("mortals").step(die_sometimes, **usual),
    "poisons": app.job("poisons").step(die, **poisonous),
    "flaky": app.job("flaky").step(fail_sometimes, **usual),
    "slow": app.job("slow").step(take_too_long, **short),
    "stubborn": app.job("stubborn").step(ignore_interrupts, **short),
    "hogs": app.job("hogs").step(hog, **limited),
}
# How many of each job among a hundred or so.
weights = {
    "noops": 25,
    "pairs": 25,
    "burns": 15,
    "daemons": 2,
    "parents": 25,
    "mortals": 6,
    "poisons": 0.5,
    "flaky": 15,
    "slow": 1,
    "stubborn": 0.4,
    "hogs": 1,
}
# Runs of these jobs may use up their attempts; others must not fail.
failing = {"parents", "flaky", "slow", "stubborn"}
# Steps of these jobs kill their workers.
deadly = {"parents", "mortals", "poisons", "hogs"}

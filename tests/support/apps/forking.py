"""Steps that fork, and use their context where it is no longer valid. They write marker files to FOLDER."""

import asyncio
import json
import logging
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import IO, Any

from underway import Context, Done, RetryPolicy, To, Underway

app = Underway()
log = logging.getLogger("pages")
once = RetryPolicy(max_attempts=1)


def note(cx: Context, text: str) -> Done[str]:
    return To.done(text)


notes = app.job("notes").step(note)

Uses = dict[str, Callable[[Context[Any]], object]]
USES: Uses = {
    "cx.enqueue": lambda cx: cx.enqueue(notes, "too late"),
    "cx.progress": lambda cx: cx.progress(1, 2),
    "cx.tx": lambda cx: cx.tx,
}


def said_to(uses: Uses, cx: Context[Any]) -> dict[str, str]:
    """The exception that each use raises, as text."""
    said = {}
    for name, use in uses.items():
        try:
            said[name] = repr(use(cx))
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def in_child(work: Callable[[], Any]) -> Any:
    """Run `work` in a forked child and return its result."""
    reads, writes = os.pipe()
    if os.fork() == 0:
        os.write(writes, json.dumps(work()).encode())
        os._exit(0)
    os.close(writes)
    os.wait()
    with open(reads) as answer:
        return json.load(answer)


# Uses in a child


def use_in_child(cx: Context[list[str]], before: str) -> Done[dict[str, str]]:
    said: dict[str, str] = in_child(lambda: said_to(USES, cx) | {"plain": f"{cx.run_id} {cx.attempt} {cx.state}"})
    cx.enqueue(notes, before)
    return To.done(said)


async def use_in_child_async(cx: Context[list[str]], before: str) -> Done[dict[str, str]]:
    return use_in_child(cx, before)


def use_connection_in_child(cx: Context, text: str) -> Done[dict[str, str]]:
    connection, cursor = cx.tx, cx.tx.cursor()
    connection.execute("insert into written values (%s)", [f"{text} before"])
    uses: Uses = {
        "execute": lambda _: connection.execute("insert into written values ('child')"),
        "its cursor": lambda _: cursor.execute("insert into written values ('child')"),
        "a savepoint": lambda _: connection.transaction().__enter__(),
        "close": lambda _: connection.close(),
    }
    said: dict[str, str] = in_child(lambda: said_to(uses, cx))
    connection.execute("insert into written values (%s)", [f"{text} after"])
    return To.done(said)


def pickle_context(cx: Context, nothing: None) -> Done[str]:
    said = said_to({"pickle": lambda cx: pickle.dumps(cx)}, cx)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        said |= said_to({"pool": lambda cx: pool.submit(print, cx).result()}, cx)
    assert said["pickle"] == said["pool"], said
    return To.done(said["pool"])


# Uses after the end

kept: list[Context[Any]] = []


def keep(cx: Context, nothing: None) -> Done:
    kept.append(cx)
    return To.done()


def use_kept(cx: Context, nothing: None) -> Done[dict[str, str]]:
    return To.done(said_to(USES, kept.pop()))


def enqueue_past_the_end(cx: Context, nothing: None) -> Done:
    """Let a thread enqueue in a loop; a file records the runs that it got and the exception that stopped it."""

    def enqueue() -> None:
        given: list[str] = []
        try:
            while len(given) < 10_000:
                given.append(str(cx.enqueue(notes, "from a thread").id))
        except Exception as error:
            given.append(repr(error))
        part = Path(os.environ["FOLDER"]) / "part"
        part.write_text("\n".join(given))
        part.rename(part.with_name("given"))

    threading.Thread(target=enqueue).start()
    time.sleep(0.01)
    return To.done()


# Children that leave the step

files: list[IO[str]] = []


def come_back(cx: Context, how: str) -> Done[int]:
    """Let a child leave the step, and return its exit code."""
    file = open(Path(os.environ["FOLDER"]) / how, "w")  # noqa: SIM115 - the child must not flush its buffer
    files.append(file)  # kept in a global: a local variable would be closed, and flushed, when the child returns
    file.write("once\n")
    if "tx" in how:
        cx.tx.execute("insert into written values (%s)", [how])
    child = os.fork()
    if child == 0:
        if "exits" in how:
            raise SystemExit(3)
        if "raises" in how:
            raise ValueError("of the child")
        return To.done(-1)
    _, status = os.waitpid(child, 0)
    file.close()
    return To.done(os.waitstatus_to_exitcode(status))


async def come_back_async(cx: Context, how: str) -> Done[int]:
    other = asyncio.create_task(_mark_the_end(how))
    await asyncio.sleep(0)
    done = come_back(cx, how)
    other.cancel()
    return done


async def _mark_the_end(how: str) -> None:
    try:
        await asyncio.sleep(60)
    finally:
        with open(Path(os.environ["FOLDER"]) / f"{how}.ended", "a") as file:
            file.write("once\n")


class Forked:
    """A state whose factory forks."""

    def __init__(self) -> None:
        self.child = os.fork()


def tell_pid(cx: Context[Forked], nothing: None) -> Done[int]:
    with open(Path(os.environ["FOLDER"]) / "told", "a") as file:
        file.write(f"{os.getpid()}\n")
    _, status = os.waitpid(cx.state.child, 0)
    return To.done(os.waitstatus_to_exitcode(status))


# Logs


def log_in_children(cx: Context, method: str) -> Done:
    if method == "fork":
        if os.fork() == 0:
            _log(cx.log)
            os._exit(0)
        os.wait()
    else:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            pool.submit(_log, log).result()
    return To.done()


def _log(logger: logging.Logger) -> None:
    logger.debug("too quiet")
    logger.warning("page %d\nin two lines", 7)
    print("printed, ", end="", flush=True)
    logger.info("\udcff \x00 \x1b " + "x" * 100_000 + "the end")
    try:
        raise ValueError("font missing")
    except ValueError:
        logger.exception("not rendered")


uses = app.job("uses", state=lambda: ["made"]).step(use_in_child, retry=once)
uses_async = app.job("uses-async", state=lambda: ["made"]).step(use_in_child_async, retry=once)
connections = app.job("connections").step(use_connection_in_child, retry=once)
pickles = app.job("pickles").step(pickle_context, retry=once)
keeps = app.job("keeps").step(keep, retry=once)
uses_kept = app.job("uses-kept").step(use_kept, retry=once)
threads = app.job("threads").step(enqueue_past_the_end, retry=once)
returns = app.job("returns").step(come_back, retry=once)
returns_async = app.job("returns-async").step(come_back_async, retry=once)
pids = app.job("pids", state=Forked).step(tell_pid, retry=once)
logs = app.job("logs").step(log_in_children, retry=once)

"""Runs one task and says how it ended."""

import functools
import logging
import sys
import threading
import time
import traceback
from collections.abc import Awaitable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import orjson

from underway import codec, context, keys, wire
from underway.app import Underway
from underway.client import Run
from underway.context import Context
from underway.errors import Fail, InsideStep, Interrupt, InvalidOption, JobDefinitionError, Retry
from underway.handover import To
from underway.ids import new_id
from underway.job import Job
from underway.manifest import Placement
from underway.retry import LONGEST
from underway.worker import forks
from underway.worker.contexts import Contexts
from underway.worker.conversation import Outbox
from underway.worker.guard import Interrupts
from underway.worker.logs import PLAIN_LOGS, Logs
from underway.worker.measure import Meter
from underway.worker.shorten import shorten
from underway.worker.state import States
from underway.worker.transaction import Transactions

if TYPE_CHECKING:
    import psycopg

    from underway.worker.loop import WorkerLoop

_LONGEST_ERROR = 32 * 1024
_LONGEST_NOTE = 1000
_PROGRESS_SECONDS = 0.1
# One statement writes them all, and a statement lives ten seconds at most.
_MOST_SPAWNED = 20_000
_MOST_SPAWNED_BYTES = 32 * 1024 * 1024

# The fields of a wire.Result from `ending` on.
Outcome: TypeAlias = tuple[wire.Ending, wire.Placement | None, float | None, list[wire.Spawn], float, float, int, bytes]


class Executor:
    """Executes the steps of one app, one task at a time."""

    def __init__(
        self,
        app: Underway,
        outbox: Outbox,
        guard: Interrupts,
        *,
        progress_seconds: float = _PROGRESS_SECONDS,
        logs: Logs = PLAIN_LOGS,
    ) -> None:
        self._app = app
        self._outbox = outbox
        self._guard = guard
        self._progress_seconds = progress_seconds
        self._logs = logs
        self._meter = Meter()
        self.transactions = Transactions(outbox, guard)
        self._contexts = Contexts()
        self._states = States(self._contexts, lambda made: self._loop.run_factory(made))
        self._spawning = threading.RLock()
        self._forks = forks.depth
        self._steps: dict[tuple[str, str], tuple[Job[Any, Any, Any], int]] = {}
        for job in app.jobs.values():
            for index, step in enumerate(job.compiled):
                for name in step.spec.names:
                    self._steps[job.name, name] = (job, index)

    def execute(self, task: wire.Task) -> Outcome:
        """How the step ended, whatever it does short of ending the process."""
        self._meter.start()
        attempt = _Attempt(
            self._app,
            self._outbox,
            self._guard,
            self.transactions,
            task.token,
            self._progress_seconds,
            self._spawning,
            self._logs,
        )
        ending: wire.Ending
        placement: wire.Placement | None = None
        retry_after: float | None = None
        try:
            job, index = self._steps[task.job, task.step]
            ending, payload, placement = self._contexts.fresh().run(self._handed_over, job, index, task, attempt)
        except Interrupt as error:
            ending, payload = "interrupted", _error_text(error, _text(error))
            if _text(error) == "timeout":  # a cancel or a shutdown is not a failure
                self._logs.attempt_failed(task, error)
        except Fail as error:
            ending, payload = "fail", _error_text(error)
            self._logs.attempt_failed(task, error)
        except Retry as error:
            ending, payload = "retry", _error_text(error)
            retry_after = _seconds(error)
            self._logs.attempt_failed(task, error, logging.WARNING)
        except (SystemExit, KeyboardInterrupt) as error:
            fix = "a step ends by returning To.next(...) or To.done(...), or by raising Fail or Retry"
            ending, payload = "retry", _error_text(error, f"the step raised {type(error).__name__}: {fix}")
            self._logs.attempt_failed(task, error)
        except BaseException as error:
            ending, payload = "retry", _error_text(error)
            self._logs.attempt_failed(task, error)
        with self._spawning:  # a thread in cx.enqueue either completes before this or gets InsideStep
            spawned = attempt.spawned if ending in ("next", "done") else []
        outcome = (ending, placement, retry_after, spawned, *self._meter.stop(), payload)
        return self._end_transaction(task, outcome) if self.transactions.token == task.token else outcome

    def _end_transaction(self, task: wire.Task, outcome: Outcome) -> Outcome:
        try:
            return self.transactions.end(task, outcome)
        except Interrupt as error:
            return ("interrupted", None, None, [], *outcome[4:7], _error_text(error, _text(error)))
        except Fail as error:
            self._logs.attempt_failed(task, error)
            return ("fail", None, None, [], *outcome[4:7], _error_text(error))
        except Exception as error:
            self._logs.attempt_failed(task, error)
            return ("retry", None, None, [], *outcome[4:7], _error_text(error))

    def close(self) -> None:
        """For a process that goes on without it. A worker never comes to it: it is killed."""
        self.transactions.close()
        if "_loop" in vars(self):
            self._loop.close()

    @functools.cached_property
    def _loop(self) -> "WorkerLoop":
        """Made for the first step that is async; a worker without such never imports asyncio."""
        from underway.worker.loop import WorkerLoop

        return WorkerLoop(self._guard, self._logs.logger("underway.worker"))

    def _call(self, job: Job[Any, Any, Any], index: int, task: wire.Task, attempt: "_Attempt") -> Any:
        step = job.compiled[index]
        cx: Context[Any] = Context(
            run=task.run,
            job=task.job,
            step=step.spec.name,
            attempt=task.attempt,
            ends_at=time.time() + task.timeout,
            worker=attempt,
            scheduled_at=task.scheduled_at,
        )
        arguments = (cx, codec.decode(task.payload, step.input_type)) if step.takes_input else (cx,)
        context.enter(cx)
        try:
            try:
                self._guard.begin(task.token)
                if job.make_state is not None:
                    attempt.state = self._states.of(job)
                returned = step.function(*arguments)
                if not isinstance(returned, To) and isinstance(returned, Awaitable):
                    return self._loop.run_step(returned)
                return returned
            finally:
                if forks.depth != self._forks:
                    forks.leave(sys.exc_info()[1])
                self._guard.end()
        finally:
            context.enter(None)

    def _handed_over(
        self, job: Job[Any, Any, Any], index: int, task: wire.Task, attempt: "_Attempt"
    ) -> tuple[wire.Ending, bytes, wire.Placement | None]:
        returned = self._call(job, index, task, attempt)
        step = job.compiled[index]
        if not isinstance(returned, To):
            raise JobDefinitionError(
                f"step {step.spec.name!r} returned {type(returned).__name__}; return To.next(value) or To.done(result)"
            )
        if returned.ends:
            return "done", codec.encode(returned.value, job.result_type), None
        if index + 1 == len(job.compiled):
            raise JobDefinitionError(f"step {step.spec.name!r} is the last one: return To.done(result), not To.next")
        following = job.compiled[index + 1]
        placed = following.spec.placement
        delay = placed.delay if returned.delay is None else returned.delay
        payload = codec.encode(returned.value, following.input_type)
        placement = (
            following.spec.name,
            placed.queue,
            placed.priority,
            delay.total_seconds(),
            placed.keep.total_seconds(),
            placed.concurrency_key and keys.fill(placed.concurrency_key, payload),
            placed.concurrency_limit,
        )
        return "next", payload, placement


class _Attempt:
    """What a step does through its context while it runs."""

    __slots__ = (
        *("_app", "_forks", "_guard", "_logs", "_outbox", "_progress_seconds", "_reported_at", "_spawned_bytes"),
        *("_spawning", "_token", "_transactions"),
        *("spawned", "state"),
    )

    def __init__(
        self,
        app: Underway,
        outbox: Outbox,
        guard: Interrupts,
        transactions: Transactions,
        token: int,
        progress_seconds: float,
        spawning: threading.RLock,
        logs: Logs,
    ) -> None:
        self._app = app
        self._outbox = outbox
        self._guard = guard
        self._forks = forks.depth
        self._spawning = spawning
        self._transactions = transactions
        self._token = token
        self._logs = logs
        self._progress_seconds = progress_seconds
        self._reported_at = 0.0
        self._spawned_bytes = 0
        self.spawned: list[wire.Spawn] = []
        self.state: Any = None

    def report(self, progress: dict[str, Any]) -> None:
        self._check("cx.progress")
        now = time.monotonic()
        if now - self._reported_at >= self._progress_seconds:
            self._reported_at = now
            # What cannot be stored would cost others theirs, what is long the renewals that it travels with.
            note = _storable(shorten(progress["note"], _LONGEST_NOTE))
            progress["note"] = note.encode(errors="replace").decode()  # a name of a file may hold half a pair
            self._outbox.send(wire.Progress(self._token, orjson.dumps(progress)))
            self._guard.raise_postponed()

    def spawn(self, job: Job[Any, Any, Any], value: Any) -> Run[Any]:
        first = job.compiled[0]
        placed: Placement = first.spec.placement
        if placed.unique_key is not None:
            raise InvalidOption(
                f"job {job.name!r} has a unique_key, and whether a run with it is live shows only when it is written: "
                f"enqueue it in the step's own transaction, job.enqueue(value, conn=cx.tx)"
            )
        payload = codec.encode(value, first.input_type)
        run_id = new_id()
        spawn: wire.Spawn = {
            "id": str(run_id),
            "job": job.name,
            "step": first.spec.name,
            "queue": placed.queue,
            "priority": placed.priority,
            "delay": placed.delay.total_seconds(),
            "keep": placed.keep.total_seconds(),
            "concurrency_key": placed.concurrency_key and keys.fill(placed.concurrency_key, payload),
            "concurrency_limit": placed.concurrency_limit,
            "input": payload.decode(),
        }
        self._add(spawn, len(payload))
        return Run(self._app, run_id, job.result_type)

    def _add(self, spawn: wire.Spawn, size: int) -> None:
        self._check("cx.enqueue")  # before taking the lock, which another thread may have held during the fork
        with self._spawning:
            self._check("cx.enqueue")
            size += self._spawned_bytes
            if len(self.spawned) >= _MOST_SPAWNED or size > _MOST_SPAWNED_BYTES:
                raise InvalidOption(
                    f"cx.enqueue takes at most {_MOST_SPAWNED:,} runs and {_MOST_SPAWNED_BYTES >> 20} MiB of input per "
                    f"attempt: enqueue more in the step's own transaction, job.enqueue_many(values, conn=cx.tx)"
                )
            self._spawned_bytes = size
            self.spawned.append(spawn)

    def transaction(self) -> "psycopg.Connection[tuple[Any, ...]]":
        self._check("cx.tx")
        connection = self._transactions.open(self._token, lambda: self._check("cx.tx"))
        self._guard.raise_postponed()
        return connection

    def logger(self, name: str) -> logging.Logger:
        return self._logs.logger(name)

    def _check(self, call: str) -> None:
        """Refuse a call that cannot reach the supervisor. (In a child cx.enqueue returned runs that never existed.)"""
        if self._forks != forks.depth:
            raise InsideStep(
                f"{call} was used in a child process of the step, which cannot talk to the supervisor: return the "
                f"child's result to the step, and use cx in the step's own process"
            )
        if self._guard.running != self._token:
            raise InsideStep(
                f"{call} belongs to an attempt that has ended: use the cx that the step receives, and join threads "
                f"that use it before the step returns"
            )


def _error_text(error: BaseException, headline: str = "") -> bytes:
    """The traceback as UTF-8 that Postgres can store, of bounded length; the message is its last line."""
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException:  # the user's code says what its text is, and may even exit
        text = f"{type(error).__name__} (it cannot be printed)"
    if headline:
        text = f"{headline}\n\n{text}"
    return _storable(shorten(text, _LONGEST_ERROR)).encode(errors="replace")


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return ""


def _seconds(retry: Retry) -> float | None:
    """What a Retry asks for, as far as it is an answer: the policy decides where it is none."""
    try:
        return min(max(cast(timedelta, retry.after), timedelta(0)), LONGEST).total_seconds()
    except BaseException:  # it says nothing, or is of a class of the user's, which need not have called ours
        return None


def _storable(text: str) -> str:
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")

"""Steps and state factories written as `async def`: one event loop, which lasts as long as its worker."""

import asyncio
import contextlib
import contextvars
import inspect
import types
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator
from logging import Logger
from typing import Any

from underway.client.current_step import survives_step
from underway.errors import Interrupt
from underway.worker import forks
from underway.worker.interrupts import Interrupts


class AsyncInterrupt(Interrupt, asyncio.CancelledError):
    """An Interrupt to the user's code, and to asyncio and what is built on it the cancellation that they know.

    So a TaskGroup ends its tasks and `async with timeout(...)` lets it pass, which neither does for other errors.
    """


class WorkerLoop:
    """Runs one step at a time. Tasks of a state live on, but stand still while no step runs."""

    def __init__(self, guard: Interrupts, log: Logger) -> None:
        self._guard = guard
        self._log = log
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(self._begin)
        self._lasting: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    def run_step(self, step: Awaitable[Any]) -> Any:
        """What the step returns, when it and all tasks it has started have ended."""
        return self._run(_Run(self._loop, step, self._lasting, self._log))

    def run_factory(self, factory: Awaitable[Any]) -> Any:
        """What the factory returns; tasks it has started go on, and so does what they start, whenever that is."""
        lasting = contextvars.copy_context()
        lasting.run(survives_step.set, True)
        return lasting.run(self._run, _Run(self._loop, factory, self._lasting, self._log))

    def _begin(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        if survives_step.get():
            self._lasting.add(task)
        return task

    def close(self) -> None:
        """End what states have left running. A worker never comes to it: it is killed."""
        while left := asyncio.all_tasks(self._loop):
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.wait(left))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _run(self, run: "_Run") -> Any:
        # From here on no interrupt is raised where it could break the loop itself, or leave a task to the next step.
        with self._guard.delivering(run.interrupt):
            return run.to_its_end()


class _Run:
    """One awaitable on the loop, and the interrupt that may come for it at any moment."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        awaitable: Awaitable[Any],
        lasting: "weakref.WeakSet[asyncio.Task[Any]]",
        log: Logger,
    ) -> None:
        self._loop = loop
        self._log = log
        self._lasting = lasting
        self._coroutine = _awaited(awaitable)
        self._task: asyncio.Task[None] | None = None
        self._reason: str | None = None
        self._returned: Any = None
        self._error: BaseException | None = None
        self._forks = forks.depth

    def to_its_end(self) -> Any:
        self._task = task = self._loop.create_task(self._record())
        self._loop.call_soon(self._cancel_for_interrupt)  # for one that came before there was a task
        while not task.done():
            try:
                self._loop.run_until_complete(task)
            except BaseException as error:
                if forks.depth != self._forks:
                    forks.leave(error)
                # asyncio lets a SystemExit out of whatever task or callback raises it, and the step still stands.
                self._error = error
                task.cancel()
        if self._error is not None:
            raise self._error
        return self._returned

    async def _record(self) -> None:
        try:
            self._returned = await self._delivering(self._coroutine)
        except BaseException as error:
            self._error = self._error or _unwrapped(error)
        if forks.depth != self._forks:
            forks.leave(self._error)  # the tasks and the loop's descriptors belong to the parent
        await self._end_tasks()

    async def _end_tasks(self) -> None:
        """What is still here afterwards would run on in the steps to come: so an interrupt cannot cut this short."""
        while left := [task for task in asyncio.all_tasks() if task is not self._task and task not in self._lasting]:
            names = ", ".join(sorted(task.get_name() for task in left))
            self._log.warning("the step has ended, tasks that it left running are cancelled: %s", names)
            for task in left:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(left)

    # Interrupts

    def interrupt(self, reason: str) -> None:
        """Called between any two bytecodes of the main thread, by its signal handler."""
        if inspect.getcoroutinestate(self._coroutine) == inspect.CORO_RUNNING:
            raise AsyncInterrupt(reason)  # the step computes, or calls something that does
        self._reason = reason
        if self._task is None:
            return
        self._loop.call_soon_threadsafe(self._cancel_for_interrupt)  # wakes a loop that waits
        current = asyncio.current_task(self._loop)
        if current not in (None, self._task) and current not in self._lasting:
            raise AsyncInterrupt(reason)  # a task of the step computes, and lets nothing else run

    def _cancel_for_interrupt(self) -> None:
        if self._reason is not None and self._task is not None:
            self._task.cancel()

    @types.coroutine
    def _delivering(self, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """`await coroutine`, but a cancellation that stands for an interrupt reaches it as that."""
        resume: Callable[[Any], Any] = coroutine.send
        value: Any = None
        while True:
            try:
                awaited = resume(value)
            except StopIteration as end:
                return end.value
            try:
                yield awaited
                resume, value = coroutine.send, None
            except asyncio.CancelledError as error:
                resume, value = coroutine.throw, self._meaning(error)
            except BaseException as error:
                resume, value = coroutine.throw, error

    def _meaning(self, cancellation: asyncio.CancelledError) -> asyncio.CancelledError:
        if self._reason is None:
            return cancellation
        reason, self._reason = self._reason, None
        assert self._task is not None
        self._task.uncancel()  # for a step that has something to hand over in spite of it
        return AsyncInterrupt(reason)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _unwrapped(error: BaseException) -> BaseException:
    """A TaskGroup of Python 3.11 wraps the interrupt of its body in a group, as it does for no other cancellation."""
    wrapped: BaseException | None = error.subgroup(Interrupt) if isinstance(error, BaseExceptionGroup) else None
    while isinstance(wrapped, BaseExceptionGroup):
        wrapped = wrapped.exceptions[0]
    if wrapped is None:
        return error
    interrupt = AsyncInterrupt(*wrapped.args)
    interrupt.__cause__ = error
    return interrupt

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
    """To user code an Interrupt; to asyncio, and to libraries built on it, a cancellation.

    So a TaskGroup cancels its tasks and `async with timeout(...)` lets it pass, as they do only for a CancelledError.
    """


class EventLoop:
    """Runs one step at a time. The tasks of a `state=` factory live on, but stand still while no step runs."""

    def __init__(self, interrupts: Interrupts, log: Logger) -> None:
        self._interrupts = interrupts
        self._log = log
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(self._create_task)
        self._surviving: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    def run_step(self, step: Awaitable[Any]) -> Any:
        """The value that the step returns. All tasks that it has started have ended, too."""
        return self._run(step)

    def run_factory(self, factory: Awaitable[Any]) -> Any:
        """The value that the factory returns. Its tasks survive, and so do all tasks that they start later."""
        surviving = contextvars.copy_context()
        surviving.run(survives_step.set, True)
        return surviving.run(self._run, factory)

    def _create_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        if survives_step.get():
            self._surviving.add(task)
        return task

    def _run(self, awaitable: Awaitable[Any]) -> Any:
        execution = _Execution(self._loop, awaitable, self._surviving, self._log)
        # In this block no interrupt is raised where it could break the loop itself, or leave a task to the next step.
        with self._interrupts.delivered_by(execution.interrupt):
            return execution.run()

    def close(self) -> None:
        """End the tasks of states, and the loop. A worker does not call this: it is killed."""
        while left := asyncio.all_tasks(self._loop):
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.wait(left))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


class _Execution:
    """The execution of one awaitable, which an interrupt may reach at any moment."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        awaitable: Awaitable[Any],
        surviving: "weakref.WeakSet[asyncio.Task[Any]]",
        log: Logger,
    ) -> None:
        self._loop = loop
        self._log = log
        self._surviving = surviving
        self._coroutine = _as_coroutine(awaitable)
        self._task: asyncio.Task[None] | None = None
        self._reason: str | None = None  # of an interrupt for which the task was cancelled
        self._returned: Any = None
        self._error: BaseException | None = None
        self._forks = forks.depth

    def run(self) -> Any:
        self._task = task = self._loop.create_task(self._main())
        self._loop.call_soon(self._cancel_for_interrupt)  # an interrupt may have come before there was a task
        while not task.done():
            try:
                self._loop.run_until_complete(task)
            except BaseException as error:
                if forks.depth != self._forks:
                    forks.leave(error)
                # A SystemExit in any task or callback leaves the loop at once, while the step is not done.
                self._error = error
                task.cancel()
        if self._error is not None:
            raise self._error
        return self._returned

    async def _main(self) -> None:
        try:
            self._returned = await self._translate_cancellation(self._coroutine)
        except BaseException as error:
            self._error = self._error or _unwrap(error)
        if forks.depth != self._forks:
            forks.leave(self._error)  # the tasks and the loop's descriptors belong to the parent
        await self._end_tasks()

    async def _end_tasks(self) -> None:
        """End the tasks that the step has left running, or they would run on in later steps.

        An interrupt does not cut this short.
        """
        while left := [task for task in asyncio.all_tasks() if task is not self._task and task not in self._surviving]:
            names = ", ".join(sorted(task.get_name() for task in left))
            self._log.warning("the step has ended, tasks that it left running are cancelled: %s", names)
            for task in left:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(left)

    # Interrupts

    def interrupt(self, reason: str) -> None:
        """Called by the signal handler, between any two bytecodes of the main thread."""
        if inspect.getcoroutinestate(self._coroutine) == inspect.CORO_RUNNING:
            raise AsyncInterrupt(reason)  # the step itself is computing, or has called a function that is
        self._reason = reason
        if self._task is None:
            return
        self._loop.call_soon_threadsafe(self._cancel_for_interrupt)  # wakes the loop up if it waits
        current = asyncio.current_task(self._loop)
        if current not in (None, self._task) and current not in self._surviving:
            raise AsyncInterrupt(reason)  # a task of the step is computing, and nothing else can run

    def _cancel_for_interrupt(self) -> None:
        if self._reason is not None and self._task is not None:
            self._task.cancel()

    @types.coroutine
    def _translate_cancellation(self, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """`await coroutine`, but a cancellation on behalf of an interrupt reaches it as an AsyncInterrupt."""
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
                resume, value = coroutine.throw, self._translated(error)
            except BaseException as error:
                resume, value = coroutine.throw, error

    def _translated(self, cancellation: asyncio.CancelledError) -> asyncio.CancelledError:
        if self._reason is None:
            return cancellation
        reason, self._reason = self._reason, None
        assert self._task is not None
        self._task.uncancel()  # the step may catch the interrupt, await its cleanup, and still hand over
        return AsyncInterrupt(reason)


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _unwrap(error: BaseException) -> BaseException:
    """An interrupt of its body, which a TaskGroup of Python 3.11 wraps in a group, unlike any other cancellation."""
    wrapped: BaseException | None = error.subgroup(Interrupt) if isinstance(error, BaseExceptionGroup) else None
    while isinstance(wrapped, BaseExceptionGroup):
        wrapped = wrapped.exceptions[0]
    if wrapped is None:
        return error
    interrupt = AsyncInterrupt(*wrapped.args)
    interrupt.__cause__ = error
    return interrupt

"""What workers say about tasks, and what their deaths mean for them: one verdict per attempt."""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from logging import getLogger
from typing import NamedTuple

from underway.postgres.transitions import Attempt, succeed
from underway.supervisor.logs.headline import headline
from underway.supervisor.loops.backends import Backends
from underway.supervisor.loops.commit import Commits, Ended
from underway.supervisor.shutdown import until_unheard
from underway.supervisor.tasks.dispatch import Dispatch
from underway.supervisor.tasks.task import Task
from underway.supervisor.tasks.verdict import VERDICTS, Observation, settle, what_follows
from underway.supervisor.workers.kernel_kills import KernelKills
from underway.supervisor.workers.process import WorkerProcess
from underway.wire import frames, messages

log = getLogger("underway.supervisor")

_LONGEST_HEADLINE = 200


class Death(NamedTuple):
    """Of a worker with a task that it had begun, when we heard of it."""

    worker: WorkerProcess
    task: Task
    at: float


class ResultHandler:
    """Listens to the crew. `on_settled` is called after each batch of messages, when workers may be free; `stopping`
    tells whether we have been told to stop.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        commits: Commits,
        backends: Backends,
        held: dict[int, Task],
        kernel_kills: KernelKills,
        *,
        rng: random.Random,
        on_settled: Callable[[], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._dispatch = dispatch
        self._commits = commits
        self._backends = backends
        self._held = held
        self._kernel_kills = kernel_kills
        self._rng = rng
        self._on_settled = on_settled
        self._stopping = stopping
        self.unjudged: dict[int, Death] = {}  # by token: those of which it is not clear yet who is to blame
        self.ends: Counter[str] = Counter()  # kills by their reason, and runs lost with their leases

    def received(self, worker: WorkerProcess, message: messages.Message) -> None:
        match message:
            case messages.Result():
                self._ended(worker, message)
                if message.next_started is not None:
                    self._started(worker, message.next_started)
            case messages.Started(token):
                self._started(worker, token)
            case messages.Skipped(token):
                self._skipped(worker, token)
            case messages.Progress(token, payload):
                if task := worker.tasks.get(token):
                    task.progress = payload
            case messages.Transaction(token):
                if task := worker.tasks.get(token):
                    task.transaction = True
            case _:
                raise frames.BrokenFrame(f"{type(message).__name__} of a worker")

    def settled(self) -> None:
        self._on_settled()

    def died(self, worker: WorkerProcess) -> None:
        tasks, worker.tasks = list(worker.tasks.values()), {}
        self._backends.terminate(task.token for task in tasks if task.transaction)
        for task in tasks:
            task.worker = None
            if task.token not in self._held:
                continue  # lost: nothing may be written any more
            if task.started_at is not None:
                task.peak_rss = max(task.peak_rss, worker.peak_rss)
                self.unjudged[task.token] = Death(worker, task, time.monotonic())
                self._judge_in_time(task.token)
            elif self._dispatch.closed:
                self.release(task)
            else:
                self._dispatch.add([task])
        if not tasks and worker.kill_reason is None and worker.manifest is not None and not self._stopping():
            log.warning("an idle worker %s", worker.death, extra={"about": {"worker": worker.slot}})

    def _judge_in_time(self, token: int) -> None:
        """At once, but for a TERM that may have been sent to all of us: systemd's default is to stop a unit like that.
        It has killed the worker, and we are about to hear of our own; which of the two we see first is chance.
        """
        if self.unjudged[token].worker.terminated and not self._stopping():
            asyncio.ensure_future(until_unheard()).add_done_callback(lambda _: self._judge(token))
        else:
            self._judge(token)

    def judge_all(self) -> None:
        """For a supervisor that stops, and knows it."""
        for token in list(self.unjudged):
            self._judge(token)

    def _judge(self, token: int) -> None:
        death = self.unjudged.pop(token, None)
        if death is None or token not in self._held:
            return  # judged in the meantime, or lost
        worker, task, at = death
        seen = self._seen_of_death(worker, task)
        if seen.startswith("killed"):
            self.ends[seen] += 1
        attempt = Attempt(VERDICTS[seen].outcome, None, task.started_at, at, worker.pid, None, task.peak_rss or None)
        self.settle(task, seen, _evidence(worker, seen), attempt=attempt)

    def _started(self, worker: WorkerProcess, token: int) -> None:
        if task := worker.tasks.get(token):
            worker.output.forget()
            task.started_at = time.monotonic()

    def _skipped(self, worker: WorkerProcess, token: int) -> None:
        task = worker.tasks.get(token)
        self._dispatch.skipped(worker, token)
        if task is not None and token not in self._held:
            # Lost while its worker did not read what revoked it. Back in line it would have run beside its new owner.
            self._dispatch.drop(task)

    def _ended(self, worker: WorkerProcess, result: messages.Result) -> None:
        worker.output.read_to_end_of_task()
        if result.ending != "committed" and worker.speaks_its_last(result.token):
            return
        task = worker.tasks.pop(result.token, None)
        if task is not None and task.transaction and result.ending != "committed":
            # Rolled back, if the worker still could. It can not in the middle of a query that was interrupted, nor on a
            # connection that broke without the other end's noticing.
            self._backends.terminate([task.token])
        if task is None or task.token not in self._held:
            return  # lost in the meantime: refused here already, as the fence would refuse it
        self._dispatch.took(task.lane, result.seconds)
        now = time.monotonic()
        peak_rss = max(result.peak_rss, task.peak_rss)
        attempt = Attempt("succeeded", None, now - result.seconds, now, worker.pid, result.cpu_seconds, peak_rss)
        if result.ending in ("next", "done", "committed"):
            row = succeed(task, attempt, result.next_step, result.payload)
            ended = Ended(task, row, result.spawned)
            if result.ending == "committed":
                self._commits.durable(ended)
            else:
                self._commits.submit(ended)
        else:
            seen = _seen_of_error(task, result.ending)
            error = result.payload.decode(errors="replace")
            self.settle(task, seen, error, attempt=attempt, retry_after=result.retry_after)

    def settle(
        self,
        task: Task,
        seen: Observation,
        error: str,
        *,
        attempt: Attempt | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Put an ending that is no success on its way. `attempt` is what was measured, if anybody was left to."""
        if task.cancelled:
            seen = Observation.CANCELLED
        outcome = VERDICTS[seen].outcome
        if attempt is None:
            attempt = Attempt(outcome, started=task.started_at, ended=time.monotonic())
        row = settle(task, seen, attempt._replace(outcome=outcome, error=error), self._rng, retry_after)
        self._commits.submit(Ended(task, row, []))
        if task.started_at is not None:
            then = what_follows(row, VERDICTS[seen].charge)
            log.warning("attempt %s%s: %s", outcome, then, headline(error)[:_LONGEST_HEADLINE],
                        extra={"about": task.about})  # fmt: skip

    def release(self, task: Task) -> None:
        """Give back a task that was never started; nobody is charged."""
        self.settle(task, Observation.NEVER_STARTED, "")

    def too_large(self, task: Task) -> None:
        """Fail a task whose input no worker can read. (Every worker that received one died, without a charge.)"""
        now = time.monotonic()
        error = f"the input has {len(task.input):,} bytes, and a worker takes at most {frames.MAX_INPUT:,}"
        log.error("%s", error, extra={"about": task.about})
        self.settle(task, Observation.TOO_LARGE, error, attempt=Attempt("failed", started=now, ended=now))

    def lost(self, task: Task) -> None:
        """The run is somebody else's now: nothing of ours may be written, and nothing may run on."""
        self._held.pop(task.token, None)
        self.ends["lost"] += 1
        log.warning("lease lost: its run was taken from us", extra={"about": {"run": task.run}})
        worker = task.worker
        if worker is None:
            self._dispatch.drop(task)
        elif task.started_at is not None:
            worker.kill_task(task, "lease lost")
        else:
            self._dispatch.add(other for other in self._dispatch.take_back(worker) if other is not task)

    def _seen_of_death(self, worker: WorkerProcess, task: Task) -> Observation:
        if worker.kill_reason is not None:
            # It may have begun another in the moment between our last look and its death.
            return (
                Observation(worker.kill_reason[1])
                if worker.kill_reason[0] == task.token
                else Observation.KILLED_FOR_ANOTHER
            )
        if worker.exit_code == -signal.SIGKILL and self._kernel_kills.explains_one():
            return Observation.OUT_OF_MEMORY
        return Observation.KILLED_SHUTDOWN if worker.terminated and self._stopping() else Observation.DIED


def _seen_of_error(task: Task, ending: str) -> Observation:
    if ending == "interrupted":
        return Observation.INTERRUPTED_SHUTDOWN if task.stop_reason == "shutdown" else Observation.INTERRUPTED_TIMEOUT
    return Observation.FAIL if ending == "fail" else Observation.RETRY


def _evidence(worker: WorkerProcess, seen: Observation) -> str:
    """What is known of a worker that died with a task."""
    text = f"the worker {worker.death}"
    if seen is Observation.OUT_OF_MEMORY:
        text += ", killed by the kernel for memory"
    if worker.died_writing:
        text += ", in the middle of writing"
    if output := worker.output.evidence():
        text += f"\nlast output:\n{output}"
    return text

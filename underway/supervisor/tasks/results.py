"""What workers report about tasks, and what their deaths mean for them: one verdict per attempt."""

import asyncio
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from logging import getLogger

from underway.postgres.transitions import Attempt, succeed
from underway.supervisor.logs.headline import headline
from underway.supervisor.loops.backends import BackendLoop
from underway.supervisor.loops.commit import CommitLoop
from underway.supervisor.shutdown import StopRequest, until_unheard
from underway.supervisor.signals import Signals
from underway.supervisor.tasks.dispatch import Dispatch
from underway.supervisor.tasks.ended import Ended
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.tasks.task import Task
from underway.supervisor.tasks.verdict import VERDICTS, Observation, decide, what_follows
from underway.supervisor.workers.kernel_kills import KernelKills
from underway.supervisor.workers.process import WorkerProcess
from underway.wire import frames, messages

log = getLogger("underway.supervisor")

_LONGEST_HEADLINE = 200


@dataclass(frozen=True, slots=True)
class Death:
    """A worker died with a task that it had started. `at` is when the supervisor saw it."""

    worker: WorkerProcess
    task: Task
    at: float


class ResultHandler:
    """The pool's listener: turns messages and deaths into the ends of attempts."""

    def __init__(
        self,
        dispatch: Dispatch,
        commits: CommitLoop,
        backends: BackendLoop,
        held: HeldTasks,
        kernel_kills: KernelKills,
        stop: StopRequest,
        signals: Signals,
        *,
        rng: random.Random,
    ) -> None:
        self._dispatch = dispatch
        self._commits = commits
        self._backends = backends
        self._held = held
        self._kernel_kills = kernel_kills
        self._stop = stop
        self._signals = signals
        self._rng = rng
        self.unjudged: dict[int, Death] = {}  # by token: the deaths whose cause is not clear yet
        self.ends: Counter[str] = Counter()  # kills by their reason, and lost runs

    # The pool's listener

    def received(self, worker: WorkerProcess, message: messages.Message) -> None:
        match message:
            case messages.Result():
                self._ended(worker, message)
                if message.next_started is not None:
                    self._started(worker, message.next_started)
            case messages.Started(token):
                self._started(worker, token)
            case messages.Skipped(token):
                self._dispatch.skipped(worker, token)
            case messages.Progress(token, payload):
                if task := worker.tasks.get(token):
                    task.progress = payload
            case messages.Transaction(token):
                if task := worker.tasks.get(token):
                    task.transaction = True
            case _:
                raise frames.BrokenFrame(f"{type(message).__name__} of a worker")

    def on_messages_processed(self) -> None:
        self._signals.messages_processed()

    def died(self, worker: WorkerProcess) -> None:
        tasks, worker.tasks = list(worker.tasks.values()), {}
        self._backends.terminate(task.token for task in tasks if task.transaction)
        for task in tasks:
            if task.started_at is not None:
                self._died_with(worker, task)
            elif not self._held.requeue(task):
                continue
            elif self._dispatch.closed:
                self.release(task)
            else:
                self._dispatch.add([task])
        if not tasks and worker.kill_reason is None and worker.manifest is not None and not self._stopping():
            log.warning("an idle worker %s", worker.death, extra={"about": {"worker": worker.slot}})

    # Deaths

    def _died_with(self, worker: WorkerProcess, task: Task) -> None:
        self._held.die(task)
        if task.token in self._held:  # otherwise it was lost, and nothing may be written any more
            task.peak_rss = max(task.peak_rss, worker.peak_rss)
            self.unjudged[task.token] = Death(worker, task, time.monotonic())
            self._judge_in_time(task.token)

    def _judge_in_time(self, token: int) -> None:
        """Judge a death at once, unless a TERM may have been sent to the whole group: systemd's default is to stop a
        unit like that. It has killed the worker, and our own is about to arrive; the order in which we see them is
        chance.
        """
        if self.unjudged[token].worker.terminated and not self._stopping():
            asyncio.ensure_future(until_unheard()).add_done_callback(lambda _: self._judge(token))
        else:
            self._judge(token)

    def judge_all(self) -> None:
        """The supervisor stops: no more signal has to be waited for."""
        for token in list(self.unjudged):
            self._judge(token)

    def _judge(self, token: int) -> None:
        death = self.unjudged.pop(token, None)
        if death is None or token not in self._held:
            return  # judged or lost meanwhile
        worker, task = death.worker, death.task
        seen = self._observe_death(worker, task)
        if seen.startswith("killed"):
            self.ends[seen] += 1
        attempt = Attempt(
            VERDICTS[seen].outcome, None, task.started_at, death.at, worker.pid, None, task.peak_rss or None
        )
        self.record_failure(task, seen, _evidence(worker, seen), attempt=attempt)

    def _observe_death(self, worker: WorkerProcess, task: Task) -> Observation:
        if (reason := worker.kill_reason) is not None:
            # It may have started another task in the moment between our last look and its death.
            return Observation(reason.seen) if reason.token == task.token else Observation.KILLED_FOR_ANOTHER
        if worker.exit_code == -signal.SIGKILL and self._kernel_kills.explains_one():
            return Observation.OUT_OF_MEMORY
        return Observation.KILLED_SHUTDOWN if worker.terminated and self._stopping() else Observation.DIED

    def _stopping(self) -> bool:
        return self._stop.draining.is_set()

    # Messages

    def _started(self, worker: WorkerProcess, token: int) -> None:
        if task := worker.tasks.get(token):
            worker.output.forget()
            self._held.start(task, time.monotonic())

    def _ended(self, worker: WorkerProcess, result: messages.Result) -> None:
        worker.output.read_to_end_of_task()
        if result.ending != "committed" and worker.is_writing_stacks(result.token):
            return
        task = worker.tasks.pop(result.token, None)
        if task is not None and task.transaction and result.ending != "committed":
            # The worker has rolled it back if it could. It cannot in the middle of an interrupted query, nor on a
            # connection that broke without Postgres noticing.
            self._backends.terminate([task.token])
        if task is None or task.token not in self._held:
            return  # lost meanwhile: refused here, as the fence would refuse it
        self._dispatch.record_duration(task.lane, result.seconds)
        now = time.monotonic()
        peak_rss = max(result.peak_rss, task.peak_rss)
        attempt = Attempt("succeeded", None, now - result.seconds, now, worker.pid, result.cpu_seconds, peak_rss)
        if result.ending in ("next", "done"):
            row = succeed(task, attempt, result.next_step, result.payload)
            self._commits.submit(Ended(task, row, result.spawned))
        elif result.ending == "committed":
            row = succeed(task, attempt, result.next_step, result.payload)
            self._held.end(task)
            self._commits.durable(Ended(task, row, result.spawned))
        else:
            seen = _observe_error(task, result.ending)
            error = result.payload.decode(errors="replace")
            self.record_failure(task, seen, error, attempt=attempt, retry_after=result.retry_after)

    # Attempts that did not succeed

    def record_failure(
        self,
        task: Task,
        seen: Observation,
        error: str,
        *,
        attempt: Attempt | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Submit the end of an attempt that did not succeed. `attempt` has what the worker measured, if it could."""
        if task.cancelled:
            seen = Observation.CANCELLED
        outcome = VERDICTS[seen].outcome
        if attempt is None:
            attempt = Attempt(outcome, started=task.started_at, ended=time.monotonic())
        row = decide(task, seen, attempt._replace(outcome=outcome, error=error), self._rng, retry_after)
        self._commits.submit(Ended(task, row, []))
        if task.started_at is not None:
            then = what_follows(row, VERDICTS[seen].charge)
            log.warning("attempt %s%s: %s", outcome, then, headline(error)[:_LONGEST_HEADLINE],
                        extra={"about": task.about})  # fmt: skip

    def release(self, task: Task) -> None:
        """Release a task that was not started: no counter of its run but `releases` grows."""
        self.record_failure(task, Observation.NEVER_STARTED, "")

    def too_large(self, task: Task) -> None:
        """Fail a task whose input no worker can read. (Every worker that received one died, without a charge.)"""
        now = time.monotonic()
        error = f"the input has {len(task.input):,} bytes, and a worker takes at most {frames.MAX_INPUT:,}"
        log.error("%s", error, extra={"about": task.about})
        self.record_failure(task, Observation.TOO_LARGE, error, attempt=Attempt("failed", started=now, ended=now))

    def place(self, tasks: list[Task]) -> None:
        """Tasks of runs that stay here for their next step."""
        if self._dispatch.closed:
            for task in tasks:
                self.release(task)
        else:
            self._dispatch.add_first(tasks)
            self._dispatch.pump()

    def lose(self, task: Task) -> None:
        """Another supervisor owns the run now: nothing of ours may be written, and nothing may go on running."""
        worker, back = task.worker, []
        if worker is None:
            self._dispatch.drop(task)
        elif task.started_at is None:
            back = self._dispatch.take_back(worker)
        self._dispatch.add(other for other in back if other is not task)
        if task.token not in self._held:
            return  # the worker's last messages reported that the step's own transaction has committed
        self._held.lose(task)
        self.ends["lost"] += 1
        log.warning("lease lost: this supervisor no longer owns the run", extra={"about": {"run": task.run}})
        if worker is not None and task.started_at is not None:
            worker.kill_task(task, "lease lost")


def _observe_error(task: Task, ending: str) -> Observation:
    if ending == "interrupted":
        return Observation.INTERRUPTED_SHUTDOWN if task.stop_reason == "shutdown" else Observation.INTERRUPTED_TIMEOUT
    return Observation.FAIL if ending == "fail" else Observation.RETRY


def _evidence(worker: WorkerProcess, seen: Observation) -> str:
    """What is known about the death of a worker."""
    text = f"the worker {worker.death}"
    if seen is Observation.OUT_OF_MEMORY:
        text += ", killed by the kernel for memory"
    if worker.died_writing:
        text += ", in the middle of writing"
    if output := worker.output.evidence():
        text += f"\nlast output:\n{output}"
    return text

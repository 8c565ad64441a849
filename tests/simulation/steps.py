"""The behaviour of user code: it ends, crashes, hangs, enqueues runs, or commits its own transaction."""

import signal
from typing import TYPE_CHECKING, cast
from uuid import UUID

from simulation import commits
from simulation.app import LIMITS, UNSTORABLE, first_step, following_step, key_of, placement_of
from simulation.executions import Executions
from underway.postgres.transitions import AdvanceRun, Attempt, succeed
from underway.wire import messages

if TYPE_CHECKING:
    from simulation.worker_loop import WorkerLoop

_ENDINGS: tuple[messages.Ending, ...] = ("next", "retry", "fail")
_WEIGHTS = (92, 6, 2)
_UNSTORABLE = 0.02  # the share of results that cannot be stored
_CHILDREN = ["short", "short", "keyed", "swap"]


class Steps:
    """The steps of one worker."""

    def __init__(self, worker: "WorkerLoop", executions: Executions, owner: UUID) -> None:
        self._worker = worker
        self._executions = executions
        self._owner = owner
        self._database = executions.database
        self._ledger = executions.database.ledger
        self._clock = executions.database.loop
        self._rng = self._clock.rng

    def execute(self, task: messages.Assignment) -> None:
        rng, calm = self._rng, self._executions.calm
        seconds = rng.uniform(0.2, 2.9) if task.job == "long" else rng.expovariate(500)
        if rng.random() < 0.03:
            seconds = rng.uniform(0.03, 0.3)  # longer than the supervisor expects
        dice = 1.0 if calm else rng.random()
        if dice < 0.01:
            self._clock.happen(rng.uniform(0, seconds), lambda: self._crash(task))
        elif dice < 0.015:
            return  # hangs
        elif dice < 0.03:
            self._worker.write(*[messages.Progress(task.token, b'{"done": 1}')] * 300)
        elif dice < 0.07:
            self._worker.write(messages.Transaction(task.token))
            self._clock.happen(seconds, lambda: self._commit_own(task, seconds))
            return
        ending: messages.Ending = "next" if calm else rng.choices(_ENDINGS, _WEIGHTS)[0]
        storable = calm or rng.random() > _UNSTORABLE
        self._clock.happen(seconds, lambda: self._end(task, ending, seconds, storable=storable))

    def stop(self, task: messages.Assignment) -> None:
        """Most steps end when they are interrupted, some succeed nevertheless, some ignore it."""
        dice = self._rng.random()
        if dice < 0.9:
            ending: messages.Ending = "interrupted" if dice < 0.7 else "next"
            self._clock.happen(self._rng.uniform(0, 0.5), lambda: self._end(task, ending, 0.1))

    def _crash(self, task: messages.Assignment) -> None:
        if self._worker.runs is task:
            self._worker.process.die(-signal.SIGSEGV, self._rng.uniform(0, 0.01))

    def _end(
        self, task: messages.Assignment, ending: messages.Ending, seconds: float, *, storable: bool = True
    ) -> None:
        if self._worker.runs is not task:
            return
        payload, placement, spawned = task.payload if storable else UNSTORABLE, None, list[messages.Spawn]()
        if ending == "next":
            placement = self._placement(task)
            spawned = self._spawn(task)
            ending = "done" if placement is None else "next"
        self._ledger.produced[task.token] = ending
        self._result(task, ending, placement, spawned, seconds, payload)

    def _commit_own(self, task: messages.Assignment, seconds: float) -> None:
        """The worker hands over, and then has to live long enough to report it."""
        if self._worker.runs is not task:
            return
        row = self._database.held(task.run, task.token, self._owner)
        if row is None or row.cancel_requested or task.token in self._database.terminated:
            self._end(task, "retry", seconds)
            return
        placement, spawned = self._placement(task), self._spawn(task, storable=True)
        children = [{**child, "parent": task.token} for child in spawned]
        attempt = Attempt("succeeded", None, self._clock.time() - seconds)
        self._ledger.produced[task.token] = "committed"
        end = succeed(task, attempt, placement, task.payload)
        if isinstance(end, AdvanceRun):
            commits.continue_(self._database, self._owner, [end], children, None)
        else:
            commits.finish(self._database, self._owner, [end], children)
        if self._rng.random() < 0.3 and not self._executions.calm:
            self._worker.process.die(-signal.SIGSEGV, 0.001)
            return
        self._result(task, "committed", placement, [], seconds, task.payload)

    def _placement(self, task: messages.Assignment) -> messages.NextStep | None:
        step = following_step(task.job, task.step)
        if step is None:
            return None
        delay = 0.0 if self._rng.random() < 0.9 else self._rng.uniform(0, 0.5)
        return placement_of(task.job, step, task.payload, delay)

    def _spawn(self, task: messages.Assignment, *, storable: bool = False) -> list[messages.Spawn]:
        if task.job != "parent":
            return []
        spawned: list[messages.Spawn] = []
        for n in range(self._rng.choice([1, 1, 4])):
            job = self._rng.choice(_CHILDREN)
            given = self._rng.choice(list(LIMITS))
            if not storable and not self._executions.calm and self._rng.random() < 0.01:
                job, given = "short", UNSTORABLE
            step, key = first_step(job), key_of(job, first_step(job), given)
            delay = 0.0 if self._rng.random() < 0.8 else 0.3
            child = {"id": f"{task.run}.{task.token}.{n}", "job": job, "step": step, "delay": delay}
            spawned.append(
                cast(messages.Spawn, {**child, "concurrency_key": key and key.text, "input": given.decode()})
            )
        self._ledger.children[task.token] = [str(child["id"]) for child in spawned]
        return spawned

    def _result(
        self,
        task: messages.Assignment,
        ending: messages.Ending,
        placement: messages.NextStep | None,
        spawned: list[messages.Spawn],
        seconds: float,
        payload: bytes,
    ) -> None:
        result = messages.Result(task.token, None, ending, placement, None, spawned, seconds, seconds, 1, payload)
        self._worker.ended(task, result)

"""The worker's side: it reads messages, skips revoked tasks, reports the start of a task, and runs it."""

from collections import deque
from typing import TYPE_CHECKING
from uuid import UUID

from simulation.executions import Executions
from simulation.steps import Steps
from underway.definition.manifest import Manifest
from underway.wire import messages as wire

if TYPE_CHECKING:
    from simulation.worker import FakeWorker


class WorkerLoop:
    def __init__(self, process: "FakeWorker", executions: Executions, owner: UUID, code: Manifest) -> None:
        self.process = process
        self.executions = executions
        self.clock = executions.database.loop
        self.rng = self.clock.rng
        self.runs: wire.Assignment | None = None
        self.dead = False  # it executes nothing more; its death may not have been seen yet
        self.ledger = executions.database.ledger
        self._code = code
        self._steps = Steps(self, executions, owner)
        self._queue: deque[wire.Assignment] = deque()
        self._skip: set[int] = set()
        self._unwritten: list[wire.Message] = []
        self._announced: int | None = None
        self._asleep = True
        self._tainted = self._asked = False
        self.clock.happen(self.rng.uniform(0.05, 0.5), self._boot)

    def _boot(self) -> None:
        if self.dead:
            return
        if self.rng.random() < 0.02 and not self.executions.calm:
            self.process.die(3, 0.001)
            return
        self.write(wire.Hello(self.process.pid, self._code.to_json()))

    def poke(self) -> None:
        """Wake up: there is a message to read."""
        if self._asleep:
            self._asleep = False
            self.clock.happen(self.rng.expovariate(10_000), self._wake)

    def _wake(self) -> None:
        """A message has arrived, or the last task has ended: start the next one."""
        if self.dead:
            return
        self._look()
        if self._tainted:
            self._refuse()
        if not self._queue:
            self._skip.clear()
            self.write()
            self._asleep = True
            if self.process.inbox:
                self.poke()
            return
        task = self._queue.popleft()
        self.ledger.announced.add(task.token)
        self.write(*([] if task.token == self._announced else [wire.Started(task.token)]))
        self._announced = None  # valid once: the task may be skipped and assigned again
        # A Revoke may arrive between this and the look into the inbox.
        self.clock.happen(self.rng.expovariate(20_000), lambda: self._begin(task))

    def _refuse(self) -> None:
        if not self._asked:
            self._asked = True
            self._unwritten.append(wire.Tainted("a step has tainted it"))
        while self._queue:
            self._unwritten.append(wire.Skipped(self._queue.pop().token))

    def _look(self) -> None:
        while (message := self.process.take()) is not None:
            match message:
                case wire.Assignment():
                    self._queue.append(message)
                case wire.Revoke(token):
                    self._skip.add(token)
                    if found := [task for task in self._queue if task.token == token]:
                        self._queue.remove(found[0])
                        self._skip.discard(token)
                        self._unwritten.append(wire.Skipped(token))
                case wire.End():
                    # It exits in order, or is killed because a hook takes too long.
                    if self.rng.random() < 0.9:
                        self.process.die(0, self.rng.uniform(0, 0.05))
                case wire.Stop(token):
                    if self.runs is not None and self.runs.token == token:
                        self._steps.stop(self.runs)

    def _begin(self, task: wire.Assignment) -> None:
        if self.dead:
            return
        self._look()
        if task.token in self._skip:
            self._skip.discard(task.token)
            self._unwritten.append(wire.Skipped(task.token))
            self._wake()
            return
        self.clock.note("worker", self.process.slot, "executes", task.run, task.token)
        self.executions.begin(self, task)
        self.runs = task
        self._steps.execute(task)

    def write(self, *messages: wire.Message) -> None:
        written = [*self._unwritten, *messages]
        self._unwritten.clear()
        self.process.wrote(written)

    # The end of a task

    def ended(self, task: wire.Assignment, result: wire.Result) -> None:
        """The result is sent together with the Started of the next task, or announces that start itself."""
        self.executions.end(self, task)
        self.runs = None
        self._look()
        self._tainted = self._tainted or (not self.executions.calm and self.rng.random() < 0.01)
        self._announced = self._queue[0].token if self._queue and not self._tainted else None
        if self._announced is not None:
            self.ledger.announced.add(self._announced)
        self._unwritten.append(result._replace(next_started=self._announced))
        if not self.executions.calm and self.rng.random() < 0.002:
            self.ledger.produced[task.token] = "cut off in the middle of writing"
            self.process.die(-9, 0.001)
            return
        self._wake()

    def interrupted(self) -> None:
        if not self.dead:
            self._look()

    def die(self) -> None:
        if not self.dead:
            self.clock.note("death of worker", self.process.slot, "at", self.runs and self.runs.token)
            self.dead = True
            if self.runs is not None:
                self.executions.end(self, self.runs)
                self.runs = None

    @property
    def cut_off(self) -> bool:
        """Whether it died with unsent messages."""
        return bool(self._unwritten)

"""The worker's own side: it reads what it is to do, skips what was revoked, says what it begins, and begins it."""

from collections import deque
from typing import TYPE_CHECKING
from uuid import UUID

from simulation.steps import Steps
from simulation.whereabouts import Whereabouts
from underway.definition.manifest import Manifest
from underway.wire import messages as wire

if TYPE_CHECKING:
    from simulation.worker import FakeWorker


class WorkerLoop:
    def __init__(self, process: "FakeWorker", where: Whereabouts, owner: UUID, code: Manifest) -> None:
        self.process = process
        self.where = where
        self.clock = where.database.loop
        self.rng = self.clock.rng
        self.runs: wire.Assignment | None = None
        self.dead = False  # executes nothing any more; its death may not have been seen yet
        self.ledger = where.database.ledger
        self._code = code
        self._steps = Steps(self, where, owner)
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
        if self.rng.random() < 0.02 and not self.where.calm:
            self.process.die(3, 0.001)
            return
        self.write(wire.Hello(self.process.pid, self._code.to_json()))

    def poke(self) -> None:
        """There is something to read."""
        if self._asleep:
            self._asleep = False
            self.clock.happen(self.rng.expovariate(10_000), self._wake)

    def _wake(self) -> None:
        """Something has come, or the last task has ended: begin the next."""
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
        self._announced = None  # once: it may be skipped, and come again
        # Between this and the look into the inbox a Revoke may come.
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
        self.where.begin(self, task)
        self.runs = task
        self._steps.execute(task)

    def write(self, *messages: wire.Message) -> None:
        written = [*self._unwritten, *messages]
        self._unwritten.clear()
        self.process.wrote(written)

    # The end of a task, of one kind or the other

    def ended(self, task: wire.Assignment, result: wire.Result) -> None:
        """It goes out together with the Started of the next, which it may name itself."""
        self.where.end(self, task)
        self.runs = None
        self._look()
        self._tainted = self._tainted or (not self.where.calm and self.rng.random() < 0.01)
        self._announced = self._queue[0].token if self._queue and not self._tainted else None
        if self._announced is not None:
            self.ledger.announced.add(self._announced)
        self._unwritten.append(result._replace(next_started=self._announced))
        if not self.where.calm and self.rng.random() < 0.002:
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
                self.where.end(self, self.runs)
                self.runs = None

    @property
    def cut_off(self) -> bool:
        """It has died with something to say."""
        return bool(self._unwritten)

"""Which tasks are being executed, and by which workers; and the promises that the start of a task can break."""

from typing import TYPE_CHECKING

from simulation.app import LEASE, Key, key_of
from simulation.database import Database
from simulation.ledger import Broken
from underway.wire import messages

if TYPE_CHECKING:
    from simulation.worker_loop import WorkerLoop


class Executions:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.calm = False  # no more faults
        self._loop = database.loop
        self._running: dict[str, list[WorkerLoop]] = {}
        self._with_key: dict[str, int] = {}
        self._last_stall = 0.0
        database.on_reaped = self._reaped

    def stalled(self, seconds: float) -> None:
        self._last_stall = self._loop.time() + seconds

    def begin(self, worker: "WorkerLoop", task: messages.Assignment) -> None:
        ledger, token = self.database.ledger, task.token
        if token in ledger.executed:
            raise Broken(f"{task.run} {token}: executed twice")
        if ledger.left.get(token) == "released":
            raise Broken(f"{task.run} {token}: executed after it was released")
        self._check_alone(task)
        ledger.executed.add(token)
        self._running.setdefault(task.run, []).append(worker)
        if key := _key_of(task):
            with_key = self._with_key[key.text] = self._with_key.get(key.text, 0) + 1
            if with_key > key.limit and not self._stalled_lately():
                raise Broken(f"{task.run} {token}: {with_key} are executed at a time under the key {key.text}")

    def end(self, worker: "WorkerLoop", task: messages.Assignment) -> None:
        self._running[task.run].remove(worker)
        if key := _key_of(task):
            self._with_key[key.text] -= 1

    def _check_alone(self, task: messages.Assignment) -> None:
        for other in self._running.get(task.run, []):
            how = self.database.ledger.left.get(other.runs.token) if other.runs is not None else None
            # The step's own transaction has committed; or it should have been killed before its lease expired, by a
            # supervisor that was stalled.
            if how != "succeeded" and not (how in ("lost", "cancelled") and self._stalled_lately()):
                raise Broken(f"{task.run}: executed as {task.token} beside {other.runs}, which was {how}")

    def _reaped(self, run: str, token: int) -> None:
        """The worker that executes it should have been killed earlier, by its own supervisor."""
        running = [worker.runs.token for worker in self._running.get(run, []) if worker.runs is not None]
        if token in running and not self._stalled_lately():
            raise Broken(f"{run} {token}: executed after its lease has expired")

    def _stalled_lately(self) -> bool:
        return self._loop.time() < self._last_stall + 2 * LEASE


def _key_of(task: messages.Assignment) -> Key | None:
    return key_of(task.job, task.step, task.payload)

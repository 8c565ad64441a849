"""A worker without a process. The supervisor's side of it is real, except for system calls."""

import signal
from collections import deque
from typing import Any
from uuid import UUID

from simulation.executions import Executions
from simulation.ledger import Broken
from simulation.worker_loop import WorkerLoop
from underway.definition.manifest import Manifest
from underway.supervisor.workers.process import END_SECONDS, WorkerProcess
from underway.supervisor.workers.worker_state import WorkerState
from underway.wire import messages as wire

# Three quarters of the time between the kill of a worker and the end of its lease, as a share of the lease.
SLOWEST_DEATH = 0.05 * 0.75


class NoOutput:
    behind = False

    def forget(self) -> None: ...
    def read_to_end_of_task(self) -> None: ...
    def evidence(self) -> str:
        return ""


class FakeWorker(WorkerProcess):
    def __init__(
        self,
        executions: Executions,
        owner: UUID,
        code: Manifest,
        pid: int,
        slot: int,
        listener: Any,
        generation: int,
        usage: Any,
    ) -> None:
        WorkerState.__init__(self, slot, generation, usage)
        self.output: Any = NoOutput()
        self._listener = listener
        self._pid = pid
        self._clock = executions.database.loop
        self._rng = self._clock.rng
        self.started_at = self._clock.time()
        self._known = {(lane.job, lane.step) for lane, _ in code.lanes()}
        self.inbox: deque[wire.Message] = deque()  # messages in the socket, on the way to the worker
        self._held_up: deque[wire.Message] = deque()  # messages for which the socket had no room
        self._outbox: deque[wire.Message] = deque()
        self._ringing = False
        self._capacity = self._rng.choice([3, 8, 10_000])
        self._worker_loop = WorkerLoop(self, executions, owner, code)

    @property
    def pid(self) -> int:
        return self._pid

    # To the worker

    def send(self, *messages: wire.Message) -> bool:
        for message in messages:
            if isinstance(message, wire.Assignment):
                self._check_hand_over(message)
            (self._held_up if self._is_full() else self.inbox).append(message)
        if self.inbox:
            self._worker_loop.poke()
        return not self._held_up

    def _is_full(self) -> bool:
        return bool(self._held_up) or (self._worker_loop.runs is not None and len(self.inbox) >= self._capacity)

    def take(self) -> wire.Message | None:
        """The message that the worker reads next."""
        if not self.inbox:
            self.inbox, self._held_up = self._held_up, deque()
        return self.inbox.popleft() if self.inbox else None

    def _check_hand_over(self, message: wire.Assignment) -> None:
        task = self.tasks[message.token]
        if (message.job, message.step) not in self._known:
            raise Broken(f"{message.run}: {message.job}.{message.step} was handed to a worker that does not know it")
        others = [other for other in self.tasks.values() if other is not task]
        if (task.suspect and others) or any(other.suspect for other in others):
            raise Broken(f"{message.run}: a suspect is not alone in its worker")

    # From the worker

    def wrote(self, messages: list[wire.Message]) -> None:
        self._outbox += messages
        self._ring()

    def _ring(self) -> None:
        if self._outbox and not self._ringing:
            self._ringing = True
            late = self._rng.uniform(0, 0.05) if self._rng.random() < 0.1 else 0.0
            self._clock.happen(late + self._rng.expovariate(3000), self._on_readable)

    def _on_readable(self) -> None:
        self._ringing = False
        if self.exit_code is None and self._outbox:
            self._receive()
            self._listener.on_messages_processed()
            self._ring()

    def _receive(self) -> int:
        """One read of the socket; the rest may be in the next read."""
        if not self._outbox:
            return 0
        for _ in range(min(len(self._outbox), self._rng.choice([1, 5, 1000]))):
            self._listener.received(self, self._outbox.popleft())
        return 1

    # Signals and death

    def signal(self, number: int) -> None:
        assert number == signal.SIGUSR1
        self._clock.happen(self._rng.expovariate(1000), self._worker_loop.interrupted)

    def has_children(self) -> bool:
        return bool(self._rng.random() < 0.5)

    def kill(self, words: str = "", *, last_words: float = 0.0) -> None:
        """The stacks that a worker may write before it dies are not simulated."""
        self.killing = True
        lease = min((task.step.policy.lease.total_seconds() for task in self.tasks.values()), default=0.0)
        slowest = max(0.01, lease * SLOWEST_DEATH)
        self.die(-signal.SIGKILL, self._rng.uniform(0, 0.01 if self._rng.random() < 0.95 else slowest))

    def end(self) -> None:
        self.send(wire.End())
        self._clock.call_later(END_SECONDS, self.kill)

    def die(self, code: int, seen_after: float) -> None:
        if not self._worker_loop.dead:
            self._worker_loop.die()
            self._clock.happen(seen_after, lambda: self._see_death(code))

    def terminated_with_all(self) -> None:
        if not self._worker_loop.dead and self._worker_loop.runs is not None:
            self._worker_loop.ledger.blameless.add(self._worker_loop.runs.token)
        self.die(-signal.SIGTERM, self._rng.uniform(0, 0.01))

    def vanish(self) -> None:
        """Die together with the supervisor; the death is not seen."""
        self._worker_loop.die()
        self.exit_code = -signal.SIGKILL

    def _see_death(self, code: int) -> None:
        self.exit_code = code
        self.died_writing = self._worker_loop.cut_off
        self.drain()
        self._listener.died(self)
        self._listener.on_messages_processed()

"""Workers that are no processes: they speak the protocol, and start, finish, fail, die, hang and flood by chance."""

import random
import signal
from collections import deque
from datetime import timedelta
from typing import Any, cast

from simulation.database import UNSTORABLE, Broken, Database
from underway import wire
from underway.manifest import Job, Lane, Manifest, Policy, Step
from underway.retry import RetryPolicy
from underway.supervisor.worker_process import WorkerProcess

LEASE = 2.0
POLICY = Policy(
    retry=RetryPolicy(3, timedelta(seconds=0.1), timedelta(seconds=1)),
    timeout=timedelta(seconds=3),
    memory_limit=1000,
    lease=timedelta(seconds=LEASE),
)
FIRST_STEPS = {"short": "a", "chain": "a", "long": "a", "even": "a", "odd": "a"}
CHAIN = ("a", "b", "c")
# Three quarters of what is between the kill of a worker and its lapse.
SLOWEST_DEATH = LEASE * 0.05 * 0.75


def _job(name: str) -> Job:
    return Job(name, tuple(Step(step, policy=POLICY) for step in (CHAIN if name == "chain" else "a")))


COMMON = ("short", "chain", "long")
# Before and after a reload the app knows different jobs; in the end all of them.
CODE = {
    "even": Manifest(tuple(map(_job, (*COMMON, "even")))),
    "odd": Manifest(tuple(map(_job, (*COMMON, "odd")))),
    "all": Manifest(tuple(map(_job, (*COMMON, "even", "odd")))),
}


class NoOutput:
    behind = False

    def forget(self) -> None: ...
    def read_to_end_of_task(self) -> None: ...
    def evidence(self) -> str:
        return ""


class Whereabouts:
    """Which tasks are being executed right now, by whom."""

    def __init__(self, database: Database) -> None:
        self.database = database
        database.on_reaped = self.reaped
        self.running: dict[str, list[FakeWorker]] = {}
        self.calm = False
        self.last_stall = 0.0

    def stalled_lately(self) -> bool:
        return self.database.loop.time() < self.last_stall + 2 * LEASE

    def reaped(self, run: str, token: int) -> None:
        """Whoever executes it should have been killed before, by its own supervisor."""
        if not self.stalled_lately() and any(
            worker.runs is not None and worker.runs.token == token for worker in self.running.get(run, [])
        ):
            raise Broken(f"{run} {token}: executed after its lease has lapsed")

    def begin(self, worker: "FakeWorker", task: wire.Task) -> None:
        database, token = self.database, task.token
        if token in database.executed:
            raise Broken(f"{task.run} {token}: executed twice")
        if database.left.get(token) in ("given back", "unknown"):
            raise Broken(f"{task.run} {token}: executed after it was given back ({database.left[token]})")
        for other in self.running.get(task.run, []):
            how = database.left.get(other.runs.token) if other.runs is not None else None
            # Its own transaction has committed; or it should have been killed before its lease lapsed, and who does
            # that has not run for a while.
            if how != "succeeded" and not (how in ("lost", "cancelled") and self.stalled_lately()):
                raise Broken(f"{task.run}: executed as {token} beside {other.runs}, which was {how}")
        database.executed.add(token)
        self.running.setdefault(task.run, []).append(worker)

    def end(self, worker: "FakeWorker", run: str) -> None:
        self.running[run].remove(worker)


class FakeWorker(WorkerProcess):
    """The supervisor's side is the real one, down to what `send`, `drain` and `kill` do with the system."""

    def __init__(
        self, where: Whereabouts, code: Manifest, slot: int, overseer: Any, generation: int, wear: Any
    ) -> None:
        self.slot = slot
        self.generation = generation
        self.wear = wear
        self.due = ""
        self.resting = False
        self.where = where
        self.database = where.database
        self.clock = where.database.loop
        self.rng: random.Random = self.clock.rng
        self.started_at = self.clock.time()
        self.manifest = None
        self.lanes = {}
        self.tasks = {}
        self.revoked = set()
        self.kill_reason = None
        self.kill_words = ""
        self.died_writing = False
        self.peak_rss = 0
        self.output: Any = NoOutput()
        self._overseer = overseer
        self._code = code
        self._known = {(lane.job, lane.step) for lane, _ in code.lanes()}
        self._exit: int | None = None
        self._dead = False  # executes nothing any more; its death may not have been seen yet
        self._inbox: deque[wire.Message] = deque()  # what the socket holds, on the way to the worker
        self._held_up: deque[wire.Message] = deque()  # and what it had no room for
        self._outbox: deque[wire.Message] = deque()
        self._ringing = False
        # The worker's own
        self.runs: wire.Task | None = None
        self._queue: deque[wire.Task] = deque()
        self._skip: set[int] = set()
        self._unwritten: list[wire.Message] = []
        self._announced: int | None = None
        self._asleep = True
        self._capacity = self.rng.choice([3, 8, 10_000])
        self.clock.happen(self.rng.uniform(0.05, 0.5), self._boot)

    @property
    def pid(self) -> int:
        return 10_000 + id(self) % 1000

    def has_children(self) -> bool:
        return self.rng.random() < 0.5

    @property
    def alive(self) -> bool:
        return self._exit is None

    @property
    def exit_code(self) -> int | None:
        return self._exit

    # The supervisor's side

    def send(self, *messages: wire.Message) -> bool:
        for message in messages:
            if isinstance(message, wire.Task):
                self._check_hand_over(message)
            (self._held_up if self._is_full() else self._inbox).append(message)
        if self._asleep and self._inbox:
            self._asleep = False
            self.clock.happen(self.rng.expovariate(10_000), self._wake)
        return not self._held_up

    def _is_full(self) -> bool:
        return bool(self._held_up) or (self.runs is not None and len(self._inbox) >= self._capacity)

    def _check_hand_over(self, message: wire.Task) -> None:
        task = self.tasks[message.token]
        if (message.job, message.step) not in self._known:
            raise Broken(f"{message.run}: {message.job}.{message.step} was handed to a worker that does not know it")
        others = [other for other in self.tasks.values() if other is not task]
        if (task.suspect and others) or any(other.suspect for other in others):
            raise Broken(f"{message.run}: a suspect is not alone in its worker")

    def _receive(self) -> int:
        """One read of the socket; the end of it may be in the next one."""
        if not self._outbox:
            return 0
        for _ in range(min(len(self._outbox), self.rng.choice([1, 5, 1000]))):
            self._overseer.received(self, self._outbox.popleft())
        return 1

    def _on_readable(self) -> None:
        self._ringing = False
        if self._exit is None and self._outbox:
            self._receive()
            self._overseer.settled()
            self._ring()

    def _ring(self) -> None:
        if self._outbox and not self._ringing:
            self._ringing = True
            late = self.rng.uniform(0, 0.05) if self.rng.random() < 0.1 else 0.0
            self.clock.happen(late + self.rng.expovariate(3000), self._on_readable)

    def signal(self, number: int) -> None:
        assert number == signal.SIGUSR1
        self.clock.happen(self.rng.expovariate(1000), self._interrupt)

    def kill(self, words: str = "") -> None:
        if not self._dead:
            self._die(-signal.SIGKILL, self.rng.uniform(0, 0.01 if self.rng.random() < 0.95 else SLOWEST_DEATH))

    def vanish(self) -> None:
        """Together with its supervisor; nobody sees it."""
        self._die(-signal.SIGKILL, None)
        self._exit = -signal.SIGKILL

    def _die(self, code: int, seen_after: float | None) -> None:
        if self._dead:
            return
        self.clock.note("death of worker", self.slot, "at", self.runs and self.runs.token)
        self._dead = True
        if self.runs is not None:
            self.where.end(self, self.runs.run)
            self.runs = None
        if seen_after is not None:
            self.clock.happen(seen_after, lambda: self._see_death(code))

    def _see_death(self, code: int) -> None:
        self._exit = code
        self.died_writing = bool(self._unwritten)
        self.drain()
        self._overseer.died(self)
        self._overseer.settled()

    # The worker's side

    def _write(self, *messages: wire.Message) -> None:
        self._outbox += [*self._unwritten, *messages]
        self._unwritten.clear()
        self._ring()

    def _boot(self) -> None:
        if self._dead:
            return
        if self.rng.random() < 0.02 and not self.where.calm:
            self._die(3, 0.001)
            return
        self._write(wire.Hello(self.pid, self._code.to_json()))

    def _wake(self) -> None:
        """Something has come, or the last task has ended: begin the next."""
        if self._dead:
            return
        self._look()
        if not self._queue:
            self._skip.clear()
            self._write()
            self._asleep = not self._inbox
            if self._inbox:
                self.clock.happen(0.00001, self._wake)
            return
        task = self._queue.popleft()
        self._write(*([] if task.token == self._announced else [wire.Started(task.token)]))
        # Between this and the look into the inbox a Revoke may come.
        self.clock.happen(self.rng.expovariate(20_000), lambda: self._begin(task))

    def _look(self) -> None:
        while self._inbox:
            message = self._inbox.popleft()
            if not self._inbox:
                self._inbox, self._held_up = self._held_up, deque()
            match message:
                case wire.Task():
                    self._queue.append(message)
                case wire.Revoke(token):
                    self._skip.add(token)
                    if found := [task for task in self._queue if task.token == token]:
                        self._queue.remove(found[0])
                        self._skip.discard(token)
                        self._unwritten.append(wire.Skipped(token))
                case wire.Stop(token):
                    if self.runs is not None and self.runs.token == token:
                        self._stopped()

    def _begin(self, task: wire.Task) -> None:
        if self._dead:
            return
        self._look()
        if task.token in self._skip:
            self._skip.discard(task.token)
            self._unwritten.append(wire.Skipped(task.token))
            self._wake()
            return
        self.clock.note("worker", self.slot, "executes", task.run, task.token)
        self.where.begin(self, task)
        self.runs = task
        self._execute(task)

    def _execute(self, task: wire.Task) -> None:
        rng, calm = self.rng, self.where.calm
        seconds = rng.uniform(0.2, 2.9) if task.job == "long" else rng.expovariate(500)
        if rng.random() < 0.03:
            seconds = rng.uniform(0.03, 0.3)  # longer than anybody could know
        dice = 1.0 if calm else rng.random()
        if dice < 0.01:
            self.clock.happen(rng.uniform(0, seconds), lambda: self._crash(task))
        elif dice < 0.015:
            return  # hangs
        elif dice < 0.03:
            for _ in range(300):
                self._write(wire.Progress(task.token, b'{"done": 1}'))
        elif dice < 0.05:
            self._write(wire.Transaction(task.token))
            self.clock.happen(seconds, lambda: self._commit_own(task, seconds))
            return
        endings = ["next"] * 90 + ["retry"] * 6 + ["fail", "fail", "unstorable", "unstorable"]
        ending = "next" if calm else rng.choice(endings)
        self.clock.happen(seconds, lambda: self._end(task, ending, seconds))

    def _crash(self, task: wire.Task) -> None:
        if self.runs is task:
            self._die(-signal.SIGSEGV, self.rng.uniform(0, 0.01))

    def _interrupt(self) -> None:
        if not self._dead:
            self._look()

    def _stopped(self) -> None:
        """Most steps end when they are told to, some succeed in spite of it, some do not care."""
        task, dice = self.runs, self.rng.random()
        assert task is not None
        if dice < 0.9:
            ending = "interrupted" if dice < 0.7 else "next"
            self.clock.happen(self.rng.uniform(0, 0.5), lambda: self._end(task, ending, 0.1))

    def _following(self, task: wire.Task) -> str | None:
        if task.job != "chain" or task.step == CHAIN[-1]:
            return None
        return CHAIN[CHAIN.index(task.step) + 1]

    def _commit_own(self, task: wire.Task, seconds: float) -> None:
        """A step's own transaction: handed over by the worker, which then has to live long enough to say so."""
        row = self.database.live.get(task.run)
        if self.runs is not task:
            return
        fenced = row is None or row.token != task.token or row.state != "in_progress" or row.cancel_requested
        if fenced or task.token in self.database.terminated or row is None or row.locked_until > self.clock.time():
            self._end(task, "retry", seconds)
            return
        self.database.produced[task.token] = "committed"
        self.database._write(row, task.token, "succeeded")
        if following := self._following(task):
            row.lane = Lane(row.lane.queue, task.job, following)
            row.state, row.owner = "pending", None
            row.number = row.attempts = row.crashes = row.releases = 0
        else:
            self.database._close(row, "succeeded")
        if self.rng.random() < 0.3 and not self.where.calm:
            self._die(-signal.SIGSEGV, 0.001)
            return
        self._end(task, "committed", seconds)

    def _end(self, task: wire.Task, ending: str, seconds: float) -> None:
        if self.runs is not task or self._dead:
            return
        self.where.end(self, task.run)
        self.runs = None
        following = self._following(task)
        payload = b"1"
        if ending == "unstorable":
            ending, payload = "next", UNSTORABLE
        if ending == "next" and following is None:
            ending = "done"
        placement = (
            (following, "default", 0, 0.0, 60.0, None, None) if following and ending in ("next", "committed") else None
        )
        self.database.produced[task.token] = ending
        self._look()
        self._announced = self._queue[0].token if self._queue else None
        self._unwritten.append(
            wire.Result(
                task.token,
                self._announced,
                cast(wire.Ending, ending),
                placement,
                None,
                [],
                seconds,
                seconds,
                1,
                payload,
            )
        )
        if not self.where.calm and self.rng.random() < 0.002:
            self._die(-signal.SIGKILL, 0.001)  # in the middle of writing this
            return
        self._wake()

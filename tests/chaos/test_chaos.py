"""Kill and stop processes at random, then audit: nothing is lost, no step succeeds twice, no process is left.

CHAOS_SEED determines what happens and in which order, CHAOS_SECONDS for how long. The timing is up to the machine.
"""

import heapq
import itertools
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psutil
import psycopg
import pytest
from apps import chaos
from chaos_report import Count, Say
from chaos_settings import HOUR, MINUTE, SEED, stretched
from fleet import DRAIN_SECONDS, OURS, SAY_SECONDS, Fleet, chaos_database, send_quietly
from harness import eventually
from psycopg.types.json import Jsonb

from underway.client.run import Run
from underway.postgres.embedded import Cluster
from underway.supervisor.exit_codes import ExitCode

SOAK_SECONDS = 40.0
WARM_UP_SECONDS = 20.0
_TOGETHER = 20  # samples

SUPERVISORS = 2
ENQUEUERS = 2
MOST_LIVE = 3000  # no runs are enqueued beyond this number


def limit(seconds: float) -> pytest.MarkDecorator:
    return pytest.mark.timeout(seconds + DRAIN_SECONDS + 300)


@pytest.mark.chaos
@limit(stretched(MINUTE))
def test_chaos(tmp_path: Path, say: Say, count: Count) -> None:
    go_through(stretched(MINUTE), tmp_path, say, count)


@pytest.mark.chaos_long
@limit(stretched(HOUR))
def test_chaos_for_an_hour(tmp_path: Path, say: Say, count: Count) -> None:
    go_through(stretched(HOUR), tmp_path, say, count)


def go_through(length: float, tmp_path: Path, say: Say, count: Count) -> None:
    ledger = Ledger()
    with chaos_database() as (cluster, url):
        began = time.monotonic()
        with Fleet(url, tmp_path) as fleet:
            injector = FaultInjector(fleet, cluster, url)
            with enqueuing(url, ledger):
                for event in plan(SEED, length):
                    injector.wait_until(began + event.at, lambda: say(_progress(url, began, injector.counted)))
                    injector.apply(event)
                injector.calm_down()  # otherwise an enqueue might wait forever for a lock
            say(f"calm after {time.monotonic() - began:.0f} s; what is left is finished")
            fleet.stop()
            fleet.finish(lambda: say(_progress(url, began, injector.counted)))
        seconds = time.monotonic() - began
        with psycopg.connect(url) as connection:
            audit = Audit(connection, ledger)
        faults = [*ledger.faults, *fleet.faults, *audit.faults]
        say(_verdict(audit, ledger, fleet, injector.counted, seconds, faults))
        count(
            **injector.counted,
            **audit.numbers(),
            wrong_about_supervisors=len(fleet.faults),
            peak_mib=fleet.peak_mib,
        )
    assert faults == []


@pytest.mark.chaos
@limit(0)
def test_runs_of_a_killed_supervisor_are_soon_finished(tmp_path: Path, say: Say, count: Count) -> None:
    # Hundreds of short steps, all suspects now; a supervisor holds one suspect at a time.
    with chaos_database() as (_cluster, url), Fleet(url, tmp_path) as fleet:
        chaos.jobs["noops"].enqueue_many(chaos.Item(number) for number in range(20_000))
        first = fleet.start()
        with closing(psycopg.connect(url, autocommit=True)) as connection:
            # Not the first ones: the supervisor must have learnt how short they are, and claim them by the hundred.
            eventually(lambda: connection.execute("select 1 from underway.finished_run offset 1000 limit 1").fetchone())
            first.supervisor.send(signal.SIGKILL)
            began = time.monotonic()
            fleet.replace(first, {-signal.SIGKILL})
            eventually(lambda: not connection.execute("select 1 from underway.run limit 1").fetchone(), within=60)
            seconds = time.monotonic() - began
            lost = connection.execute("select count(*) from underway.attempt where outcome = 'lost'").fetchone()
        fleet.stop()
        assert lost is not None
    say(f"killed: the {lost[0]} runs it held were done {seconds:.1f} s later, with 20,000 others")
    count(kill_a_supervisor=1, runs=20_000, leases_lapsed=lost[0])
    assert fleet.faults == []
    assert lost[0] > 0
    assert seconds < 10 + lost[0] * 0.1


@pytest.mark.chaos
@limit(0)
def test_soak(tmp_path: Path, say: Say, count: Count) -> None:
    samples: list[tuple[float, int, int, int, int]] = []
    with chaos_database() as (_cluster, url), Fleet(url, tmp_path) as fleet:
        supervisor = fleet.start().supervisor
        process = psutil.Process(supervisor.pid)
        numbers = itertools.count()
        began = said = time.monotonic()
        with closing(psycopg.connect(url, autocommit=True)) as connection:
            while (now := time.monotonic()) < began + SOAK_SECONDS:
                (live,) = connection.execute("select count(*) from underway.run").fetchone() or (0,)
                if live < 20_000:
                    chaos.jobs["noops"].enqueue_many(chaos.Item(next(numbers)) for _ in range(20_000))
                workers = sum(worker.memory_info().rss for worker in supervisor.workers())
                rss = process.memory_info().rss
                samples.append((now - began, rss, process.num_fds(), process.num_threads(), workers))
                if now >= said + SAY_SECONDS:
                    said = now
                    say(f"soak: {now - began:3.0f} s, {rss / 2**20:.1f} MiB, {process.num_fds()} files")
                time.sleep(0.2)
            finished = connection.execute("select count(*) from underway.finished_run").fetchone()
        fleet.stop()
        assert finished is not None
    before = [sample for sample in samples if sample[0] < WARM_UP_SECONDS][-_TOGETHER:]
    after = samples[-_TOGETHER:]
    growth, crew_growth = (
        (max(sample[which] for sample in after) - max(sample[which] for sample in before)) / 2**20 for which in (1, 4)
    )
    files, threads = ({sample[which] for sample in samples if sample[0] > WARM_UP_SECONDS} for which in (2, 3))
    say(
        f"soak: {finished[0]:,} runs, {finished[0] / SOAK_SECONDS:,.0f} a second; the supervisor grew by {growth:+.1f} "
        f"MiB to {after[-1][1] / 2**20:.1f}, its workers by {crew_growth:+.1f}; files {files}, threads {threads}"
    )
    count(runs=finished[0], peak_mib=max(sample[1] for sample in samples) >> 20)
    assert fleet.faults == []
    assert growth < 10
    assert crew_growth < 30
    assert max(files) - min(files) <= 2
    assert len(threads) == 1


# Faults


class Event(NamedTuple):
    """`which` and `long`, between 0 and 1, choose among the possibilities at that moment."""

    at: float
    name: str
    which: float
    long: float


WEIGHTS = {
    "kill a worker": 30,
    "stop a worker": 6,
    "kill a supervisor": 8,
    "stop a supervisor": 8,
    "terminate a supervisor": 8,
    "cut connections": 14,
    "restart Postgres": 5,
    "lock rows": 21,
}


def plan(seed: int, seconds: float) -> list[Event]:
    """The same events for the same seed, as many as fit into the time."""
    rng = random.Random(seed)
    at, events = 2.0, []
    while (at := at + rng.uniform(0.2, 1.5)) < seconds:
        (name,) = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
        events.append(Event(at, name, rng.random(), rng.random()))
    return events


class FaultInjector:
    """Injects the planned faults, and undoes them in time."""

    def __init__(self, fleet: "Fleet", cluster: Cluster, url: str) -> None:
        self._fleet = fleet
        self._cluster = cluster
        self._url = url
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self.counted: Counter[str] = Counter()
        for _ in range(SUPERVISORS):
            fleet.start()

    def wait_until(self, at: float, say: Callable[[], None]) -> None:
        while True:
            while self._later and self._later[0][0] <= time.monotonic():
                heapq.heappop(self._later)[2]()
            self._fleet.look_after()
            self._fleet.say_sometimes(say)
            if (left := at - time.monotonic()) <= 0:
                return
            time.sleep(min(left, 0.05))

    def apply(self, event: Event) -> None:
        serving = self._fleet.serving[int(event.which * len(self._fleet.serving))]
        match event.name:
            case "kill a worker":
                self._signal_worker(event, signal.SIGKILL)
            case "stop a worker":
                self._signal_worker(event, signal.SIGSTOP)
            case "kill a supervisor":
                serving.supervisor.send(signal.SIGKILL)
                self._fleet.replace(serving, {-signal.SIGKILL})
            case "terminate a supervisor":
                serving.supervisor.send(signal.SIGTERM)
                self._fleet.replace(serving, {ExitCode.CLEAN, ExitCode.KILLED_WORK})
            case "stop a supervisor":
                serving.supervisor.send(signal.SIGSTOP)
                self._in(3 + 2 * event.long, lambda: serving.supervisor.send(signal.SIGCONT))
            case "cut connections":
                self._cut_connections()
            case "restart Postgres":
                self._cluster.stop("immediate")
                time.sleep(3 * event.long**2)
                self._cluster.start()
            case "lock rows":
                self._lock_rows(1 + int(event.which * 20), 1 + 2 * event.long)
        self.counted[event.name] += 1

    def calm_down(self) -> None:
        while self._later:
            heapq.heappop(self._later)[2]()

    def _in(self, seconds: float, undo: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._serial), undo))

    def _signal_worker(self, event: Event, number: signal.Signals) -> None:
        if workers := self._fleet.workers():
            worker = workers[int(event.which * len(workers))]
            send_quietly(worker, number)
            if number == signal.SIGSTOP:
                self._in(0.5 + 2 * event.long, lambda: send_quietly(worker, signal.SIGCONT))

    def _cut_connections(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s", (OURS,)
            )

    def _lock_rows(self, count: int, seconds: float) -> None:
        """As a user might in psql."""
        stranger = psycopg.connect(self._url)
        # Alphabetically, runs in progress come first.
        stranger.execute(
            "select id from underway.run order by state, random() limit %s for update skip locked", (count,)
        )
        self._in(seconds, stranger.close)


# Clients


@dataclass
class Ledger:
    """What was enqueued, according to the clients."""

    committed: dict[UUID, tuple[str, int]] = field(default_factory=dict)
    rolled_back: set[UUID] = field(default_factory=set)
    cancelled: set[UUID] = field(default_factory=set)
    maybe_cancelled: set[UUID] = field(default_factory=set)
    uncertain: dict[int, str] = field(default_factory=dict)  # by number: the connection broke during the enqueue
    faults: list[str] = field(default_factory=list)


@contextmanager
def enqueuing(url: str, ledger: Ledger) -> Iterator[None]:
    over = threading.Event()
    threads = [
        threading.Thread(target=Enqueuer(url, ledger, nth).work, args=(over,), name=f"enqueuer {nth}")
        for nth in range(ENQUEUERS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


class Enqueuer:
    """Enqueues runs in every possible way, a few times a second."""

    def __init__(self, url: str, ledger: Ledger, nth: int) -> None:
        self._url = url
        self._ledger = ledger
        self._rng = random.Random(f"{SEED} {nth}")
        self._numbers = itertools.count(nth, ENQUEUERS)
        self._last: Run[Any] | None = None
        self._look_at = 0.0
        # Runs whose commit is not confirmed yet.
        self._batch: dict[int, str] = {}

    def work(self, over: threading.Event) -> None:
        ways = {self._one: 30, self._many: 10, self._transaction: 30, self._sql: 15, self._cancel: 15}
        try:
            while not over.wait(self._rng.uniform(0.02, 0.3)):
                self._batch = {}
                (way,) = self._rng.choices(list(ways), list(ways.values()))
                try:
                    if not self._enough():
                        way()
                except psycopg.Error:
                    self._ledger.uncertain |= self._batch
        except Exception as error:
            self._ledger.faults.append(f"an enqueuer failed: {error!r}")

    def _enough(self) -> bool:
        if time.monotonic() < self._look_at:
            return False
        with chaos.app.connection() as connection:
            row = connection.execute("select count(*) from underway.run").fetchone()
        enough = row is not None and row[0] > MOST_LIVE
        if not enough:
            self._look_at = time.monotonic() + 0.5
        return enough

    def _draw(self) -> tuple[str, int]:
        (job,) = self._rng.choices(list(chaos.weights), list(chaos.weights.values()))
        number = next(self._numbers)
        self._batch[number] = job
        return job, number

    def _one(self) -> None:
        job, number = self._draw()
        self._last = run = chaos.jobs[job].enqueue(chaos.Item(number))
        self._ledger.committed[run.id] = job, number

    def _many(self) -> None:
        job = self._rng.choice(["noops", "noops", "pairs"])
        numbers = list(itertools.islice(self._numbers, self._rng.randint(1, 500)))
        self._batch.update(dict.fromkeys(numbers, job))
        runs = chaos.jobs[job].enqueue_many(chaos.Item(number) for number in numbers)
        self._ledger.committed |= {run.id: (job, number) for run, number in zip(runs, numbers, strict=True)}

    def _transaction(self) -> None:
        written: dict[UUID, tuple[str, int]] = {}
        drawn = [self._draw() for _ in range(self._rng.randint(1, 8))]
        bulk = list(itertools.islice(self._numbers, self._rng.choice([0, 0, 50])))
        self._batch.update(dict.fromkeys(bulk, "noops"))
        commits, pause = self._rng.random() < 0.7, self._rng.uniform(0, 0.2)
        with closing(psycopg.connect(self._url)) as conn:
            for job, number in drawn:
                run = chaos.jobs[job].enqueue(chaos.Item(number), conn=conn)
                written[run.id] = job, number
            for run, number in zip(
                chaos.jobs["noops"].enqueue_many(map(chaos.Item, bulk), conn=conn), bulk, strict=True
            ):
                written[run.id] = "noops", number
            time.sleep(pause)
            if commits:
                conn.commit()
                self._ledger.committed |= written
            else:
                self._batch = {}
                self._ledger.rolled_back |= set(written)
                conn.rollback()

    def _sql(self) -> None:
        job, number = self._draw()
        with chaos.app.connection() as connection:
            row = connection.execute("select underway.enqueue(%s, %s)", (job, Jsonb({"number": number}))).fetchone()
        assert row is not None
        self._ledger.committed[row[0]] = job, number

    def _cancel(self) -> None:
        if self._last is None:
            return
        self._ledger.maybe_cancelled.add(self._last.id)
        if self._last.cancel():
            self._ledger.cancelled.add(self._last.id)
        self._ledger.maybe_cancelled.discard(self._last.id)
        self._last = None


# The audit


class Finished(NamedTuple):
    """A row of finished_run."""

    id: UUID
    job: str
    step: str
    state: str
    attempts: int
    crashes: int
    releases: int
    error: str | None
    result: dict[str, Any] | None
    input: dict[str, Any] | None

    @property
    def payload(self) -> dict[str, Any]:
        """The result, or the last step's input if there is none. Both name the run."""
        return self.result or self.input or {}


class Attempt(NamedTuple):
    run: UUID
    token: int
    step: str
    number: int
    outcome: str


class Audit:
    """Compares the rows in Postgres with the promises. `faults` lists all differences."""

    def __init__(self, connection: psycopg.Connection[Any], ledger: Ledger) -> None:
        self._ledger = ledger
        self.faults: list[str] = []
        self.live = connection.execute("select id, job, state, crashes from underway.run").fetchall()
        rows = connection.execute(
            "select id, job, step, state, attempts, crashes, releases, error, result, input from underway.finished_run"
        )
        self.finished = {row[0]: Finished(*row) for row in rows}
        self.attempts: defaultdict[UUID, list[Attempt]] = defaultdict(list)
        for row in connection.execute(
            "select run_id, token, step, attempt_number, outcome from underway.attempt order by run_id, token"
        ):
            self.attempts[row[0]].append(Attempt(*row))
        self.innocents = [run for run in self.finished.values() if run.job not in chaos.deadly]
        self.quarantined = [run for run in self.innocents if (run.error or "").startswith("quarantined")]
        self._check_existence()
        for run in self.finished.values():
            self._check_state(run)
            self._check_attempts(run, self.attempts[run.id])
            self._check_result(run)
        self._check_children()

    def numbers(self) -> dict[str, int]:
        """Numbers for the report. No fault is counted twice."""
        outcomes = Counter(attempt.outcome for attempts in self.attempts.values() for attempt in attempts)
        faults = Counter(fault.partition(":")[0] for fault in self.faults)
        lost, twice = faults.pop("lost", 0) + faults.pop("still live", 0), faults.pop("there twice", 0)
        return {
            "runs": len(self.finished),
            "lost": lost,
            "twice": twice,
            "wrong_otherwise": faults.total(),
            "innocents": len(self.innocents),
            "innocents_quarantined": len(self.quarantined),
            "crashes": outcomes["crashed"] + outcomes["out_of_memory"],
            "leases_lapsed": outcomes["lost"],
        }

    def _wrong(self, what: str, about: Any) -> None:
        self.faults.append(f"{what}: {about}")

    def _check_existence(self) -> None:
        for row in self.live:
            self._wrong("still live", row)
        for run_id in self._ledger.committed.keys() - self.finished.keys():
            self._wrong("lost", (run_id, self._ledger.committed[run_id]))
        for run_id in self._ledger.rolled_back & self.finished.keys():
            self._wrong("enqueued by a transaction that was rolled back", self.finished[run_id])
        for run_id in self.attempts.keys() - self.finished.keys():
            self._wrong("attempts without a run", self.attempts[run_id])
        numbers: Counter[int] = Counter()
        for run in self.finished.values():
            if run.job == "children":
                continue
            number = run.payload["number"]
            numbers[number] += 1
            known = self._ledger.committed.get(run.id)
            if known is None and self._ledger.uncertain.get(number) == run.job:
                continue
            if known != (run.job, number):
                self._wrong("invented", run)
        for number, count in numbers.items():
            if count > 1:
                self._wrong("there twice", number)

    def _check_state(self, run: Finished) -> None:
        if run.id in self._ledger.cancelled and run.state != "cancelled":
            self._wrong("was cancelled, and ran on", run)
        if run.state == "cancelled" and run.id not in self._ledger.cancelled | self._ledger.maybe_cancelled:
            self._wrong("cancelled without a request", run)
        if run.state != "failed":
            return
        if run.error is not None and run.error.startswith("quarantined"):
            if run.job != "poisons" or run.crashes != chaos.MOST_POISONINGS:
                self._wrong("quarantined", run)
        elif run.job not in chaos.failing:
            self._wrong("failed without a reason", run)
        elif run.attempts < chaos.MOST_ATTEMPTS and "no hope" not in (run.error or ""):
            self._wrong("failed too early", run)

    def _check_attempts(self, run: Finished, attempts: list[Attempt]) -> None:
        """One success for each step, in order; attempt numbers without gaps; correct counters."""
        steps = [step.spec.name for step in chaos.app.jobs[run.job].compiled]
        begun = steps[: steps.index(run.step) + 1]
        succeeded = [attempt.step for attempt in attempts if attempt.outcome == "succeeded"]
        if succeeded != (begun if run.state == "succeeded" else begun[:-1]):
            self._wrong(f"succeeded at {succeeded}", (run, attempts))
        if run.state == "succeeded" and begun != steps:
            self._wrong("succeeded before its last step", run)
        expected = []
        for step in begun:
            count = sum(attempt.step == step for attempt in attempts)
            expected += [(step, number) for number in range(1, count + 1)]
        if [(attempt.step, attempt.number) for attempt in attempts] != expected:
            self._wrong("attempts are not numbered one by one", (run, attempts))
        ended = Counter(attempt.outcome for attempt in attempts if attempt.step == run.step)
        if run.attempts != ended["failed"] + ended["timed_out"]:
            self._wrong("attempts miscounted", (run, attempts))
        if run.crashes != ended["crashed"] + ended["out_of_memory"] + ended["lost"]:
            self._wrong("crashes miscounted", (run, attempts))
        if run.releases < ended["released"]:  # unstarted attempts have no row
            self._wrong("releases miscounted", (run, attempts))

    def _check_result(self, run: Finished) -> None:
        if run.state == "succeeded" and run.job != "children":
            number = run.payload["number"]
            if run.result != {"number": number, "value": chaos.value_of(run.job, number)}:
                self._wrong("a wrong result", run)

    def _check_children(self) -> None:
        """Each attempt that succeeded has all its children, and other attempts have none."""
        born: Counter[tuple[str, str, int, int]] = Counter()
        for run in self.finished.values():
            if run.job == "children":
                birth = chaos.Birth(**run.payload)
                born[birth.parent, birth.step, birth.attempt, birth.nth] += 1
        expected: Counter[tuple[str, str, int, int]] = Counter()
        for run in self.finished.values():
            if run.job == "parents":
                for attempt in self.attempts[run.id]:
                    if attempt.outcome == "succeeded":
                        for nth in range(chaos.children_of(attempt.step, run.payload["number"])):
                            expected[str(run.id), attempt.step, attempt.number, nth] += 1
        for birth_key in born - expected:
            self._wrong("a child of an attempt that did not succeed, or twice", birth_key)
        for birth_key in expected - born:
            self._wrong("a child is missing", birth_key)


# Reports


def _progress(url: str, began: float, events: Counter[str]) -> str:
    """One line, also during an outage."""
    text = f"{time.monotonic() - began:5.0f} s, {events.total():3} events"
    with suppress(psycopg.Error), ExitStack() as stack:
        connection = stack.enter_context(psycopg.connect(url, connect_timeout=2))
        counts: dict[str, int] = dict(
            connection.execute("select state, count(*) from underway.runs group by state").fetchall()
        )
        text += f"; {', '.join(f'{count:,} {state}' for state, count in sorted(counts.items()))}"
    return text


def _verdict(
    audit: Audit, ledger: Ledger, fleet: Fleet, events: Counter[str], seconds: float, faults: list[str]
) -> str:
    states = Counter(run.state for run in audit.finished.values())
    outcomes = Counter(attempt.outcome for attempts in audit.attempts.values() for attempt in attempts)
    charged = Counter(run.crashes for run in audit.innocents if run.crashes)
    lost = Counter(
        attempt.run for attempts in audit.attempts.values() for attempt in attempts if attempt.outcome == "lost"
    )
    jobs = Counter((run.job, run.state) for run in audit.finished.values())
    lines = [
        f"--- chaos with seed {SEED}, {seconds:.0f} s with the rest",
        f"events     {_listed(events)}; {fleet.started} supervisors in all",
        f"enqueued   {len(ledger.committed):,} committed, {len(ledger.rolled_back):,} rolled back, "
        f"{len(ledger.uncertain):,} uncertain, {len(ledger.cancelled):,} cancelled",
        f"runs       {_listed(states)}; {len(audit.finished) / seconds:,.0f} a second",
        *(f"  {job:9}{_listed(Counter({s: n for (j, s), n in jobs.items() if j == job}))}" for job in chaos.app.jobs),
        f"attempts   {_listed(outcomes)}",
        f"innocents  {len(audit.innocents):,}; quarantined {len(audit.quarantined)}; "
        f"{sum(charged.values()):,} were charged crashes at their last step, the most {max(charged, default=0)}; "
        f"{len(lost):,} runs lost an attempt with a supervisor, the most {max(lost.values(), default=0)} of them",
        f"left over  {fleet.hidden} processes without mark, of a supervisor that could not bury its dead",
        f"faults     {len(faults)}",
    ]
    kinds = Counter(fault.partition(":")[0] for fault in faults)
    lines += [f"  {count} x {kind}" for kind, count in kinds.items()]
    lines += [f"- {fault}" for fault in faults[:12]]
    return "\n".join(lines)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common()) or "none"

"""The supervisor: wires the loops together and reacts to what workers say."""

import asyncio
import contextlib
import ctypes
import hashlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from logging import getLogger
from typing import Any
from uuid import UUID, uuid4

from underway import wire
from underway.errors import InvalidOption, NoDatabase, SchemaError, UnderwayError
from underway.manifest import Manifest
from underway.postgres.connect import conninfo, label
from underway.postgres.session import DatabaseAway, Session
from underway.postgres.store import Attempt, Store
from underway.postgres.wakeup import Wakeup
from underway.supervisor import keeper
from underway.supervisor.claims import Claims
from underway.supervisor.commits import Commits, Ended
from underway.supervisor.crew import BootError, Crew
from underway.supervisor.dispatch import Dispatch
from underway.supervisor.leases import Leases
from underway.supervisor.limits import CLEANUP_SECONDS, Limits, about_task, interrupt
from underway.supervisor.promoter import Promoter
from underway.supervisor.reaper import Reaper
from underway.supervisor.shutdown import ExitCode, StopRequest
from underway.supervisor.task import Task
from underway.supervisor.verdict import VERDICTS, Next, Seen, settle, succeed
from underway.supervisor.worker_process import WorkerProcess

log = getLogger("underway.supervisor")
worker_log = getLogger("underway.worker")

TICK_SECONDS = 0.05
_LABEL_SECONDS = 60.0
_SUMMARY_SECONDS = 10.0
_FLUSH_SECONDS = 10.0
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Settings:
    """`grace` is in seconds: how long a stop waits for running steps before it interrupts them."""

    app: str
    procs: int
    database: str | None = None
    grace: float = 30.0
    until_idle: bool = False


def supervise(settings: Settings) -> int:
    """Run a supervisor until it is told to stop; returns its exit code."""
    return asyncio.run(_supervise(settings))


async def _supervise(settings: Settings) -> int:
    return await Supervisor(settings).run()


class Supervisor:
    """One per process. Its identity is new at every start; host and pid are only labels."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._id: UUID = uuid4()
        self._rng = random.Random()  # noqa: S311
        self._held: dict[int, Task] = {}
        self._stop = StopRequest()
        self._crew = Crew(settings.app, settings.procs, str(self._id), self)
        self._dispatch = Dispatch(self._crew)
        self._limits = Limits()
        self._killed_work = False

    async def run(self) -> int:
        self._stop.listen()
        self._start_keeper()
        try:
            self._crew.start()
            manifest = await self._first_manifest()
            if manifest is None:
                return ExitCode.CLEAN
            await self._open(manifest)
            # Not before: an embedded Postgres that was started just now must not become ours to bury.
            _become_subreaper()
            return await self._serve(manifest)
        except BootError as error:
            log.error("%s cannot be started: %s", self._settings.app, error)
            return ExitCode.APP_DOES_NOT_BOOT
        except SchemaError as error:
            log.error("%s", error)
            return ExitCode.SCHEMA_DOES_NOT_FIT
        except (NoDatabase, InvalidOption) as error:
            log.error("%s", error)
            return ExitCode.USAGE
        except (DatabaseAway, UnderwayError) as error:
            log.error("cannot reach the database: %s", error)
            return ExitCode.DATABASE_UNREACHABLE
        finally:
            await self._leave()

    async def _first_manifest(self) -> Manifest | None:
        """What the first worker can run; None if we were told to stop before it was up."""
        stopped = asyncio.ensure_future(self._stop.draining.wait())
        await asyncio.wait([self._crew.first_manifest, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        return self._crew.first_manifest.result() if self._crew.first_manifest.done() else None

    async def _open(self, manifest: Manifest) -> None:
        database = self._settings.database or manifest.database
        if database is None:
            raise NoDatabase
        self._app_label = f"{self._settings.app} on {label(database)}"
        url = conninfo(database)
        self._work = Session(url)
        # Only what is renewed may be lost with a crash of the server: a lease that was not extended is no harm.
        self._lease_session = Session(url, {"synchronous_commit": "off"})
        await self._work.open()
        await self._lease_session.open()
        host = socket.gethostname()
        self._store = Store(self._work, self._lease_session, self._id, host)
        self._wakeup = Wakeup(self._lease_session)
        self._commits = Commits(self._store, self._held, on_continue=self._on_continue, rng=self._rng)
        self._claims = Claims(
            self._store,
            self._crew,
            self._dispatch,
            self._held,
            uncommitted=self._commits.uncommitted,
            listening=lambda: self._wakeup.listening,
            on_empty=self._on_empty,
        )
        self._promoter = Promoter(self._store, on_promoted=self._claims.wake)
        self._leases = Leases(
            self._store,
            self._wakeup,
            self._held,
            shortest_lease=self._shortest_lease,
            on_notify=self._on_notify,
            on_lost=self._on_lost,
        )
        self._reaper = Reaper(
            self._store, self._work, shortest_lease=self._shortest_lease, on_reaped=lambda: self._promoter.hint(0)
        )
        self._empty_looks = asyncio.Event()

    async def _serve(self, manifest: Manifest) -> int:
        await self._register(manifest)
        log.info("serving %s with %d workers", self._app_label, self._settings.procs,
                 extra={"about": {"supervisor": str(self._id)[:8], "pid": os.getpid()}})  # fmt: skip
        loops = [
            self._start(self._leases.run()),
            self._start(self._commits.run()),
            self._start(self._reaper.run()),
            self._start(self._promoter.run()),
            self._start(self._watch()),
            self._start(self._label(manifest)),
            self._start(self._summarise()),
        ]
        claiming = self._start(self._claims.run())
        if self._settings.until_idle:
            loops.append(self._start(self._stop_when_idle(manifest)))
        stopped = self._start(self._stop.draining.wait())
        try:
            await asyncio.wait([stopped, claiming, *loops], return_when=asyncio.FIRST_COMPLETED)
            _raise_first(claiming, *loops)
            claiming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await claiming
            await self._drain()
        finally:
            for loop in (*loops, claiming, stopped):
                loop.cancel()
            await asyncio.gather(*loops, claiming, stopped, return_exceptions=True)
        return ExitCode.KILLED_WORK if self._killed_work else ExitCode.CLEAN

    @staticmethod
    def _start(loop: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        return asyncio.get_running_loop().create_task(loop)

    # What workers say

    def received(self, worker: WorkerProcess, message: wire.Message) -> None:
        match message:
            case wire.Result():
                self._ended(worker, message)
            case wire.Started(token):
                if task := worker.tasks.get(token):
                    task.started_at = time.monotonic()
                    worker.output.forget()
            case wire.Skipped(token):
                self._dispatch.skipped(worker, token)
            case wire.Progress(token, payload):
                if task := worker.tasks.get(token):
                    task.progress = payload
            case wire.Log(token, level, logger, payload):
                self._forward(worker, token, level, logger, payload)
            case wire.Hello():
                self._crew.booted(worker, message)
            case wire.BootFailed():
                self._crew.boot_failed(worker, message)
            case _:
                log.error("unexpected %s from a worker", type(message).__name__,
                          extra={"about": {"worker": worker.slot}})  # fmt: skip
                worker.kill()

    def settled(self) -> None:
        """After a batch of messages: hand out what there is, ask for more."""
        if not self._stop.draining.is_set():
            self._dispatch.pump()
            if hasattr(self, "_claims"):
                self._claims.wake()

    def died(self, worker: WorkerProcess) -> None:
        self._crew.remove(worker)
        self._crew.bury_adopted({self._keeper.pid})
        tasks, worker.tasks = list(worker.tasks.values()), {}
        for task in tasks:
            if task.token not in self._held:
                continue  # lost or cancelled: nothing may be written
            if task.started_at is None:
                task.worker = None
                self._dispatch.add([task]) if not self._stop.draining.is_set() else self._release(task)
                continue
            self._settle(task, _seen_of_death(worker, task), _evidence(worker, task), worker.pid)
        if not tasks and worker.kill_reason is None and worker.ready:
            log.warning("idle worker died: %s", worker.exit_text, extra={"about": {"worker": worker.slot}})

    def _ended(self, worker: WorkerProcess, result: wire.Result) -> None:
        task = worker.tasks.pop(result.token, None)
        if task is None or task.token not in self._held:
            return  # lost in the meantime: its result is refused here already, as the fence would refuse it
        worker.completed += 1
        self._dispatch.took(task.lane, result.seconds)
        attempt = Attempt(
            outcome="succeeded",
            started=result.seconds,
            pid=worker.pid,
            cpu_seconds=result.cpu_seconds,
            peak_rss=max(result.peak_rss, task.peak_rss),
        )
        text = result.payload.decode(errors="replace")
        if result.ending == "next" and result.placement is not None:
            row = succeed(task, attempt, Next(*result.placement, text), text)  # type: ignore[arg-type]
            self._commits.submit(Ended(task, row, _with_parent(result.spawned, task), time.monotonic()))
        elif result.ending == "done":
            row = succeed(task, attempt, None, text)
            self._commits.submit(Ended(task, row, _with_parent(result.spawned, task), time.monotonic()))
        else:
            seen = _seen_of_error(result.ending, text)
            self._settle(task, seen, text, worker.pid, attempt, result.retry_after)

    def _settle(
        self,
        task: Task,
        seen: Seen,
        error: str,
        pid: int | None,
        attempt: Attempt | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Put an ending that is no success on its way to Postgres."""
        outcome = VERDICTS[seen].outcome
        now = time.monotonic()
        if attempt is None:
            started = None if task.started_at is None else now - task.started_at
            attempt = Attempt(outcome=outcome, started=started, pid=pid, peak_rss=task.peak_rss or None)
        attempt = attempt._replace(outcome=outcome, error=error)
        row = settle(task, seen, attempt, self._rng, retry_after)
        self._commits.submit(Ended(task, row, [], now))
        if task.started_at is not None:
            about = {"run": task.run, "job": task.lane.job, "step": task.lane.step, "attempt": task.attempt}
            log.warning("attempt %s (%s): %s", outcome, seen, _last_line(error), extra={"about": about})

    def _release(self, task: Task) -> None:
        self._settle(task, Seen.NEVER_STARTED, "", None)

    def _forward(self, worker: WorkerProcess, token: int, level: int, logger: str, payload: bytes) -> None:
        task = worker.tasks.get(token)
        about = about_task(worker, task) if task else {"worker": worker.slot}
        if worker_log.isEnabledFor(level):
            worker_log.log(level, "%s", payload.decode(errors="replace"), extra={"about": {**about, "logger": logger}})

    # What the loops say

    def _on_notify(self) -> None:
        self._promoter.hint(0)
        self._claims.wake()

    def _on_continue(self, delay: float) -> None:
        if delay > 0:
            self._promoter.hint(delay)
        else:
            self._claims.wake()

    def _on_empty(self) -> None:
        self._empty_looks.set()

    def _on_lost(self, task: Task) -> None:
        """The run is somebody else's now: nothing of ours may be written, and nothing may run on."""
        self._held.pop(task.token, None)
        log.warning("lease lost, its run was taken from us", extra={"about": {"run": task.run}})
        worker = task.worker
        if worker is None:
            self._dispatch.drop(task)
        elif task.started_at is None:
            self._dispatch.ready.extendleft(
                other for other in reversed(self._dispatch.take_back(worker)) if other is not task
            )
        else:
            worker.kill_task(task, "lease lost")

    def _shortest_lease(self) -> float:
        leases = [step.policy.lease.total_seconds() for step in self._crew.lanes.values()]
        return min(leases, default=60.0)

    # Loops of its own

    async def _watch(self) -> None:
        """Limits and patience, ticking only while something is held."""
        while True:
            await asyncio.sleep(TICK_SECONDS if self._held or self._crew.booting else TICK_SECONDS * 10)
            now = time.monotonic()
            self._crew.kill_slow_boots(now)
            if self._keeper.poll() is not None:
                log.error("the keeper is gone, starting another")
                self._start_keeper()
            if not self._held:
                continue
            self._limits.enforce(self._crew.active, now)
            self._dispatch.take_back_waiting(now)
            for task in self._dispatch.stale(now):
                self._release(task)
            self._drop_lapsed(now)
            self.settled()

    def _drop_lapsed(self, now: float) -> None:
        """What waits here under a lease that may have lapsed is no longer ours to hand out."""
        for line in (self._dispatch.ready, self._dispatch.suspects):
            for task in [task for task in line if now >= task.lease_deadline]:
                line.remove(task)
                self._release(task)

    async def _label(self, manifest: Manifest) -> None:
        opened = self._work.opened
        while True:
            deadline = time.monotonic() + _LABEL_SECONDS
            while time.monotonic() < deadline and self._work.opened == opened:
                await asyncio.sleep(1)
            opened = self._work.opened
            with contextlib.suppress(DatabaseAway):
                await self._register(manifest)
                self._claims.forget_idle()

    async def _register(self, manifest: Manifest) -> None:
        digest = hashlib.sha256(manifest.to_json()).hexdigest()
        await self._store.register(pid=os.getpid(), app=self._settings.app, manifest_hash=digest)
        for job in manifest.jobs:
            await self._store.register_job(job.name, job.steps[0].name, job.steps[0].placement)

    async def _summarise(self) -> None:
        """Now and then a line for people: what happened since the last one."""
        before = dict(self._commits.outcomes)
        while True:
            await asyncio.sleep(_SUMMARY_SECONDS)
            after = dict(self._commits.outcomes)
            changes = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
            before = after
            if changes:
                counts = ", ".join(f"{count:,} {name}" for name, count in sorted(changes.items()))
                running = sum(worker.current is not None for worker in self._crew.active)
                log.info("last %.0f s: %s; %d running", _SUMMARY_SECONDS, counts, running)

    async def _stop_when_idle(self, manifest: Manifest) -> None:
        jobs = [job.name for job in manifest.jobs]
        while True:
            await self._empty_looks.wait()
            self._empty_looks.clear()
            if self._held or self._commits.uncommitted():
                continue
            with contextlib.suppress(DatabaseAway):
                if not await self._store.has_work(jobs):
                    log.info("nothing left to do")
                    self._stop.drain()
                    return

    # Stopping

    async def _drain(self) -> None:
        """Finish what runs, then interrupt, then kill; release the rest. Nobody is charged for it."""
        self._crew.stop_booting()
        for task in self._dispatch.take_all():
            self._release(task)
        for worker in self._crew.active:
            for task in self._dispatch.take_back(worker):
                self._release(task)
        if not await self._stop.settled(self._nothing_runs, self._settings.grace):
            self._killed_work = True
            self._interrupt_all()
            if not await self._stop.settled(self._nothing_runs, CLEANUP_SECONDS):
                self._kill_running()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLEANUP_SECONDS):
                        while not self._nothing_runs():
                            await asyncio.sleep(0.01)
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self._commits.flushed()
                await self._store.deregister()
        except (TimeoutError, DatabaseAway):
            self._killed_work = True
            log.error("the database is away: what could not be written will be taken back when its leases expire")

    def _nothing_runs(self) -> bool:
        return not any(worker.tasks for worker in self._crew.active)

    def _interrupt_all(self) -> None:
        for worker in self._crew.active:
            if (task := worker.current) is not None and not self._stop.now.is_set():
                log.warning("interrupted: the supervisor stops", extra={"about": about_task(worker, task)})
                interrupt(worker, task, "shutdown", time.monotonic())

    def _kill_running(self) -> None:
        for worker in list(self._crew.active):
            if (task := worker.current) is not None and worker.kill_task(task, Seen.KILLED_SHUTDOWN):
                log.warning("killed: the supervisor stops", extra={"about": about_task(worker, task)})
            elif worker.tasks:
                worker.kill()

    async def _leave(self) -> None:
        """Nothing that we started may outlive us."""
        self._crew.kill_all()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLEANUP_SECONDS):
                while any(True for _ in self._crew.workers):
                    await asyncio.sleep(0.005)
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait()
        for session in (getattr(self, "_work", None), getattr(self, "_lease_session", None)):
            if session is not None:
                await session.close()

    def _start_keeper(self) -> None:
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, f"{self._id}/"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )


def _become_subreaper() -> None:
    """Orphans of our workers come to us instead of to init, so that we can find and kill them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    else:
        log.warning("no subreaper on %s: what a dead worker has started may survive it", sys.platform)


def _seen_of_death(worker: WorkerProcess, task: Task) -> Seen:
    if worker.kill_reason is not None and worker.kill_reason[0] == task.token:
        return Seen(worker.kill_reason[1])
    return Seen.DIED


def _seen_of_error(ending: str, text: str) -> Seen:
    if ending == "interrupted":
        return Seen.INTERRUPTED_SHUTDOWN if text.startswith("shutdown") else Seen.INTERRUPTED_TIMEOUT
    return Seen.FAIL if ending == "fail" else Seen.RETRY


def _evidence(worker: WorkerProcess, task: Task) -> str:
    """What is known of a worker that died with this task."""
    text = f"the worker died: {worker.exit_text}"
    if worker.kill_reason is not None:
        text = f"the worker was {worker.kill_reason[1]}"
    if worker.died_writing:
        text += ", in the middle of writing its result"
    if output := worker.output.evidence():
        text += f"\nlast output:\n{output}"
    return text


def _with_parent(spawned: list[dict[str, Any]], task: Task) -> list[dict[str, Any]]:
    return [{**spawn, "parent": task.run} for spawn in spawned]


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1][:200] if text.strip() else "no message"


def _raise_first(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()):
            raise error

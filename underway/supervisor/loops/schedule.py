"""Enqueues the runs of schedules that are due; asleep until the earliest of them."""

import asyncio
import time
from collections.abc import Callable
from logging import getLogger

import psycopg

from underway.definition import manifest
from underway.errors import InvalidOption
from underway.ids import new_id
from underway.postgres import schedule_queries
from underway.postgres.reconnecting import ReconnectingConnection
from underway.postgres.schedule_queries import Upcoming
from underway.schedule.cron import Cron, due
from underway.supervisor.loops.adaptive_batch import AdaptiveBatch
from underway.supervisor.loops.errors import FAILED, LoopErrors
from underway.supervisor.workers.pool import WorkerPool

log = getLogger("underway.supervisor")

# Also how long it takes until a schedule that has just been made or changed is seen: less than a slot is apart.
_POLL_SECONDS = 1.0
_SHORTEST_PAUSE = 0.01
_MOST_SLOTS = 200


class Schedules:
    """Any supervisor that knows the job fires; the row of the schedule decides which.

    Only one that knows the job can say where its runs are placed. A schedule whose job nobody serves stays due, and is
    caught up with by its own rule when somebody does.
    """

    def __init__(self, work: ReconnectingConnection, crew: WorkerPool, *, on_enqueued: Callable[[float], None]) -> None:
        self._work = work
        self._crew = crew
        self._on_enqueued = on_enqueued
        self._faults = LoopErrors("schedules")
        self._batch = AdaptiveBatch(_MOST_SLOTS)
        self._complaints: set[tuple[str, ...]] = set()

    async def run(self) -> None:
        while True:
            pause = _POLL_SECONDS
            try:
                pause = await self._turn()
            except FAILED as error:
                self._faults.note(error)
            await asyncio.sleep(pause)

    async def _turn(self) -> float:
        """Fire what is due; how long until the next look."""
        first_steps = self._first_steps()
        moved = False
        for schedule in await schedule_queries.upcoming(self._work, list(first_steps), _POLL_SECONDS):
            if schedule.next_at > schedule.now:
                left = (schedule.next_at - schedule.now).total_seconds()
                return _SHORTEST_PAUSE if moved else max(left, _SHORTEST_PAUSE)
            moved = await self._fire(schedule, first_steps[schedule.job]) or moved
        # What is due and did not move is locked, fired by somebody else just now, broken, or of a unique key that an
        # open transaction has enqueued: that can wait.
        return _SHORTEST_PAUSE if moved else _POLL_SECONDS

    def _first_steps(self) -> dict[str, manifest.Step]:
        """Of every job that a living worker knows: where its runs begin."""
        manifests = [worker.manifest for worker in self._crew.active if worker.manifest is not None]
        return {job.name: job.steps[0] for known in manifests for job in known.jobs}

    async def _fire(self, schedule: Upcoming, first: manifest.Step) -> bool:
        """Whether the schedule waits for another slot now."""
        try:
            cron = Cron(schedule.cron, schedule.zone)
            slots, following = due(cron, schedule.catch_up, schedule.next_at, schedule.now, self._batch.rows)
            runs = [(new_id(), slot) for slot in slots]
            with self._batch.smaller_if_interrupted(len(runs)):
                enqueued = await schedule_queries.fire(
                    self._work, schedule, runs, following, first.name, first.placement
                )
            self._batch.succeeded(len(runs), seconds=time.monotonic() - self._work.sent_at)
        except InvalidOption as error:
            self._complain(schedule, str(error))
            return False
        except psycopg.Error as error:
            self._complain(schedule, error.diag.message_primary or str(error))
            return False
        if enqueued is None:
            return False
        if enqueued:
            log.debug("enqueued %d runs", enqueued, extra={"about": _about(schedule)})
            self._on_enqueued(first.placement.delay.total_seconds())
        elif runs:
            log.info(
                "slot skipped: a run of the schedule, or one with its unique key, is still live",
                extra={"about": _about(schedule)},
            )
        return True

    def _complain(self, schedule: Upcoming, error: str) -> None:
        """Once: it may be a zone that other hosts know, or something written by hand; it will be so for a while."""
        complaint = (schedule.job, schedule.name, schedule.cron, schedule.zone, error)
        if complaint not in self._complaints:
            self._complaints.add(complaint)
            log.error("this schedule cannot be fired here: %s", error, extra={"about": _about(schedule)})


def _about(schedule: Upcoming) -> dict[str, object]:
    slot = schedule.next_at.isoformat(timespec="seconds")
    return {"job": schedule.job, "schedule": schedule.name, "slot": slot}

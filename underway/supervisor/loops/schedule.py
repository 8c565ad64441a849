"""Enqueues the runs of schedules that are due; sleeps until the next is due."""

import time
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
from underway.supervisor.loops.loop import Loop
from underway.supervisor.signals import Signals
from underway.supervisor.workers.pool import WorkerPool

log = getLogger("underway.supervisor")

# Also the time until a new or changed schedule is noticed: less than the time between two slots.
_POLL_SECONDS = 1.0
_SHORTEST_PAUSE = 0.01
_MOST_SLOTS = 200


class ScheduleLoop(Loop):
    """Every supervisor that knows the job may fire a slot; the schedule's row decides which of them does.

    A supervisor that does not know the job cannot say where its runs are placed. A schedule whose job no supervisor
    serves stays due. When one serves it, the schedule catches up by its own rule.
    """

    def __init__(self, work: ReconnectingConnection, pool: WorkerPool, signals: Signals) -> None:
        super().__init__("schedules")
        self._work = work
        self._pool = pool
        self._signals = signals
        self._batch = AdaptiveBatch(_MOST_SLOTS)
        self._reported: set[tuple[str, ...]] = set()

    def failed(self) -> float:
        return _POLL_SECONDS

    async def turn(self) -> float:
        first_steps = self._first_steps()
        moved = False
        for schedule in await schedule_queries.upcoming(self._work, list(first_steps), _POLL_SECONDS):
            if schedule.next_at > schedule.now:
                left = (schedule.next_at - schedule.now).total_seconds()
                return _SHORTEST_PAUSE if moved else max(left, _SHORTEST_PAUSE)
            moved = await self._fire(schedule, first_steps[schedule.job]) or moved
        # A due schedule that did not move is locked, was just fired by another supervisor, is broken, or has a unique
        # key that an open transaction has enqueued: that can wait.
        return _SHORTEST_PAUSE if moved else _POLL_SECONDS

    def _first_steps(self) -> dict[str, manifest.Step]:
        """The first step of every job that a worker knows."""
        manifests = [worker.manifest for worker in self._pool.roster.active if worker.manifest is not None]
        return {job.name: job.steps[0] for known in manifests for job in known.jobs}

    async def _fire(self, schedule: Upcoming, first: manifest.Step) -> bool:
        """Fire what is due. Returns whether the schedule waits for another slot now."""
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
            self._report(schedule, str(error))
            return False
        except psycopg.Error as error:
            self._report(schedule, error.diag.message_primary or str(error))
            return False
        if enqueued is None:
            return False
        if enqueued:
            log.debug("enqueued %d runs", enqueued, extra={"about": _about(schedule)})
            self._signals.run_placed(first.placement.delay.total_seconds())
        elif runs:
            log.info(
                "slot skipped: a run of the schedule, or one with its unique key, is still live",
                extra={"about": _about(schedule)},
            )
        return True

    def _report(self, schedule: Upcoming, error: str) -> None:
        """Log each error once: a zone that only other hosts know, or a row written by hand, stays so for a while."""
        report = (schedule.job, schedule.name, schedule.cron, schedule.zone, error)
        if report not in self._reported:
            self._reported.add(report)
            log.error("this schedule cannot be fired here: %s", error, extra={"about": _about(schedule)})


def _about(schedule: Upcoming) -> dict[str, object]:
    slot = schedule.next_at.isoformat(timespec="seconds")
    return {"job": schedule.job, "schedule": schedule.name, "slot": slot}

"""chancy: one worker, whose queue has the executor of the setting."""

import asyncio
import logging

from chancy import Chancy, Job, Queue, Worker
from chancy.plugins.leadership import Leadership
from chancy.plugins.recovery import Recovery

from benchmarks.peers.inside import database, options, postgres, tasks

# How often chancy checks the leadership and recovers the jobs of dead workers.
_POLL_SECONDS = 5


def perform(task: str, value: int) -> None:
    tasks.perform(task, value)


async def perform_in_loop(task: str, value: int) -> None:
    tasks.perform(task, value)


def _chancy() -> Chancy:
    log = logging.getLogger("chancy")
    log.setLevel(logging.WARNING)
    rescue = options()["rescue"]
    leadership = Leadership(poll_interval=min(_POLL_SECONDS, rescue), timeout=rescue)
    return Chancy(database(), plugins=[leadership, Recovery(poll_interval=_POLL_SECONDS)], log=log)


_client = _chancy()


def prepare() -> None:
    setting = options()
    queue = Queue(
        "default",
        concurrency=setting["concurrency"],
        executor=Chancy.Executor[setting["executor"]].value,
        executor_options=setting["executor_options"],
        eager_polling=True,
    )

    async def declare() -> None:
        async with _chancy() as chancy:
            await chancy.migrate()
            await chancy.declare(queue, upsert=True)

    asyncio.run(declare())


def enqueue(task: str, values: list[int]) -> None:
    job = Job.from_func(perform_in_loop if options()["executor"] == "Async" else perform)
    jobs = [job.with_kwargs(task=task, value=value) for value in values]
    for _references in _client.sync_push_many(jobs):
        pass


def unfinished() -> int:
    return postgres.count("chancy_jobs where state in ('pending', 'running', 'retrying')")


def finished_at() -> float | None:
    """None: completed_at is when the worker saw the end, up to seconds before it is recorded."""
    return None


def run_worker() -> None:
    asyncio.run(_run_worker())


async def _run_worker() -> None:
    rescue = options()["rescue"]
    async with (
        _chancy() as chancy,
        Worker(chancy, heartbeat_poll_interval=max(1, rescue // 3), heartbeat_timeout=rescue) as worker,
    ):
        await worker.wait_for_shutdown()

"""procrastinate: synchronous tasks run in a thread, asynchronous ones in the worker's event loop."""

import asyncio
import logging

import procrastinate
from procrastinate import App, JobContext, PsycopgConnector

from benchmarks.peers.inside import database, options, postgres, tasks

# Every 5 seconds, so that the check for stalled jobs adds little delay. The sixth field is seconds, as documented.
_STALLED_CRON = "* * * * * */5"

app = App(connector=PsycopgConnector(conninfo=database()))


@app.task(name="perform")
def perform(task: str, value: int) -> None:
    tasks.perform(task, value)


@app.task(name="perform_in_loop")
async def perform_in_loop(task: str, value: int) -> None:
    tasks.perform(task, value)


@app.periodic(cron=_STALLED_CRON)
@app.task(queueing_lock="retry_stalled_jobs", pass_context=True)
async def retry_stalled_jobs(context: JobContext, timestamp: int) -> None:
    """As its documentation recommends."""
    manager = context.app.job_manager
    for job in await manager.get_stalled_jobs(seconds_since_heartbeat=options()["rescue"]):
        await manager.retry_job(job)


def prepare() -> None:
    app.open()
    app.schema_manager.apply_schema()


def enqueue(task: str, values: list[int]) -> None:
    name = "perform_in_loop" if options()["in_loop"] else "perform"
    app.configure_task(name).batch_defer(*({"task": task, "value": value} for value in values))


def unfinished() -> int:
    return postgres.count("procrastinate_jobs where status in ('todo', 'doing') and task_name like 'perform%'")


def finished_at() -> float | None:
    return postgres.latest("at", "procrastinate_events where type = 'succeeded'")


def run_worker() -> None:
    logging.getLogger(procrastinate.__name__).setLevel(logging.WARNING)
    asyncio.run(_run_worker())


async def _run_worker() -> None:
    setting = options()
    async with app.open_async():
        await app.run_worker_async(
            concurrency=setting["concurrency"],
            update_heartbeat_interval=setting["rescue"] / 3,
            stalled_worker_timeout=setting["rescue"],
        )

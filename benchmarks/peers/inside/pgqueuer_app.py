"""pgqueuer: jobs in the event loop of one process, with asyncpg, uvloop and batches, as in its own benchmark."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from benchmarks.peers.inside import database, options, tasks

# How often an idle worker polls for jobs without a notification, such as those of a dead worker.
_POLL_SECONDS = 5

_loop = uvloop.new_event_loop()
_opened: list[asyncpg.Connection] = []


async def _connection() -> asyncpg.Connection:
    if not _opened:
        _opened.append(await asyncpg.connect(database()))
    return _opened[0]


async def _queries() -> Queries:
    return Queries.from_asyncpg_connection(await _connection())


def prepare() -> None:
    async def install() -> None:
        queries = await _queries()
        await queries.install()
        await queries.optimize_autovacuum()

    _loop.run_until_complete(install())


def enqueue(task: str, values: list[int]) -> None:
    async def send() -> None:
        payloads = [json.dumps([task, value]).encode() for value in values]
        await (await _queries()).enqueue(["perform"] * len(values), payloads, [0] * len(values))

    _loop.run_until_complete(send())


def unfinished() -> int:
    return int(_value("select count(*) from pgqueuer"))


def finished_at() -> float | None:
    found: float | None = _value(
        "select extract(epoch from max(created))::float8 from pgqueuer_log where status = 'successful'"
    )
    return found


def _value(query: str) -> Any:
    async def ask() -> Any:
        return await (await _connection()).fetchval(query)

    return _loop.run_until_complete(ask())


def run_worker() -> None:
    uvloop.run(_run_worker())


async def _run_worker() -> None:
    setting = options()
    pgq = PgQueuer.from_asyncpg_connection(await asyncpg.connect(database()))

    @pgq.entrypoint("perform")
    async def perform(job: Job) -> None:
        task, value = json.loads(job.payload or b"")
        if setting["threads"]:  # what its documentation recommends for blocking code
            await asyncio.to_thread(tasks.perform, task, value)
        else:
            tasks.perform(task, value)

    await pgq.run(
        batch_size=setting["batch_size"],
        max_concurrent_tasks=setting["max_concurrent_tasks"],
        heartbeat_timeout=timedelta(seconds=setting["rescue"]),
        dequeue_timeout=timedelta(seconds=_POLL_SECONDS),
    )

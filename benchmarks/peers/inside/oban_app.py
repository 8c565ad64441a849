"""oban: jobs in the event loop of one process, as `oban start` runs them."""

import asyncio

import orjson
import uvloop
from oban import Oban, job
from oban.schema import install
from psycopg.types.json import set_json_dumps, set_json_loads

from benchmarks.peers.inside import database, options, postgres, tasks

# As oban's command line does.
set_json_dumps(orjson.dumps)
set_json_loads(orjson.loads)

# How often oban looks for jobs that have been executing for too long.
_LIFELINE_SECONDS = 5

_loop = uvloop.new_event_loop()
_opened: list[Oban] = []


@job()
def perform(task: str, value: int) -> None:
    tasks.perform(task, value)


async def _client() -> Oban:
    if not _opened:
        client = Oban(pool=await Oban.create_pool(database()))
        await client.start()
        _opened.append(client)
    return _opened[0]


def prepare() -> None:
    async def run() -> None:
        pool = await Oban.create_pool(database())
        await install(pool)
        await pool.close()

    _loop.run_until_complete(run())


def enqueue(task: str, values: list[int]) -> None:
    async def send() -> None:
        await (await _client()).enqueue_many([perform.new(task, value) for value in values])

    _loop.run_until_complete(send())


def unfinished() -> int:
    return postgres.count("oban_jobs where completed_at is null")


def finished_at() -> float | None:
    return postgres.latest("completed_at", "oban_jobs")


def run_worker() -> None:
    uvloop.run(_run_worker())


async def _run_worker() -> None:
    setting = options()
    lifeline = {"interval": _LIFELINE_SECONDS, "rescue_after": setting["rescue"]}
    pool = await Oban.create_pool(database())
    async with Oban(pool=pool, queues={"default": setting["limit"]}, lifeline=lifeline):
        await asyncio.Event().wait()

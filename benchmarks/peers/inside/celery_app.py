"""celery: a prefork pool on Redis."""

from celery import Celery
from redis import Redis

from benchmarks.peers.inside import options, redis, tasks

_setting = options()
# How often it looks for what a dead worker has not acknowledged; every tenth time is the default.
_RESTORE_SECONDS = 5

app = Celery("peers", broker=redis())
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=_setting["prefetch"],
    task_acks_late=_setting["acks_late"],
    task_reject_on_worker_lost=_setting["acks_late"],
    broker_transport_options={
        "visibility_timeout": _setting["rescue"],
        "unacked_restore_interval": _RESTORE_SECONDS,
        "unacked_restore_throttle": 1,
    },
)

perform = app.task(tasks.perform, name="perform")
_redis = Redis.from_url(redis())


def prepare() -> None:
    """It makes its queue when the first task comes."""


def enqueue(task: str, values: list[int]) -> None:
    with app.producer_pool.acquire() as producer:
        for value in values:
            perform.apply_async((task, value), producer=producer)


def left() -> int:
    return int(_redis.llen("celery")) + int(_redis.hlen("unacked"))


def finished_at() -> float | None:
    return None


def work() -> None:
    app.worker_main(
        ["worker", "--pool", "prefork", "--concurrency", str(_setting["concurrency"]), "--loglevel", "WARNING",
         "--without-gossip", "--without-mingle"]
    )  # fmt: skip

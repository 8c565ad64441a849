"""celery: a prefork pool on Redis."""

from celery import Celery
from redis import Redis

from benchmarks.peers.inside import options, redis, tasks

_setting = options()
# How often celery restores the unacknowledged tasks of a dead worker; by default only every tenth check does so.
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
    """Nothing to do: celery creates its queue with the first task."""


def enqueue(task: str, values: list[int]) -> None:
    with app.producer_pool.acquire() as producer:
        for value in values:
            perform.apply_async((task, value), producer=producer)


def unfinished() -> int:
    return int(_redis.llen("celery")) + int(_redis.hlen("unacked"))


def finished_at() -> float | None:
    return None


def run_worker() -> None:
    app.worker_main(
        ["worker", "--pool", "prefork", "--concurrency", str(_setting["concurrency"]), "--loglevel", "WARNING",
         "--without-gossip", "--without-mingle"]
    )  # fmt: skip

"""dramatiq: processes with threads on Redis. A message is acknowledged after its task has ended."""

import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.cli import main
from redis import Redis

from benchmarks.peers.inside import options, redis, tasks

_setting = options()

broker = RedisBroker(
    url=redis(),
    heartbeat_timeout=_setting["rescue"] * 1000,
    maintenance_chance=_setting["maintenance_chance"],
)
dramatiq.set_broker(broker)
perform = dramatiq.actor(tasks.perform)
_redis = Redis.from_url(redis())


def prepare() -> None:
    """Nothing to do: dramatiq creates its queue with the first message."""


def enqueue(task: str, values: list[int]) -> None:
    for value in values:
        perform.send(task, value)


def unfinished() -> int:
    # The hash holds a message from enqueue to acknowledgement.
    return int(_redis.hlen("dramatiq:default.msgs"))


def finished_at() -> float | None:
    return None


def run_worker() -> None:
    sys.argv = ["dramatiq", __name__, "--processes", str(_setting["processes"]), "--threads", str(_setting["threads"])]
    sys.exit(main())

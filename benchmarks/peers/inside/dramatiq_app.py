"""dramatiq: processes with threads on Redis. It acknowledges a message when its task has ended."""

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
    """It makes its queue when the first message comes."""


def enqueue(task: str, values: list[int]) -> None:
    for value in values:
        perform.send(task, value)


def left() -> int:
    # The hash holds a message from enqueue to acknowledgement.
    return int(_redis.hlen("dramatiq:default.msgs"))


def finished_at() -> float | None:
    return None


def work() -> None:
    sys.argv = ["dramatiq", __name__, "--processes", str(_setting["processes"]), "--threads", str(_setting["threads"])]
    sys.exit(main())

"""Random events: enqueues, cancels, locks, lost connections, stops, kills, reloads, stalls."""

import signal
from typing import TYPE_CHECKING, Any

from simulation.app import JOBS, LEASE, LIMITS
from simulation.supervisor import GRACE

if TYPE_CHECKING:
    from simulation.world import World

MOST_LIVE = 80


def inject_fault(world: "World") -> None:
    """Let one random event happen, or none."""
    rng, database = world.loop.rng, world.database
    someone = rng.choice(world.supervisors)
    now, live = world.loop.time(), list(database.live)
    dice = rng.random()
    if dice < 0.5:
        if len(live) < MOST_LIVE:
            delay = 0.0 if rng.random() < 0.9 else rng.uniform(0, 2)
            database.enqueue(rng.choice(list(JOBS)), rng.choice(list(LIMITS)), rng.choice([1, 5, 20]), delay)
    elif dice < 0.6:
        if live:
            database.cancel(rng.choice(live))
    elif dice < 0.68:
        if live:
            database.live[rng.choice(live)].locked_until = now + rng.choice([0.01, 0.3, 2])
    elif dice < 0.69:
        rng.choice(world.schedules.every).locked_until = now + rng.choice([0.3, 2])
    elif dice < 0.7:
        keys = sorted({row.key.text for row in database.live.values() if row.key is not None})
        if keys:
            database.keys.lock(rng.choice(keys), rng.choice([0.01, 0.3, 2]))
    elif dice < 0.72:
        rng.choice([someone.work, someone.leases]).cut(rng.choice([0.1, 1, 2 * LEASE]))
    elif dice < 0.74:
        seconds = rng.choice([1, LEASE, 3 * LEASE])
        someone.work.cut(seconds)
        someone.leases.cut(seconds)
    elif dice < 0.745:
        database.away_until = now + rng.choice([0.5, 2 * LEASE])
    elif dice < 0.76:
        someone.ask_to_stop()
        if rng.random() < 0.3:
            world.loop.call_later(rng.uniform(0, GRACE), someone.stop.now.set)
    elif dice < 0.765:
        someone.terminate_all()
    elif dice < 0.775:
        someone.kill()
    elif dice < 0.78:
        someone.reload(rng.choice(["even", "odd"]))
    elif dice < 0.79:
        _stall(world, rng.choice([0.05, 0.5, 1.5 * LEASE]))
    elif dice < 0.8 and someone.pool.roster.active:
        worker: Any = rng.choice(someone.pool.roster.active)
        worker.die(-rng.choice([signal.SIGKILL, signal.SIGTERM]), 0.001)


def _stall(world: "World", seconds: float) -> None:
    world.loop.note("stall", seconds)
    world.stalled = max(world.stalled, seconds)
    world.executions.stalled(seconds)
    world.loop.stall(seconds)

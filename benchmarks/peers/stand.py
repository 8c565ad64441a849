"""One queue, set up for one sample: an empty database (and Redis), a client, workers when they are wanted."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.peers import tape
from benchmarks.peers.inside import DATABASE, OPTIONS, REDIS
from benchmarks.peers.redis_server import redis_server
from benchmarks.peers.roster import Peer, Setting
from benchmarks.peers.tape import ENDED, STARTED, Mark, Tape
from benchmarks.peers.trees import Tree
from benchmarks.stage import Stage

_ROOT = Path(__file__).parent.parent.parent
_LOOK_SECONDS = 0.05
_BOOT_SECONDS = 60
_PATIENCE_SECONDS = 300
_SETTLE_SECONDS = 0.5
_WARM_UP_MILLISECONDS = 10
_ENDED = '{"error": "it ended"}'
# Memory, so that the tape disturbs no disk; what it is not there for is a tape in the usual place.
_TAPES = "/dev/shm" if os.path.isdir("/dev/shm") else None


@dataclass(frozen=True)
class Ground:
    """What all stands are on."""

    stage: Stage
    pythons: dict[str, Path]


class Stand:
    def __init__(self, ground: Ground, peer: Peer, setting: Setting, environment: dict[str, str], folder: Path) -> None:
        self._ground = ground
        self._setting = setting
        self._environment = environment
        self._log = folder / "log"
        self._command = [str(ground.pythons[peer.name]), "-m", "benchmarks.peers.inside", peer.name]
        self.tape = Tape(Path(environment[tape.VARIABLE]))
        self._tree: Tree | None = None
        self._client = subprocess.Popen(
            [*self._command, "client"],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("ab"),
            start_new_session=True,
            text=True,
        )

    def ask(self, do: str, **about: Any) -> Any:
        """What the queue's own client answers: a function of inside.Queue, or `trickle`."""
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        try:
            print(json.dumps({"do": do, **about}), file=self._client.stdin, flush=True)
            reply = json.loads(self._client.stdout.readline() or _ENDED)
        except BrokenPipeError:
            reply = json.loads(_ENDED)
        if "error" in reply:
            raise self._failure(f"its client: {reply['error']}")
        return reply["answer"]

    def start_workers(self) -> None:
        self._tree = Tree([*self._command, "worker"], self._setting.commands, _ROOT, self._environment, self._log)

    def kill_workers(self) -> None:
        if self._tree is not None:
            self._tree.kill()
            self._tree = None

    def warm_up(self, tasks: int) -> None:
        """Until every process has run something and there is nothing left; then some no-ops."""
        deadline = time.monotonic() + _BOOT_SECONDS
        while len({mark.pid for mark in self.tape.marks(ENDED)}) < self._setting.workers:
            if time.monotonic() > deadline:
                raise self._failure("its workers do not come up")
            self.ask("enqueue", task="burn", values=[_WARM_UP_MILLISECONDS] * 4 * self._setting.workers)
            self.settle()
        self.ask("enqueue", task="nothing", values=list(range(tasks)))
        self.settle()
        time.sleep(_SETTLE_SECONDS)
        self.tape.rewind()

    def settle(self) -> None:
        self._await(lambda: self.ask("left") == 0, "tasks are left")

    def release(self, task: str, values: list[int]) -> None:
        """Enqueue them while the workers are held, then let them go: nobody's enqueue is part of what is measured."""
        assert self._tree is not None
        self._tree.hold()
        self.ask("enqueue", task=task, values=values)
        # What autovacuum would have done before long, and nothing left for a checkpoint to do soon.
        with psycopg.connect(self._environment[DATABASE], autocommit=True) as connection:
            connection.execute("analyze")
            connection.execute("checkpoint")
        self._tree.let_go()

    def await_marks(self, count: int) -> None:
        self._await(lambda: len(self.tape) >= count, f"of {count} marks there are too few")

    def seconds_of_work(self) -> float:
        """From the first start to the last end, as the tasks saw it."""
        return max(mark.at for mark in self.tape.marks(ENDED)) - self._first_start()

    def seconds_of_queue(self) -> float:
        """From the first start until the queue had recorded the last end: when it says so or, if it keeps no time,
        when there was nothing left in it."""
        self.settle()
        seen = time.time()
        return float(self.ask("finished_at") or seen) - self._first_start()

    def _first_start(self) -> float:
        return min(mark.at for mark in self.tape.marks(STARTED))

    def marks(self, kind: bytes) -> list[Mark]:
        return self.tape.marks(kind)

    def close(self) -> None:
        try:
            self.kill_workers()
        finally:
            self._client.kill()
            self._client.communicate()

    def _await(self, done: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not done():
            if self._tree is not None and not self._tree.alive:
                raise self._failure("its worker ended")
            if time.monotonic() > deadline:
                raise self._failure(f"{complaint} after {_PATIENCE_SECONDS} s")
            time.sleep(_LOOK_SECONDS)

    def _failure(self, reason: str) -> RuntimeError:
        """The reason and the last words in the first line, then more of what was said by client and workers."""
        said = self._log.read_text(errors="replace").strip()[-3000:]
        last = said.rpartition("\n")[2]
        return RuntimeError(f"{reason} ({last})\n{said}" if last and last not in reason else f"{reason}\n{said}")


@contextmanager
def stand(ground: Ground, peer: Peer, setting: Setting, rescue: int) -> Iterator[Stand]:
    """A stand whose queue is prepared and empty."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="underway-peer-", dir="/tmp")))
        tapes = stack.enter_context(tempfile.TemporaryDirectory(prefix="underway-tape-", dir=_TAPES))
        environment = {
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            DATABASE: stack.enter_context(_database(ground.stage, f"peer_{peer.name}")),
            REDIS: stack.enter_context(redis_server(folder)) if peer.redis else "",
            OPTIONS: json.dumps({**setting.options, "rescue": rescue}),
            tape.VARIABLE: str(Path(tapes) / "tape"),
        }
        made = Stand(ground, peer, setting, environment, folder)
        stack.callback(made.close)
        made.ask("prepare")
        yield made


@contextmanager
def _database(stage: Stage, name: str) -> Iterator[str]:
    """An empty one, which is nobody's afterwards. Yields its URL."""
    drop = sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
    with psycopg.connect(stage.url, autocommit=True) as connection:
        connection.execute(drop)
        stage.cluster.create_database(name)
        try:
            yield stage.cluster.url(name)
        finally:
            connection.execute(drop)


def this_python() -> Path:
    """For those that are to run in the environment we run in."""
    return Path(sys.executable)

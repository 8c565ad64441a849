"""One queue, set up for one sample: an empty database (and Redis), a client, and workers once started."""

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

from benchmarks.peers import event_log
from benchmarks.peers.event_log import ENDED, STARTED, Event, EventLog
from benchmarks.peers.inside import DATABASE, OPTIONS, REDIS
from benchmarks.peers.peers import Peer, Setting
from benchmarks.peers.process_tree import ProcessTree
from benchmarks.peers.redis_server import redis_server
from benchmarks.testbed import Testbed

_ROOT = Path(__file__).parent.parent.parent
_POLL_SECONDS = 0.05
_BOOT_SECONDS = 60
_TIMEOUT_SECONDS = 300
_SETTLE_SECONDS = 0.5
_WARM_UP_MILLISECONDS = 10
_EXITED = '{"error": "it exited"}'
# In memory if possible, so that writing the log does not disturb the disk.
_LOG_FOLDER = "/dev/shm" if os.path.isdir("/dev/shm") else None


@dataclass(frozen=True)
class SharedResources:
    """What all harnesses share: the server, and the interpreter of each peer's environment."""

    testbed: Testbed
    interpreters: dict[str, Path]


class PeerHarness:
    def __init__(
        self, shared: SharedResources, peer: Peer, setting: Setting, environment: dict[str, str], folder: Path
    ) -> None:
        self._shared = shared
        self._setting = setting
        self._environment = environment
        self._log = folder / "log"
        self._command = [str(shared.interpreters[peer.name]), "-m", "benchmarks.peers.inside", peer.name]
        self.event_log = EventLog(Path(environment[event_log.VARIABLE]))
        self._workers: ProcessTree | None = None
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

    def request(self, action: str, **arguments: Any) -> Any:
        """Call a function of inside.Queue, or `enqueue_one_by_one`, in the queue's client process."""
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        try:
            print(json.dumps({"action": action, **arguments}), file=self._client.stdin, flush=True)
            reply = json.loads(self._client.stdout.readline() or _EXITED)
        except BrokenPipeError:
            reply = json.loads(_EXITED)
        if "error" in reply:
            raise self._failure(f"client: {reply['error']}")
        return reply["result"]

    def start_workers(self) -> None:
        self._workers = ProcessTree(
            [*self._command, "worker"], self._setting.commands, _ROOT, self._environment, self._log
        )

    def kill_workers(self) -> None:
        if self._workers is not None:
            self._workers.kill()
            self._workers = None

    def warm_up(self, tasks: int) -> None:
        """Run tasks until every worker process has run one, and then some no-ops."""
        deadline = time.monotonic() + _BOOT_SECONDS
        while len({event.pid for event in self.event_log.events(ENDED)}) < self._setting.workers:
            if time.monotonic() > deadline:
                raise self._failure("its workers did not start")
            self.request("enqueue", task="burn", values=[_WARM_UP_MILLISECONDS] * 4 * self._setting.workers)
            self.await_empty()
        self.request("enqueue", task="nothing", values=list(range(tasks)))
        self.await_empty()
        time.sleep(_SETTLE_SECONDS)
        self.event_log.clear()

    def await_empty(self) -> None:
        self._await(lambda: self.request("unfinished") == 0, "tasks are still unfinished")

    def enqueue_and_release(self, task: str, values: list[int]) -> None:
        """Enqueue tasks while the workers are paused, then resume them, so that the sample excludes enqueueing."""
        assert self._workers is not None
        self._workers.pause()
        self.request("enqueue", task=task, values=values)
        # Do what autovacuum and a checkpoint would otherwise do during the sample.
        with psycopg.connect(self._environment[DATABASE], autocommit=True) as connection:
            connection.execute("analyze")
            connection.execute("checkpoint")
        self._workers.resume()

    def await_events(self, count: int) -> None:
        self._await(lambda: len(self.event_log) >= count, f"fewer than {count} events")

    def task_seconds(self) -> float:
        """From the first start to the last end, as the tasks recorded them."""
        return max(event.at for event in self.event_log.events(ENDED)) - self._first_start()

    def queue_seconds(self) -> float:
        """From the first start until the queue had recorded the last end, or until it was empty if it records no
        times."""
        self.await_empty()
        seen = time.time()
        return float(self.request("finished_at") or seen) - self._first_start()

    def _first_start(self) -> float:
        return min(event.at for event in self.event_log.events(STARTED))

    def events(self, kind: bytes) -> list[Event]:
        return self.event_log.events(kind)

    def close(self) -> None:
        try:
            self.kill_workers()
        finally:
            self._client.kill()
            self._client.communicate()

    def _await(self, done: Callable[[], bool], problem: str) -> None:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not done():
            if self._workers is not None and not self._workers.alive:
                raise self._failure("its worker exited")
            if time.monotonic() > deadline:
                raise self._failure(f"{problem} after {_TIMEOUT_SECONDS} s")
            time.sleep(_POLL_SECONDS)

    def _failure(self, reason: str) -> RuntimeError:
        """The first line has the reason and the last line of the log; the end of the log follows."""
        log = self._log.read_text(errors="replace").strip()[-3000:]
        last = log.rpartition("\n")[2]
        return RuntimeError(f"{reason} ({last})\n{log}" if last and last not in reason else f"{reason}\n{log}")


@contextmanager
def peer_harness(shared: SharedResources, peer: Peer, setting: Setting, rescue: int) -> Iterator[PeerHarness]:
    """A harness whose queue is prepared and empty."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="underway-peer-", dir="/tmp")))
        events = stack.enter_context(tempfile.TemporaryDirectory(prefix="underway-events-", dir=_LOG_FOLDER))
        environment = {
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            DATABASE: stack.enter_context(_database(shared.testbed, f"peer_{peer.name}")),
            REDIS: stack.enter_context(redis_server(folder)) if peer.redis else "",
            OPTIONS: json.dumps({**setting.options, "rescue": rescue}),
            event_log.VARIABLE: str(Path(events) / "events"),
        }
        harness = PeerHarness(shared, peer, setting, environment, folder)
        stack.callback(harness.close)
        harness.request("prepare")
        yield harness


@contextmanager
def _database(testbed: Testbed, name: str) -> Iterator[str]:
    """An empty database, dropped afterwards. Yields its URL."""
    drop = sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
    with psycopg.connect(testbed.url, autocommit=True) as connection:
        connection.execute(drop)
        testbed.cluster.create_database(name)
        try:
            yield testbed.cluster.url(name)
        finally:
            connection.execute(drop)


def this_python() -> Path:
    """The interpreter of the current environment."""
    return Path(sys.executable)

"""python -m benchmarks.peers.inside NAME client|worker

A client reads one request per line, {"action": ..., ...}, and replies with a line {"result": ...} or {"error": ...}.
"""

import importlib
import json
import os
import random
import sys
import time
import traceback
from typing import Any, cast

from benchmarks.peers import event_log
from benchmarks.peers.inside import Queue

# Random pauses between tasks, so that they do not synchronize with anything periodic.
_PAUSES = (0.02, 0.05)


def main() -> None:
    name, role = sys.argv[1:]
    queue = cast(Queue, importlib.import_module(f"benchmarks.peers.inside.{name}_app"))
    if role == "worker":
        queue.run_worker()
    else:
        _serve(queue)


def _serve(queue: Queue) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be read as a reply
    for line in sys.stdin:
        try:
            reply = {"result": _call(queue, **json.loads(line))}
        except Exception as problem:
            traceback.print_exc()
            reply = {"error": f"{type(problem).__name__}: {str(problem).strip().partition(chr(10))[0]}"}
        print(json.dumps(reply), file=replies, flush=True)


def _call(queue: Queue, action: str, **arguments: Any) -> Any:
    if action == "enqueue_one_by_one":
        return _enqueue_one_by_one(queue, **arguments)
    return getattr(queue, action)(**arguments)


def _enqueue_one_by_one(queue: Queue, count: int) -> None:
    """Enqueue no-ops one at a time, and record the time of each call."""
    for value in range(count):
        time.sleep(random.uniform(*_PAUSES))
        event_log.record(event_log.CALLED, value)
        queue.enqueue("nothing", [value])


if __name__ == "__main__":
    main()

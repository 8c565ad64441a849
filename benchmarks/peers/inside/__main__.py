"""python -m benchmarks.peers.inside NAME client|worker

A client reads a request a line, {"do": ..., ...}, and answers each with a line, {"answer": ...} or {"error": ...}.
"""

import importlib
import json
import os
import random
import sys
import time
import traceback
from typing import Any, cast

from benchmarks.peers import tape
from benchmarks.peers.inside import Queue

# Between single tasks, uneven: nothing periodic on either side may fall into step with it.
_PAUSES = (0.02, 0.05)


def main() -> None:
    name, role = sys.argv[1:]
    queue = cast(Queue, importlib.import_module(f"benchmarks.peers.inside.{name}_app"))
    if role == "worker":
        queue.work()
    else:
        _serve(queue)


def _serve(queue: Queue) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    for line in sys.stdin:
        try:
            reply = {"answer": _answer(queue, **json.loads(line))}
        except Exception as problem:
            traceback.print_exc()
            reply = {"error": f"{type(problem).__name__}: {str(problem).strip().partition(chr(10))[0]}"}
        print(json.dumps(reply), file=replies, flush=True)


def _answer(queue: Queue, do: str, **about: Any) -> Any:
    if do == "trickle":
        return _trickle(queue, **about)
    return getattr(queue, do)(**about)


def _trickle(queue: Queue, count: int) -> None:
    """Enqueue no-ops one at a time, each time noting when the call was made."""
    for value in range(count):
        time.sleep(random.uniform(*_PAUSES))
        tape.mark(tape.CALLED, value)
        queue.enqueue("nothing", [value])


if __name__ == "__main__":
    main()

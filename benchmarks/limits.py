"""The in-process limits: what the standard library's pools do with the same functions, and nothing kept."""

import multiprocessing
import multiprocessing.pool
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from benchmarks import work

T = TypeVar("T")

POOL = "multiprocessing.Pool"
EXECUTOR = "ProcessPoolExecutor"

# Forked from a clean server: as quick as a fork, and no copy of our threads and connections.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["benchmarks.work"])
_WARM_UP = 200


@contextmanager
def pool(procs: int) -> Iterator[multiprocessing.pool.Pool]:
    with _context.Pool(procs) as made:
        made.map(work.nothing, range(_WARM_UP), chunksize=1)
        yield made


def cold_executor(procs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(procs, mp_context=_context)


@contextmanager
def executor(procs: int) -> Iterator[ProcessPoolExecutor]:
    with cold_executor(procs) as made:
        list(made.map(work.nothing, range(_WARM_UP)))
        yield made


def pool_rate(procs: int, function: Callable[[T], Any], values: Sequence[T]) -> float:
    """Tasks a second. One task a message, as everywhere here: with chunks a pool is a loop, not a queue."""
    with pool(procs) as made:
        began = time.perf_counter()
        for _ in made.imap_unordered(function, values, chunksize=1):
            pass
        return len(values) / (time.perf_counter() - began)


def executor_rate(procs: int, function: Callable[[T], Any], values: Sequence[T]) -> float:
    with executor(procs) as made:
        began = time.perf_counter()
        for _ in made.map(function, values, chunksize=1):
            pass
        return len(values) / (time.perf_counter() - began)


def pool_two_step_rate(procs: int, values: Sequence[int]) -> float:
    """Pairs of tasks a second, the second fed by what the first returns."""
    with pool(procs) as made:
        began = time.perf_counter()
        firsts = made.imap_unordered(work.identity, values, chunksize=1)
        for _ in made.imap_unordered(work.nothing, firsts, chunksize=1):
            pass
        return len(values) / (time.perf_counter() - began)

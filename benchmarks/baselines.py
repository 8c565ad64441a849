"""The in-process baselines: the same functions in the standard library's pools, which store nothing."""

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

# A fork server is as fast as fork, and its processes inherit none of our threads and connections.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["benchmarks.work"])
_WARM_UP = 200


@contextmanager
def pool(procs: int) -> Iterator[multiprocessing.pool.Pool]:
    with _context.Pool(procs) as workers:
        workers.map(work.nothing, range(_WARM_UP), chunksize=1)
        yield workers


def cold_executor(procs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(procs, mp_context=_context)


@contextmanager
def executor(procs: int) -> Iterator[ProcessPoolExecutor]:
    with cold_executor(procs) as workers:
        list(workers.map(work.nothing, range(_WARM_UP)))
        yield workers


def pool_rate(procs: int, function: Callable[[T], Any], values: Sequence[T]) -> float:
    """Tasks per second. One task per message, as in every benchmark: with chunks, a pool is a loop and not a queue."""
    with pool(procs) as workers:
        began = time.perf_counter()
        for _ in workers.imap_unordered(function, values, chunksize=1):
            pass
        return len(values) / (time.perf_counter() - began)


def executor_rate(procs: int, function: Callable[[T], Any], values: Sequence[T]) -> float:
    with executor(procs) as workers:
        began = time.perf_counter()
        for _ in workers.map(function, values, chunksize=1):
            pass
        return len(values) / (time.perf_counter() - began)


def pool_two_step_rate(procs: int, values: Sequence[int]) -> float:
    """Pairs of tasks per second; the second gets what the first returns."""
    with pool(procs) as workers:
        began = time.perf_counter()
        firsts = workers.imap_unordered(work.identity, values, chunksize=1)
        for _ in workers.imap_unordered(work.nothing, firsts, chunksize=1):
            pass
        return len(values) / (time.perf_counter() - began)

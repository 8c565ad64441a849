"""The benchmarks by name. Each takes a CaseContext and returns its rows."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.cases import (
    backlog,
    bulk,
    claimers,
    cpu,
    growth,
    latency,
    notify,
    poison,
    postgres,
    replacement,
    steady,
    throughput,
)
from benchmarks.cases.context import CaseContext
from benchmarks.model import Row


@dataclass(frozen=True)
class Case:
    text: str
    run: Callable[[CaseContext], list[Row]]


CASES = {
    "noop": Case("no-op runs of one step", throughput.noop),
    "two_step": Case("no-op runs of two steps", throughput.two_step),
    "cpu": Case("steps that burn 20 ms and 200 ms of CPU", cpu.run),
    "latency": Case("from enqueue to the first line of the step, on an idle supervisor", latency.run),
    "enqueue_many": Case("bulk enqueue", bulk.run),
    "replacement": Case("from the SIGKILL of a busy worker to the next task that takes its slot", replacement.run),
    "poison": Case("throughput beside runs that kill their worker", poison.run),
    "steady": Case("memory, idle CPU and connections of a supervisor with 2 and with 8 workers", steady.run),
    "notify": Case("enqueues by 32 concurrent sessions, beside a busy and an idle supervisor", notify.run),
    "postgres": Case("the same claims and commits without a supervisor or workers", postgres.run),
    "backlog": Case("a claim beside millions of runs, and beside a snapshot that is held open", backlog.run),
    "claimers": Case("the slowest claim when many supervisors share one backlog", claimers.run),
    "procs": Case("throughput by the number of workers", growth.procs),
    "payload": Case("throughput by the size of the payload", growth.payload),
    "step_length": Case("throughput by the length of a step", growth.step_length),
    "supervisors": Case("throughput by the number of supervisors on one database", growth.supervisors),
}

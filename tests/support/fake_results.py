"""Invented results of benchmarks."""

import json
from typing import Any

SPENT = {"workers": 20.0, "supervisor": 40.0, "postgres": 30.0, "benchmark": 1.0, "seconds": 90.0}


def row(name: str, ours: float, *, point: tuple[str, float, str] | None = None, **samples: float) -> dict[str, Any]:
    return {
        "name": name,
        "unit": "runs/s",
        "samples": {"underway": [ours], **{name.replace("_", "."): [value] for name, value in samples.items()}},
        "notes": {"cpu_microseconds_a_run": SPENT},
        "point": point and dict(zip(("series", "x", "label"), point, strict=True)),
    }


def result(rows: list[dict[str, Any]], *, at: str = "2026-01-02T03:04:05+0000", **more: object) -> str:
    machine = {"cpu": "a CPU", "cores": 2, "python": "3.11", "postgres": "18", "settings": {"fsync": "on"}, "code": "c"}
    document = {"at": at, "circumstances": {"machine": machine}, "options": {"rounds": 3}, "rows": rows, **more}
    return json.dumps(document)


ROWS = [
    row("no-op, one step", 16_000, multiprocessing_Pool=40_000, ProcessPoolExecutor=8_000),
    {**row("idle latency, median", 3), "notes": {"milliseconds": [2.0, 3.0, 9.0]}},
    *(
        row(f"{work} by {what}: {x}", rate * x, point=(f"{work} by {what}", x, str(x)), multiprocessing_Pool=100)
        for work, rate in (("no-op", 9000), ("20 ms", 50))
        for what in ("workers", "supervisors")
        for x in (1, 2)
    ),
    *(
        row(f"payload: {label}", rate, point=("payload", size, label), multiprocessing_Pool=2 * rate)
        for size, label, rate in ((100, "100 B", 10_000), (1024, "1 KiB", 8000), (10_240, "10 KiB", 4000))
    ),
    *(
        row(f"step length: {ms} ms", rate, point=("step length", ms, f"{ms} ms"), multiprocessing_Pool=2000 / ms,
            **{"2 workers, no overhead": 2000 / ms})
        for ms, rate in ((1, 1000), (5, 380), (20, 96))
    ),
    {**row("claim beside nothing", 0.2), "unit": "ms"},
    {**row("claim beside 1M pending", 0.3), "unit": "ms"},
]  # fmt: skip

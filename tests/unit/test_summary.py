"""The summary line in the log."""

import asyncio
import logging
from collections import Counter

import pytest

from underway.supervisor.logs import summary
from underway.supervisor.tasks.verdict import Observation


def test_a_summary_reports_the_changes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(summary, "_SECONDS", 0.01)
    outcomes, ends, commits = (
        Counter(succeeded=1200, crashed=3),
        Counter({Observation.KILLED_MEMORY: 1, "lost": 2}),
        [0.002],
    )
    commits += [0.001, 0.0402]

    async def main() -> None:
        def running() -> int:
            told.set()
            return 4

        told = asyncio.Event()
        summarising = asyncio.ensure_future(summary.summarise(outcomes, ends, commits, running))
        await told.wait()
        await asyncio.sleep(0.05)
        assert len(caplog.messages) == 1, "no attempt has ended since then"
        assert not commits
        told.clear()
        outcomes["succeeded"] += 1
        await told.wait()
        summarising.cancel()

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    assert caplog.messages == [
        "last 0 s: 3 crashed, 1 killed: memory, 2 lost, 1,200 succeeded; commits took 2.0 ms, at most 40 ms; 4 running",
        "last 0 s: 1 succeeded; 4 running",
    ]

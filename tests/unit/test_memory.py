"""What it takes to weigh workers."""

import os

from underway.supervisor.workers.memory import SAMPLE_SECONDS, Memory


def test_thousands_of_processes_are_weighed_less_often() -> None:
    """Three thousand that one step had started took a sixth of a core from the supervisor."""
    memory = Memory()
    memory.sample([os.getpid()])
    assert memory.pause == SAMPLE_SECONDS
    memory.sample([os.getpid()] * 3000)
    assert memory.pause > 2 * SAMPLE_SECONDS
    memory.sample([os.getpid()])
    assert memory.pause == SAMPLE_SECONDS

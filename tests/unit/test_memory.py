"""The cost of measuring the memory of workers."""

import os

from underway.supervisor.workers.memory import SAMPLE_SECONDS, Memory


def test_thousands_of_processes_are_measured_less_often() -> None:
    """(Measuring 3,000 processes of one step took a sixth of a core.)"""
    memory = Memory()
    memory.sample([os.getpid()])
    assert memory.pause == SAMPLE_SECONDS
    memory.sample([os.getpid()] * 3000)
    assert memory.pause > 2 * SAMPLE_SECONDS
    memory.sample([os.getpid()])
    assert memory.pause == SAMPLE_SECONDS

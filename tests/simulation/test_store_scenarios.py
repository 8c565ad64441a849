"""The store of the simulation behaves like the SQL: both pass the same scenarios and the same random histories."""

from typing import Any

import pytest

from simulation.histories import History
from simulation.scenarios import SCENARIOS
from simulation.subjects import Scenario, Subject, run_fake, run_real

OPERATIONS = 80


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_postgres_passes(scenario: Scenario, database: str) -> None:
    run_real(scenario, database)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_the_simulation_passes(scenario: Scenario) -> None:
    run_fake(scenario)


@pytest.mark.parametrize("seed", range(8))
def test_both_give_the_same_history(seed: int, database: str) -> None:
    async def play(subject: Subject) -> list[Any]:
        return await History(subject, seed).play(OPERATIONS)

    real, fake = run_real(play, database), run_fake(play)
    for number, (by_postgres, by_simulation) in enumerate(zip(real, fake, strict=True)):
        assert by_simulation == by_postgres, f"operation {number}"

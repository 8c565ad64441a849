"""Plays one history again, as a test that failed has named it: python -m simulation SEED TURNS."""

import sys

from simulation.simulate import simulate

seed, turns = map(int, sys.argv[1:])
world = simulate(seed, turns)
print(f"nothing found in {world.loop.turns:,} turns, in which {len(world.database.ledger.finished):,} runs have ended")

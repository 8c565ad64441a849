"""Replays one history with the arguments that a failed test printed: python -m simulation SEED TURNS, or SEED slow."""

import sys

from simulation.simulate import simulate, simulate_slow_line

seed, turns = sys.argv[1:]
world = simulate_slow_line(int(seed)) if turns == "slow" else simulate(int(seed), int(turns))
print(f"nothing found in {world.loop.turns:,} turns, in which {len(world.database.ledger.finished):,} runs have ended")

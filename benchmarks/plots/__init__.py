"""Plots of the results, to be put into a talk: python -m benchmarks.plots. Needs matplotlib (make bench has it)."""

"""Plots of the results: python -m benchmarks.plots. Needs matplotlib, which `make bench` installs."""

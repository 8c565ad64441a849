"""Benchmarks of underway, each beside the same work done in process on the same machine: python -m benchmarks."""

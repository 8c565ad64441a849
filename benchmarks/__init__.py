"""How fast underway is, each figure beside what the same machine does in process: python -m benchmarks."""

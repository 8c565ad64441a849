"""Underway beside other queues: the same work, each in an environment of its own: python -m benchmarks.peers

    roster        who is compared, in which settings, and why
    environments  a virtual environment for each, made on demand below .envs/
    inside/       what runs in such an environment: tasks, how to enqueue them, how to be a worker
    tape          the file in which every task writes what it did, the same for all
    stand         one queue set up for one sample: a fresh database, a client, workers
    measures      what a sample is
    table         the answer

Nothing but the standard library is imported here: this package is also imported in the peers' environments.
"""

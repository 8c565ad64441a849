"""Compares underway with other queues on the same work: python -m benchmarks.peers

    peers         the queues, their settings, and the reasons for these
    environments  a virtual environment for each queue, created on demand in .envs/
    inside/       what runs in such an environment: tasks, enqueueing, workers
    event_log     the file in which every task, of any queue, records its start and end
    process_tree  the worker processes of a queue, paused, resumed and killed together
    harness       one queue set up for one sample: a fresh database, a client, workers
    measures      how a sample is taken
    table         the table of results

This module must not import anything, because the peers' environments import the package too.
"""

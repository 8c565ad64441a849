"""The second Postgres on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from underway.testing.servers import temporary_cluster


@contextmanager
def debian_server() -> Iterator[str | None]:
    """The oldest Postgres that Debian has installed, or None. It is stricter than PostgreSQL 18."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        yield None
        return
    with temporary_cluster(bin_dir=found[0].parent) as cluster:
        yield cluster.url("postgres")

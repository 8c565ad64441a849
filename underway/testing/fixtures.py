"""The fixtures of `pytest_plugins = ["underway.testing"]`. PYTEST_DONT_REWRITE"""

from collections.abc import Iterator

from underway.testing.servers import TemporaryPostgres, temporary_postgres

try:
    import pytest
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the fixtures of underway.testing need pytest: pip install pytest (without it, use temporary_postgres())"
    ) from error


@pytest.fixture(scope="session")
def underway_postgres() -> Iterator[TemporaryPostgres]:
    """A Postgres for the whole session."""
    with temporary_postgres() as postgres:
        yield postgres


@pytest.fixture
def underway_database(underway_postgres: TemporaryPostgres) -> Iterator[str]:
    """The URL of a fresh database with the schema. It is dropped after the test."""
    with underway_postgres.database() as url:
        yield url

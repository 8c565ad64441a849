"""Rules that every SQL file of the package follows."""

import re
from collections.abc import Iterator
from importlib.resources import files

import psycopg
import pytest
from db import Connection, value

from underway.postgres.queries import read

SQL = files("underway.postgres").joinpath("sql")
FOLDERS = ("migrations", "functions", "views", "fragments", "statements")


def texts() -> Iterator[tuple[str, str]]:
    """Each file as it is written, before fragments are inserted."""
    for folder in FOLDERS:
        for file in SQL.joinpath(folder).iterdir():
            yield f"{folder}/{file.name}", file.read_text()


def test_every_insert_of_a_run_uses_place_run() -> None:
    inserting = {name: len(re.findall(r"insert into underway\.run\b", text)) for name, text in texts()}
    placing = {name: text.count("underway.place_run(") for name, text in texts()}
    assert sum(inserting.values()) == 6
    for name, inserts in inserting.items():
        assert placing[name] >= inserts, name
    # A COPY has constant columns, which come from a statement beside it.
    (copying,) = [text for _, text in texts() if "copy underway.run " in text]
    assert re.search(r"^-- placement: .*?place_run\(.*?^-- copy_runs: ", copying, re.MULTILINE | re.DOTALL)


def test_only_one_fragment_files_finished_runs() -> None:
    filing = [name for name, text in texts() if "insert into underway.finished_run" in text]
    assert filing == ["fragments/file_finished_runs.sql"]
    users = [name for name, text in texts() if re.search(r"^ *:file_finished_runs$", text, re.MULTILINE)]
    assert sorted(users) == ["functions/cancel_runs.sql", "statements/commits.sql", "statements/leases.sql"]


def test_every_fragment_is_used() -> None:
    everything = "\n".join(text for _, text in texts())
    for name in read("fragments"):
        assert re.search(rf"^ *:{name}$", everything, re.MULTILINE), name


def test_place_run_is_inlined(any_connection: Connection) -> None:
    query = "explain (verbose) select * from underway.place_run(now(), '1 minute', 3, false)"
    plan = "\n".join(line for (line,) in any_connection.execute(query))
    assert "place_run" not in plan
    assert "Function Scan" not in plan


@pytest.mark.parametrize(
    ("delay", "needs_key", "state", "is_due", "has_rank"),
    [
        ("0", False, "pending", True, True),
        ("1 hour", False, "waiting", False, True),
        ("0", True, "waiting", True, True),
        ("1 hour", True, "waiting", False, False),
    ],
)
def test_the_place_of_a_run(
    connection: Connection, delay: str, needs_key: bool, state: str, is_due: bool, has_rank: bool
) -> None:
    place = "underway.place_run(now(), %s::interval, 7, %s)"
    columns = "state, due_at <= now(), rank is not null, rank is null or due_at - rank = interval '7 minutes'"
    row = connection.execute(f"select {columns} from {place}", [delay, needs_key]).fetchone()
    assert row == (state, is_due, has_rank, True)


@pytest.mark.parametrize("columns", ["due_at = null", "rank = null"])
def test_a_run_that_can_be_claimed_has_a_place_in_line(connection: Connection, columns: str) -> None:
    """Without one, no claim and no promoter would find it."""
    insert = "insert into underway.run (id, job, step, queue, keep, due_at, rank, state, input) values"
    connection.execute(f"{insert} (gen_random_uuid(), 'job', 'step', 'default', '1 day', now(), now(), 'pending', '1')")
    for state in ("pending", "waiting"):
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute(f"update underway.run set {columns}, state = '{state}'")


def test_every_function_table_and_view_has_a_comment(connection: Connection) -> None:
    uncommented = """
        select proname from pg_proc
        where pronamespace = 'underway'::regnamespace and obj_description(oid, 'pg_proc') is null
        union all
        select relname from pg_class
        where relnamespace = 'underway'::regnamespace and relkind in ('r', 'v')
            and obj_description(oid, 'pg_class') is null
    """
    assert value(connection, f"select array_agg(proname) from ({uncommented}) s") is None


def test_lines_are_at_most_120_characters_long() -> None:
    for name, text in texts():
        for number, line in enumerate(text.splitlines(), 1):
            assert len(line) <= 120, (name, number)

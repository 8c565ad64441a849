"""The schema that a migrated database has, compared with schema.txt: no change to it is made by accident."""

import os
from pathlib import Path

from db import Connection
from schema_text import describe

SNAPSHOT = Path(__file__).with_name("schema.txt")
HOW = "if the change is intended, write the snapshot anew: WRITE_SCHEMA=1 python -m pytest tests/sql/test_schema.py"


def test_the_schema_is_the_one_in_the_snapshot(connection: Connection) -> None:
    found = describe(connection)
    if os.environ.get("WRITE_SCHEMA"):
        SNAPSHOT.write_text(found)
    assert found.splitlines() == SNAPSHOT.read_text().splitlines(), HOW

"""The schema of a migrated database, compared with schema.txt, so that no change happens by accident."""

import os
from pathlib import Path

from db import Connection
from schema_text import describe

SNAPSHOT = Path(__file__).with_name("schema.txt")
HOW = "if the change is intended, rewrite the snapshot: WRITE_SCHEMA=1 python -m pytest tests/sql/test_schema.py"


def test_the_schema_equals_its_snapshot(connection: Connection) -> None:
    found = describe(connection)
    if os.environ.get("WRITE_SCHEMA"):
        SNAPSHOT.write_text(found)
    assert found.splitlines() == SNAPSHOT.read_text().splitlines(), HOW

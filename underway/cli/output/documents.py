"""What a command prints: a table for people, or one JSON document for programs."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from underway.cli.output.table import Column, Row, render, terminal_width
from underway.printable import printable, printable_json

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def print_rows(rows: Sequence[Row], columns: Sequence[Column[Row]], as_json: bool, *, none: str) -> None:
    """A list; `none` is what people read when it is empty."""
    if as_json:
        print_json(rows)
    elif rows:
        for line in render(columns, rows, terminal_width()):
            click.echo(line)
    else:
        click.echo(none)


def print_done(document: Mapping[str, Any], text: str, as_json: bool) -> None:
    """What a command has done."""
    if as_json:
        print_json(document)
    else:
        click.echo(printable(text))


def print_json(document: object) -> None:
    """Instants are ISO 8601 in UTC, durations seconds, sizes bytes."""
    click.echo(printable_json(json.dumps(document, indent=2, default=_plain, ensure_ascii=False)))


def _plain(value: object) -> str:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)

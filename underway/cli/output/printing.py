"""Prints the output of a command: text for people, or one JSON document for programs."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from underway.cli.output.table import Column, Record, render, terminal_width
from underway.printable import printable, printable_json


def print_table(records: Sequence[Record], columns: Sequence[Column[Record]], as_json: bool, *, empty: str) -> None:
    """Print a list. `empty` is the text for an empty list."""
    if as_json:
        print_json(records)
    elif records:
        for line in render(columns, records, terminal_width()):
            click.echo(line)
    else:
        click.echo(empty)


def print_result(document: Mapping[str, Any], text: str, as_json: bool) -> None:
    """Print what a command has done."""
    if as_json:
        print_json(document)
    else:
        click.echo(printable(text))


def print_note(text: str) -> None:
    click.echo(printable(f"note: {text}"), err=True)


def print_json(document: object) -> None:
    """Print JSON: instants as ISO 8601 in UTC, durations in seconds, sizes in bytes."""
    click.echo(printable_json(json.dumps(document, indent=2, default=_to_json, ensure_ascii=False)))


def _to_json(value: object) -> str:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)

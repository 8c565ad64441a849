"""Option types for durations and sizes."""

import math
from typing import Any

import click

from underway.definition.options import checked_size
from underway.errors import InvalidOption


class Seconds(click.FloatRange):
    """A duration in seconds. `inf` means no limit.

    `nan` is rejected: it compares as neither earlier nor later, and a stop with that grace period never ended.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


def parse_size(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    """The bytes of an option such as 1073741824 or "1 GiB"."""
    if value is None:
        return None
    try:
        return checked_size("SIZE", int(value) if value.isdigit() else value)
    except InvalidOption as error:
        raise click.BadParameter(str(error)) from None

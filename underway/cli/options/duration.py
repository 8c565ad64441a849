"""Seconds as an option of a command."""

import math
from typing import Any

import click


class Seconds(click.FloatRange):
    """`inf` is for as long as it takes. But nothing is ever later than `nan`: a stop with that grace did not end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds.", param, ctx)
        return seconds

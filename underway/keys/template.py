"""Keys: constants, or templates over the fields of an input. Pure; `underway.render_key` does the same in SQL.

`"{customer_id}"` is replaced by that field of the input's JSON; `"{customer.id}"` is a field of a nested object.
A field must be a string, an integer or a boolean, because only these have the same text in Python and in SQL. An
integer is written with digits only: 1.0 and 1e3 are rejected.
"""

import json
import re
from typing import Any

from underway.errors import InvalidOption, PayloadError
from underway.text import checked_text

# A key and the name of a queue must fit into an index entry, which has at most 2,704 bytes.
LONGEST = 400

_TEMPLATE = re.compile(r"(?:[^{}]|\{[^{}.]+(?:\.[^{}.]+)*\})+")
_FIELD = re.compile(r"\{([^{}]+)\}")


def checked(option: str, template: object) -> str:
    """The template; InvalidOption, which names the option, if it is not valid."""
    checked_text(option, template, LONGEST)
    assert isinstance(template, str)
    if not _TEMPLATE.fullmatch(template):
        raise InvalidOption(
            f"{option}: invalid key template {template!r}: write a field of the input as {{field}} or {{field.field}}"
        )
    return template


def fields(template: str) -> list[str]:
    """The fields that a template takes from the input: "a.b" is the field b of the object in the field a."""
    return _FIELD.findall(template)


def fill(template: str, payload: bytes) -> str:
    """The key for this input; PayloadError if a field is missing or is not a string, an integer or a boolean."""
    if "{" not in template:
        return template
    # Keep an integer as text: Python refuses to parse one with more than 4300 digits.
    tree = json.loads(payload, parse_int=str)
    filled = _FIELD.sub(lambda field: _text(template, field[1], _find(template, field[1], tree)), template)
    if not 1 <= len(filled) <= LONGEST:
        raise PayloadError(f"the key {template!r} has {len(filled)} characters here, and 1 to {LONGEST} are allowed")
    return filled


def fill_both(unique_key: str | None, concurrency_key: str | None, payload: bytes) -> tuple[str | None, str | None]:
    """The keys of a run with this input; None without a template. Raises PayloadError as `fill` does."""
    return unique_key and fill(unique_key, payload), concurrency_key and fill(concurrency_key, payload)


def _find(template: str, field: str, tree: Any) -> Any:
    for name in field.split("."):
        if not isinstance(tree, dict) or name not in tree:
            raise PayloadError(f"the key {template!r} needs the field {field}, which the input does not have")
        tree = tree[name]
    return tree


def _text(template: str, field: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    raise PayloadError(
        f"the key {template!r} takes a string, an integer or a boolean from the field {field}, "
        f"not {json.dumps(value)[:100]}"
    )

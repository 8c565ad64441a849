"""Keys: constants, or templates over the fields of an input. Pure; `underway.render_key` is the twin in SQL.

`"{customer_id}"` is replaced by that field of the input as it travels, in JSON; `"{customer.id}"` looks into a nested
object. A field must be a string, an integer or a boolean: of these the text is the same everywhere.
An integer is written with digits only: 1.0 and 1e3 are rejected.
"""

import json
import re
from typing import Any

from underway.errors import InvalidOption, PayloadError

# With the name of a queue it has to fit into an entry of an index, which is 2,704 bytes at most.
LONGEST = 400

_TEMPLATE = re.compile(r"(?:[^{}]|\{[^{}.]+(?:\.[^{}.]+)*\})+")
_FIELD = re.compile(r"\{([^{}]+)\}")


def checked(option: str, template: object) -> str:
    """The template if it is one; InvalidOption, naming the option, if not."""
    if not isinstance(template, str) or "\0" in template or not 1 <= len(template) <= LONGEST:
        raise InvalidOption(f"{option} must be a text of 1 to {LONGEST} characters, not {template!r}")
    if not _TEMPLATE.fullmatch(template):
        raise InvalidOption(f"{option} is a text in which {{field}} stands for a field of the input, not {template!r}")
    return template


def fields(template: str) -> list[str]:
    """What it takes from the input: "a.b" is the field b of what the field a is."""
    return _FIELD.findall(template)


def fill(template: str, payload: bytes) -> str:
    """The key for this input; PayloadError if a field is missing or is nothing to make a key of."""
    if "{" not in template:
        return template
    # Keep an integer as text: Python refuses to parse one with more than 4300 digits.
    tree = json.loads(payload, parse_int=str)
    filled = _FIELD.sub(lambda field: _text(template, field[1], _find(template, field[1], tree)), template)
    if not 1 <= len(filled) <= LONGEST:
        raise PayloadError(f"the key {template!r} has {len(filled)} characters here, and 1 to {LONGEST} are allowed")
    return filled


def fill_both(unique_key: str | None, concurrency_key: str | None, payload: bytes) -> tuple[str | None, str | None]:
    """The keys of a run with this input; None where there is no template. Raises what `fill` raises."""
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

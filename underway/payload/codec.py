"""Values <-> JSON. Pure.

A `Codec` encodes and decodes the values of one type. It decodes every value that it has encoded, and compares: a value
that the next step could not read, or would read as another value, is refused where it was made. orjson writes and reads
the JSON, msgspec makes typed values of it. pydantic models are recognized by their methods; pydantic is never imported.
"""

import contextlib
import json
import math
import re
from datetime import date
from functools import lru_cache
from inspect import Parameter
from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
import msgspec.inspect as shapes
import orjson

from underway.errors import PayloadError
from underway.payload import diagnose
from underway.payload.diagnose import is_model, kind_of
from underway.payload.type_names import type_name

MAX_PAYLOAD = 8 * 1024 * 1024

# The names of msgspec.inspect's types whose values orjson writes without help
_PLAIN = {"Any", "None", "Bool", "Int", "Float", "Str", "Literal", "Union", "List", "Dict", "TypedDict"}
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # not the text u0000 after a backslash, which JSON writes as two


def encode(value: Any, expected: Any, *, max_payload: int = MAX_PAYLOAD) -> bytes:
    """JSON that decodes to an equal value; PayloadError if there is none."""
    return codec_for(expected).encode(value, max_payload)


def decode(data: bytes | str, expected: Any) -> Any:
    """The value of this type that the JSON represents; PayloadError if it represents none."""
    return codec_for(expected).decode(data)


def decode_plain(data: bytes | str) -> Any:
    """Plain values, for display. Also decodes numbers that no step could be given.

    SQL callers can write 1e400 and integers of more than 4,300 digits. Such a number is decoded as its text. (With one
    in a dead letter, its whole label could not be listed.)
    """
    return json.loads(data, parse_int=_integer, parse_float=_float)


def _integer(digits: str) -> int | str:
    try:
        return int(digits)
    except ValueError:
        return digits


def _float(digits: str) -> float | str:
    value = float(digits)
    return digits if math.isinf(value) else value


def check_type(expected: Any) -> None:
    """PayloadError if no value of this type can travel. Forward references must be resolved (get_type_hints)."""
    codec_for(expected)


def codec_for(expected: Any) -> "Codec":
    """The codec of a type, built once. Any, object and a missing annotation mean plain JSON."""
    try:
        return _codec(expected)
    except TypeError:  # Annotated with a value that has no hash
        return Codec(expected)


class Codec:
    """Encodes and decodes the values of one type. `plain`: whether orjson reads and writes all of them as they are."""

    def __init__(self, expected: Any) -> None:
        self.type = Any if expected is object or expected is Parameter.empty else expected
        self.name = type_name(self.type)
        has_name = isinstance(expected, type) and expected.__module__ not in ("builtins", "typing")
        self._root = self.name if has_name else "value"  # where a path begins
        self._types, self._members = self._inspect()
        hooks = bool(self._members)
        for path, node in self._types:
            if reason := diagnose.unsupported_reason(node):
                raise PayloadError(f"{self.name} cannot travel as JSON: {path} {reason}")
            other_keys = isinstance(node, shapes.DictType) and kind_of(node.key_type) not in ("Str", "Any")
            hooks = hooks or other_keys or isinstance(node, shapes.CustomType)
        self.plain = not hooks and all(kind_of(node) in _PLAIN for _, node in self._types)
        # Passing options costs as much as a small value itself, so only the types that need them have any.
        self._out: dict[str, Any] = {"str_keys": True, "enc_hook": _to_builtin} if hooks else {}
        self._in: dict[str, Any] = {"str_keys": True, "dec_hook": _build} if hooks else {}
        # msgspec caches its knowledge of a class, not of an expression such as list[Order].
        self._box = msgspec.defstruct("Box", [("value", self.type)], array_like=True)

    def _inspect(self) -> tuple[list[tuple[str, shapes.Type]], "list[Codec]"]:
        """The types within the type; for a union whose members msgspec cannot distinguish, their codecs."""
        try:
            return diagnose.types_within(shapes.type_info(self.type), self._root), []
        except Exception as error:
            if get_origin(self.type) not in (Union, UnionType):
                hint = "; tag its members (msgspec.Struct, tag=True)" if "unions" in str(error) else ""
                raise PayloadError(f"{self.name} cannot travel as JSON: {error}{hint}") from error
            # A | B and B | A are the same type to Python, so their order must not matter.
            return [], [codec_for(member) for member in sorted(get_args(self.type), key=type_name)]

    def encode(self, value: Any, max_payload: int = MAX_PAYLOAD) -> bytes:
        """JSON that decodes to an equal value; PayloadError if there is none."""
        try:
            data = self._dump(value)
            reason = self._validate(value, data, max_payload)
        except Exception as error:
            reason = diagnose.find_unencodable(value, self._root) or diagnose.describe_error(error, self._root)
            raise PayloadError(reason) from error
        if reason:
            raise PayloadError(reason)
        return data

    def decode(self, data: bytes | str) -> Any:
        """The value that the JSON represents; PayloadError if it does not fit the type. Unknown fields are ignored."""
        tree = None
        try:
            tree = orjson.loads(data)
            return self._load(tree)
        except Exception as error:
            reason = diagnose.describe_error(error, self._root)
            hint = diagnose.missing_field_hint(error, tree, self._types)
            raise PayloadError(f"the data does not fit {self.name}: {reason}{hint}") from error

    def _dump(self, value: Any) -> bytes:
        try:
            # Not orjson's own encoding of dataclasses, which writes all of __dict__.
            data = orjson.dumps([[[[value if self.plain else msgspec.to_builtins(value, **self._out)]]]])
        except TypeError:  # it may only contain a subclass of float, or an enum as a key
            data = orjson.dumps([[[[msgspec.to_builtins(value, str_keys=True, enc_hook=_to_builtin)]]]])
        return data[4:-4]

    def _load(self, tree: Any) -> Any:
        if self.type is Any:
            return tree
        if not self._members:
            return msgspec.convert([tree], self._box, **self._in).value
        fits = []
        for member in self._members:
            with contextlib.suppress(Exception):  # another member may fit
                fits.append(member._load(tree))
                if orjson.loads(member._dump(fits[-1])) == tree:
                    return fits[-1]  # this member would have written the same JSON
        if not fits:
            raise PayloadError(f"{self._root}: fits no member of {self.name}")
        return fits[0]

    def _validate(self, value: Any, data: bytes, max_payload: int) -> str | None:
        """Why the encoded value cannot travel; None if it can."""
        if len(data) > max_payload:
            sizes = f"a payload of {len(data):,} bytes, and max_payload is {max_payload:,}"
            return f"{self.name}: {sizes}: keep it in a table or a file store and pass its key"
        if b"\\u0000" in data and _NUL.search(data):
            reason = f"{self._root}: contains a NUL character, which Postgres cannot store"
            return diagnose.find_unencodable(value, self._root) or reason
        arrived = self._load(orjson.loads(data))
        if diagnose.is_equal(value, arrived):
            return None
        return diagnose.find_unencodable(value, self._root) or diagnose.find_difference(
            value, arrived, self._root, self.name
        )


_codec = lru_cache(maxsize=4096)(Codec)


def _to_builtin(value: Any) -> Any:
    """A value of a type that msgspec does not know, as a value that it knows."""
    if is_model(type(value)):
        # round_trip leaves out computed fields. Warnings are off, because the comparison finds their cause.
        return value.model_dump(mode="json", by_alias=True, round_trip=True, warnings=False)
    # A subclass, as in the loop below. The comparison tells whether an equal value arrives.
    if isinstance(value, date):
        return value.isoformat()
    for plain in (str, int, float):
        if isinstance(value, plain):
            return plain(value)
    raise TypeError(f"a `{type_name(type(value))}` cannot travel as JSON")


def _build(kind: Any, tree: Any) -> Any:
    """A value of a type that msgspec does not know. Built from JSON, from which even a strict model reads dates."""
    if kind is object:
        return tree
    try:
        return kind.model_validate_json(orjson.dumps(tree))
    except ValueError as error:
        found = error.errors()[:3] if hasattr(error, "errors") else []
        raise ValueError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in found) or error) from error

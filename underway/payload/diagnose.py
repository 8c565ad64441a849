"""Why a type, a value or some data cannot travel as JSON: the texts of PayloadError. Pure.

Every text begins with a path, such as `Order.lines[1].note`. Nothing here runs for a value that travels, so it may be
slow.
"""

import dataclasses
import enum
import math
import re
import reprlib
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import zip_longest
from types import NoneType
from typing import Any
from uuid import UUID

import msgspec
import msgspec.inspect as shapes

from underway.errors import PayloadError
from underway.payload.type_names import type_name, type_names

MAX_DEPTH = 250  # orjson refuses 255 levels; the codec adds four lists, so orjson refuses our 251st level for us

# The names of msgspec.inspect's types that cannot be keys. Custom: a model
_NO_KEYS = {
    "None",
    "Bool",
    "Tuple",
    "VarTuple",
    "FrozenSet",
    "NamedTuple",
    "TypedDict",
    "Dataclass",
    "Struct",
    "Custom",
}
# Values that travel and contain no other values
_LEAVES = (NoneType, time, timedelta, UUID, bytes, bytearray, memoryview, msgspec.UnsetType)
_KEYS = (str, int, float, Decimal, enum.Enum, date, time, timedelta, UUID, bytes)
_MISSING = re.compile("missing required field `(.*)`")
_STEP_OF_PATH = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")
_BRIEFLY = reprlib.Repr()
_BRIEFLY.maxother = _BRIEFLY.maxstring = 100


# Types


def types_within(root: shapes.Type, path: str) -> list[tuple[str, shapes.Type]]:
    """All types within a type, with the path to each, once: a type may contain itself."""
    return list(_types_within(root, path, set()))


def _types_within(node: shapes.Type, path: str, seen: set[int]) -> Iterator[tuple[str, shapes.Type]]:
    if id(node) in seen:
        return
    seen.add(id(node))
    yield path, node
    within = path if isinstance(node, (shapes.UnionType, shapes.Metadata)) else f"{path}[...]"
    for name in node.__struct_fields__:
        part = getattr(node, name)
        for inner in part if isinstance(part, tuple) else (part,):
            if isinstance(inner, shapes.Field):
                yield from _types_within(inner.type, f"{path}.{inner.name}", seen)
            elif isinstance(inner, shapes.Type):
                yield from _types_within(inner, within, seen)


def unsupported_reason(node: shapes.Type) -> str | None:
    """Why no value of this type can travel; None if some can."""
    if isinstance(node, shapes.DictType) and kind_of(node.key_type) in _NO_KEYS:
        return "has keys that JSON cannot represent: use str, int, UUID, date or enum keys, or a list of pairs"
    if isinstance(node, (shapes.RawType, shapes.ExtType)):
        return "is part of a msgspec message: annotate Any"
    if isinstance(node, shapes.CustomType) and node.cls is not object and not is_model(node.cls):
        return f"is a `{type_name(node.cls)}`: use a dataclass, TypedDict, Struct, pydantic model or plain JSON type"
    return None


def kind_of(node: shapes.Type) -> str:
    return type(node).__name__.removesuffix("Type")


def is_model(kind: type) -> bool:
    """Whether it is a pydantic model, without importing pydantic."""
    return hasattr(kind, "model_validate_json") and hasattr(kind, "model_dump")


# Values


def find_unencodable(value: Any, root: str) -> str | None:
    """The first part of a value that JSON or Postgres cannot hold, regardless of the expected type; None if all can."""
    try:
        return _find_unencodable(value, root)
    except Exception:  # user code may raise anything when it is inspected
        return None


def _find_unencodable(value: Any, path: str, level: int = 1, in_model: bool = False) -> str | None:
    in_model = in_model or is_model(type(value))  # pydantic may encode types that we cannot
    value = value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, (str, int, float, Decimal)):
        reason = _scalar_reason(value)
        return f"{path}: {reason}" if reason else None
    parts = _parts(value)
    if parts is None:
        if in_model or type(value) in _LEAVES or isinstance(value, date):
            return None
        return f"{path}: a `{type_name(type(value))}` cannot travel as JSON: pass the values that it is made from"
    if level > MAX_DEPTH:
        return f"{path[:60]}...: more than {MAX_DEPTH} levels deep, or contains itself"
    for key in value if isinstance(value, dict) else ():
        if isinstance(key, bool) or not isinstance(key, _KEYS):
            return f"{path}: has a key of type {type_name(type(key))}: JSON keys are strings"
        if reason := _find_unencodable(key, f"{path}, key {_show(key)}", level, in_model):
            return reason
    for name, part in parts:
        if reason := _find_unencodable(part, path + name, level + 1, in_model):
            return reason
    return None


def _scalar_reason(value: str | int | float | Decimal) -> str | None:
    if isinstance(value, str):
        if "\0" in value:
            return "contains a NUL character, which Postgres cannot store: remove it, or pass bytes"
        if any("\ud800" <= character <= "\udfff" for character in value):
            return "contains a lone surrogate, which is not text: decode with errors='replace', or pass bytes"
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            return "an integer of more than 64 bits: pass it as str"
    elif value.is_nan() if isinstance(value, Decimal) else not math.isfinite(value):
        return "JSON cannot represent NaN or Infinity: pass None or a str"
    return None


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    """The values within a value, with the path to each; None if it cannot contain any."""
    kind = type(value)
    if isinstance(value, dict):
        return [(f"[{_show(key)}]", part) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return [("[...]", part) for part in value]
    if is_model(kind):
        names = [*kind.model_fields, *(value.__pydantic_extra__ or ()), *(value.__pydantic_private__ or ())]
    elif dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    elif isinstance(value, msgspec.Struct):
        names = list(value.__struct_fields__)
    else:
        return None
    return [(f".{name}", getattr(value, name, None)) for name in names]


def find_difference(sent: Any, arrived: Any, path: str, type_at_path: str = "the annotated type") -> str | None:
    """The first part that would not arrive as it was sent. None if only `==` differs: a class need not define it."""
    if is_equal(sent, arrived):
        return None
    if type(sent) is not type(arrived) and not (type(arrived) in (dict, list) and isinstance(sent, type(arrived))):
        change = "a `{}` would arrive as a `{}`".format(*type_names(type(sent), type(arrived)))
        return f"{path}: {change}: annotate the type of the value, or pass a value of the annotated type"
    parts, arrived_parts = _parts(sent), _parts(arrived)
    if parts is None or arrived_parts is None or isinstance(sent, (set, frozenset)):
        # In the hour that a zone repeats, no datetime equals one with another tzinfo.
        same = isinstance(sent, datetime) and sent.astimezone(UTC) == arrived
        return None if same else f"{path}: {_show(sent)} would arrive as {_show(arrived)}"
    for (name, part), (arrived_name, arrived_part) in zip_longest(parts, arrived_parts, fillvalue=("", None)):
        if name != arrived_name:
            if isinstance(sent, dict) and any(f"[{_show(key)}]" == name for key in sent if not isinstance(key, str)):
                return f"{path}{name}: a non-string key would arrive as a string: pass strings, or annotate its type"
            return f"{path}{name or arrived_name}: would be dropped: not a field of {type_at_path}"
        if reason := find_difference(part, arrived_part, path + name):
            return reason
    return None


def is_equal(sent: Any, arrived: Any) -> bool:
    try:
        return bool(sent == arrived)
    except Exception:  # user code
        return False


def _show(value: Any) -> str:
    try:
        return _BRIEFLY.repr(value)
    except Exception:  # user code
        return f"<{type(value).__name__}>"


# Errors of decoding


def describe_error(error: Exception, root: str) -> str:
    """The text of an error, with the path first. msgspec's end with "- at `$[0].a[3]`" or "- at `key` in `$[0].a`"."""
    try:
        text = str(error)
    except Exception:
        text = ""
    if isinstance(error, PayloadError):
        return text
    problem, _, place = text.partition(" - at `")
    path = root + _path_within_box(place) + (", a key" if place.startswith("key") else "")
    kind = "" if isinstance(error, msgspec.ValidationError) else f"{type(error).__name__}: "
    return f"{path}: {kind}{problem}"


def _path_within_box(place: str) -> str:
    """The codec converts a list with the value as its only element."""
    return place.rpartition("$[0]")[2].rstrip("`")


def missing_field_hint(error: Exception, tree: Any, types: list[tuple[str, shapes.Type]]) -> str:
    """What to do about a field that the type requires and the data lacks; "" for any other error.

    A renamed field is often the reason. Then the data still has the old name, which the type does not know.
    """
    if not isinstance(error, msgspec.ValidationError):
        return ""
    problem, _, place = str(error).partition(" - at `")
    missing = _MISSING.search(problem)
    if missing is None:
        return ""
    advice = "give a new field a default, because older data lacks it"
    similar = _similar_unknown_field(missing[1], _objects_at(tree, _path_within_box(place)), types)
    if similar is None:
        return f"; {advice}"
    return f"; the data has an unknown field `{similar}`: was the field renamed? Otherwise {advice}"


def _objects_at(tree: Any, path: str) -> list[Any]:
    """The parts of the data at a path of msgspec, in which `[...]` stands for any value of an object."""
    found = [tree]
    for name, index in _STEP_OF_PATH.findall(path):
        if index == "...":
            found = [value for part in found if isinstance(part, dict) for value in part.values()]
        elif index:
            found = [part[int(index)] for part in found if isinstance(part, list) and int(index) < len(part)]
        else:
            found = [part[name] for part in found if isinstance(part, dict) and name in part]
    return found


def _similar_unknown_field(missing: str, objects: list[Any], types: list[tuple[str, shapes.Type]]) -> str | None:
    import difflib

    for fields in (_field_names(node) for _, node in types):
        if missing not in fields:
            continue
        for found in objects:
            if isinstance(found, dict) and missing not in found:
                unknown = [name for name in found if name not in fields]
                for similar in difflib.get_close_matches(missing, unknown, 1):
                    return str(similar)
    return None


def _field_names(node: shapes.Type) -> set[str]:
    """The names in JSON."""
    return {field.encode_name for field in getattr(node, "fields", ()) if isinstance(field, shapes.Field)}

"""Values <-> JSON. Pure.

A `Codec` knows one type. What it encodes it also decodes again and compares: an output that the next step could not
read, or would read as something else, is refused where it was made. orjson writes and reads the JSON, msgspec makes
typed values of it; pydantic models are known by their methods, pydantic is never imported.
"""

import builtins
import contextlib
import dataclasses
import enum
import json
import math
import re
import reprlib
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from inspect import Parameter
from itertools import zip_longest
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

import msgspec
import msgspec.inspect as shapes
import orjson

from underway.errors import PayloadError

MAX_PAYLOAD = 8 * 1024 * 1024
MAX_DEPTH = 250  # orjson refuses the 255th level: inside four lists it refuses our 251st, at no cost

# Names of msgspec.inspect's types: what orjson writes without help, what cannot be a key
_PLAIN = {"Any", "None", "Bool", "Int", "Float", "Str", "Literal", "Union", "List", "Dict", "TypedDict"}
_NO_KEYS = {"None", "Bool", "Tuple", "VarTuple", "FrozenSet", "NamedTuple", "TypedDict", "Dataclass", "Struct"}
_NO_KEYS |= {"Custom"}  # a model
# What _trouble need not look into
_LEAVES = (NoneType, time, timedelta, UUID, bytes, bytearray, memoryview, msgspec.UnsetType)
_KEYS = (str, int, float, Decimal, enum.Enum, date, time, timedelta, UUID, bytes)
_BRIEFLY = reprlib.Repr()
_BRIEFLY.maxother = _BRIEFLY.maxstring = 100

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # not the text u0000 after a backslash, which is written as two


def encode(value: Any, expected: Any, *, max_payload: int = MAX_PAYLOAD) -> bytes:
    """JSON that decodes to an equal value; PayloadError if there is none."""
    return codec_for(expected).encode(value, max_payload)


def decode(data: bytes | str, expected: Any) -> Any:
    """The value of that type which the JSON spells; PayloadError if it spells none."""
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
    """PayloadError if no value of this type could ever travel. Resolve forward references first (get_type_hints)."""
    codec_for(expected)


def codec_for(expected: Any) -> "Codec":
    """The codec of a type, built once. Any, object and a missing annotation mean plain JSON."""
    try:
        return _codec(expected)
    except TypeError:  # Annotated with something that has no hash
        return Codec(expected)


class Codec:
    """Writes and reads the values of one type."""

    def __init__(self, expected: Any) -> None:
        self.type = Any if expected is object or expected is Parameter.empty else expected
        self.name = type_name(self.type)
        named = isinstance(expected, type) and expected.__module__ not in ("builtins", "typing")
        self._root = self.name if named else "value"  # where a path begins
        self._members: list[Codec] = []  # of a union that msgspec cannot tell apart
        nodes: list[tuple[str, shapes.Type]] = []
        try:
            nodes += _nodes(shapes.type_info(self.type), self._root, set())
        except Exception as error:
            if get_origin(self.type) not in (Union, UnionType):
                hint = "; tag its members (msgspec.Struct, tag=True)" if "unions" in str(error) else ""
                raise PayloadError(f"{self.name} cannot travel as JSON: {error}{hint}") from error
            # A | B and B | A are the same type to Python, so their order must not matter
            self._members = [codec_for(member) for member in sorted(get_args(self.type), key=type_name)]
        hooks = bool(self._members)
        for path, node in nodes:
            if reason := _never(node):
                raise PayloadError(f"{self.name} cannot travel as JSON: {path} {reason}")
            odd_keys = isinstance(node, shapes.DictType) and _kind(node.key_type) not in ("Str", "Any")
            hooks = hooks or odd_keys or isinstance(node, shapes.CustomType)
        # Whether all values are what orjson reads and writes
        self.plain = not hooks and all(_kind(node) in _PLAIN for _, node in nodes)
        # Passing options costs as much as a small value itself: only for types that need them
        self._out: dict[str, Any] = {"str_keys": True, "enc_hook": _spell} if hooks else {}
        self._in: dict[str, Any] = {"str_keys": True, "dec_hook": _build} if hooks else {}
        # msgspec remembers what it learned about a class, not about an expression like list[Order]
        self._box = msgspec.defstruct("Box", [("value", self.type)], array_like=True)

    def encode(self, value: Any, max_payload: int = MAX_PAYLOAD) -> bytes:
        """JSON that decodes to an equal value; PayloadError if there is none."""
        try:
            data = self._dump(value)
            reason = self._flaw(value, data, max_payload)
        except Exception as error:
            raise PayloadError(self._trouble(value) or self._misfit(error)) from error
        if reason:
            raise PayloadError(reason)
        return data

    def decode(self, data: bytes | str) -> Any:
        """The value that the JSON spells; PayloadError if it spells none of this type. Unknown fields are ignored."""
        try:
            return self._load(orjson.loads(data))
        except Exception as error:
            misfit = self._misfit(error)
            hint = "; give a new field a default, for older data lacks it" if "missing required" in misfit else ""
            raise PayloadError(f"the data does not fit {self.name}: {misfit}{hint}") from error

    def _dump(self, value: Any) -> bytes:
        try:
            # not orjson's own way with dataclasses: that writes whatever stands in __dict__
            data = orjson.dumps([[[[value if self.plain else msgspec.to_builtins(value, **self._out)]]]])
        except TypeError:  # perhaps only a subclass of float, or an enum as a key
            data = orjson.dumps([[[[msgspec.to_builtins(value, str_keys=True, enc_hook=_spell)]]]])
        return data[4:-4]

    def _load(self, tree: Any) -> Any:
        if self.type is Any:
            return tree
        if not self._members:
            return msgspec.convert([tree], self._box, **self._in).value
        fits = []
        for member in self._members:
            with contextlib.suppress(Exception):  # another may fit
                fits.append(member._load(tree))
                if orjson.loads(member._dump(fits[-1])) == tree:
                    return fits[-1]  # it would have written just this
        if not fits:
            raise PayloadError(f"{self._root}: fits no member of {self.name}")
        return fits[0]

    def _flaw(self, value: Any, data: bytes, max_payload: int) -> str | None:
        if len(data) > max_payload:
            sizes = f"a payload of {len(data):,} bytes, and max_payload is {max_payload:,}"
            return f"{self.name}: {sizes}: keep it in a table or a file store and pass its key"
        if b"\\u0000" in data and _NUL.search(data):
            return self._trouble(value) or f"{self._root}: holds a NUL character, which Postgres cannot store"
        back = self._load(orjson.loads(data))
        if _equal(value, back):
            return None
        return self._trouble(value) or _difference(value, back, self._root)

    def _trouble(self, value: Any) -> str | None:
        try:
            return _trouble(value, self._root)
        except Exception:  # a hostile value may raise anything when looked at
            return None

    def _misfit(self, error: Exception) -> str:
        """What an error says, path first; msgspec ends with "- at `$[0].lines[3]`" or "- at `key` in `$[0].prices`"."""
        try:
            text = str(error)
        except Exception:
            text = ""
        if isinstance(error, PayloadError):
            return text
        problem, _, place = text.partition(" - at `")
        path = self._root + place.rpartition("$[0]")[2].rstrip("`") + (", a key" if place.startswith("key") else "")
        kind = "" if isinstance(error, msgspec.ValidationError) else f"{type(error).__name__}: "
        return f"{path}: {kind}{problem}"


_codec = lru_cache(maxsize=4096)(Codec)


def type_name(expected: Any) -> str:
    """A type as one would write it: `list[Order] | None`."""
    origin, args = get_origin(expected), get_args(expected)
    if origin is Annotated:
        return type_name(args[0])
    if origin in (Union, UnionType):
        return " | ".join(map(type_name, args))
    if args or isinstance(expected, list):  # a list: the parameters of a Callable
        inner = ", ".join(map(repr if origin is Literal else type_name, args or expected))
        return f"{type_name(origin) if args else ''}[{inner}]"
    if expected is NoneType or expected is ...:
        return "None" if expected is NoneType else "..."
    names = (getattr(expected, attribute, None) for attribute in ("__qualname__", "__name__", "__forward_arg__"))
    name = next((name for name in names if isinstance(name, str)), _show(expected)).rpartition("<locals>.")[2]
    if isinstance(expected, type) and getattr(builtins, name, expected) is not expected:
        return f"{expected.__module__}.{name}"  # numpy's bool is not a bool
    return name


def type_names(one: Any, other: Any) -> tuple[str, str]:
    """The names of two types for one message, with their modules if the names alone are equal."""
    names = type_name(one), type_name(other)
    if names[0] != names[1] or one is other:
        return names
    return f"{getattr(one, '__module__', '')}.{names[0]}", f"{getattr(other, '__module__', '')}.{names[1]}"


def _nodes(node: shapes.Type, path: str, seen: set[int]) -> Iterator[tuple[str, shapes.Type]]:
    """All types within a type, with the path to each, once: a type may contain itself."""
    if id(node) in seen:
        return
    seen.add(id(node))
    yield path, node
    within = path if isinstance(node, (shapes.UnionType, shapes.Metadata)) else f"{path}[...]"
    for name in node.__struct_fields__:
        part = getattr(node, name)
        for inner in part if isinstance(part, tuple) else (part,):
            if isinstance(inner, shapes.Field):
                yield from _nodes(inner.type, f"{path}.{inner.name}", seen)
            elif isinstance(inner, shapes.Type):
                yield from _nodes(inner, within, seen)


def _never(node: shapes.Type) -> str | None:
    """Why no value of this type can travel, if none can."""
    if isinstance(node, shapes.DictType) and _kind(node.key_type) in _NO_KEYS:
        return "has keys that JSON cannot spell: use str, int, UUID, date or enum keys, or a list of pairs"
    if isinstance(node, (shapes.RawType, shapes.ExtType)):
        return "is part of a msgspec message: annotate Any"
    if isinstance(node, shapes.CustomType) and node.cls is not object and not _is_model(node.cls):
        return f"is a `{type_name(node.cls)}`: use a dataclass, TypedDict, Struct, pydantic model or plain JSON type"
    return None


def _kind(node: shapes.Type) -> str:
    return type(node).__name__.removesuffix("Type")


def _is_model(kind: type) -> bool:
    return hasattr(kind, "model_validate_json") and hasattr(kind, "model_dump")


def _spell(value: Any) -> Any:
    """A value msgspec does not know, in terms of those it knows."""
    if _is_model(type(value)):  # round_trip leaves out what is computed; a warning's reason is found by comparing
        return value.model_dump(mode="json", by_alias=True, round_trip=True, warnings=False)
    if isinstance(value, date):  # of a subclass, like all that follow; the comparison will tell whether it is equal
        return value.isoformat()
    for plain in (str, int, float):
        if isinstance(value, plain):
            return plain(value)
    raise TypeError(f"a `{type_name(type(value))}` cannot travel as JSON")


def _build(kind: Any, tree: Any) -> Any:
    """A value of a type msgspec does not know. From JSON: there even a strict model reads a date from a string."""
    if kind is object:
        return tree
    try:
        return kind.model_validate_json(orjson.dumps(tree))
    except ValueError as error:
        found = error.errors()[:3] if hasattr(error, "errors") else []
        raise ValueError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in found) or error) from error


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    """What a value holds, with the path to each part; None if it is a leaf."""
    kind = type(value)
    if isinstance(value, dict):
        return [(f"[{_show(key)}]", part) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return [("[...]", part) for part in value]
    if _is_model(kind):
        names = [*kind.model_fields, *(value.__pydantic_extra__ or ()), *(value.__pydantic_private__ or ())]
    elif dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    elif isinstance(value, msgspec.Struct):
        names = list(value.__struct_fields__)
    else:
        return None
    return [(f".{name}", getattr(value, name, None)) for name in names]


def _trouble(value: Any, path: str, level: int = 1, modelled: bool = False) -> str | None:
    """The first thing in a value that JSON or Postgres cannot hold, whatever its type is said to be."""
    modelled = modelled or _is_model(type(value))  # then pydantic may spell what we could not
    value = value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, str):
        if "\0" in value:
            return f"{path}: holds a NUL character, which Postgres cannot store: remove it, or pass bytes"
        if any("\ud800" <= character <= "\udfff" for character in value):
            return f"{path}: holds a lone surrogate, which is no text: decode with errors='replace', or pass bytes"
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            return f"{path}: an integer of more than 64 bits: pass it as str"
    elif isinstance(value, (float, Decimal)):
        if value.is_nan() if isinstance(value, Decimal) else not math.isfinite(value):
            return f"{path}: JSON has no NaN and no Infinity: pass None or a str"
    elif (parts := _parts(value)) is not None:
        if level > MAX_DEPTH:
            return f"{path[:60]}...: more than {MAX_DEPTH} levels deep, or contains itself"
        for key in value if isinstance(value, dict) else ():
            if isinstance(key, bool) or not isinstance(key, _KEYS):
                return f"{path}: has a key of type {type_name(type(key))}: keys travel as str"
            if reason := _trouble(key, f"{path}, key {_show(key)}", level, modelled):
                return reason
        for name, part in parts:
            if reason := _trouble(part, path + name, level + 1, modelled):
                return reason
    elif not modelled and type(value) not in _LEAVES and not isinstance(value, date):
        return f"{path}: a `{type_name(type(value))}` cannot travel as JSON: pass what it is made from"
    return None


def _difference(value: Any, back: Any, path: str) -> str | None:
    """Where what would arrive is not what was sent. None if only `==` says so: a class need not define it."""
    if _equal(value, back):
        return None
    if type(value) is not type(back) and not (type(back) in (dict, list) and isinstance(value, type(back))):
        came = "a `{}` would arrive as a `{}`".format(*type_names(type(value), type(back)))
        return f"{path}: {came}: annotate the type it has, or pass the type that is annotated"
    sent, arrived = _parts(value), _parts(back)
    if sent is None or arrived is None or isinstance(value, (set, frozenset)):
        # in the hour that a zone repeats, Python calls no datetime equal to one with another tzinfo
        same = isinstance(value, datetime) and value.astimezone(UTC) == back
        return None if same else f"{path}: {_show(value)} would arrive as {_show(back)}"
    for (name, part), (other, rest) in zip_longest(sent, arrived, fillvalue=("", None)):
        if name != other:
            return f"{path}{name or other}: would be lost: no field of the type, or a key that is no str"
        if reason := _difference(part, rest, path + name):
            return reason
    return None


def _equal(value: Any, back: Any) -> bool:
    try:
        return bool(value == back)
    except Exception:
        return False


def _show(value: Any) -> str:
    try:
        return _BRIEFLY.repr(value)
    except Exception:
        return f"<{type(value).__name__}>"

"""Checks that a type has the fields that a key template names, so a typo is an error at import. Pure.

Fields have their JSON names, because keys are computed from JSON. If the type does not determine its fields (Any, a
dict, a model with its own serializer), or only some values have a field, the check is left to `template.fill`.
"""

from collections.abc import Iterator
from typing import Any, get_args

import msgspec.inspect as shapes

from underway.keys import template as keys
from underway.payload.codec import type_name

_OPEN = shapes.AnyType()
# JSON values that cannot be part of a key, by the type names of msgspec.inspect.
_NEVER = {"None": "null"}
_NEVER |= dict.fromkeys(("List", "Set", "FrozenSet", "VarTuple", "Tuple", "NamedTuple"), "a list")
_NEVER |= dict.fromkeys(("Dict", "TypedDict", "Dataclass", "Struct"), "an object")


def misfit(template: str, kind: Any) -> str | None:
    """The reason why no value of this type can give this key; None if some value can."""
    return next(filter(None, (_describe_error(field, kind) for field in keys.fields(template))), None)


def _describe_error(field: str, kind: Any) -> str | None:
    found, holder = list(_of_type(kind)), "it"
    for name in field.split("."):
        within = [inner for node in found for inner in _inside(node, name)]
        if not within:
            names = ", ".join(dict.fromkeys(name for node in found for name in _fields(node) or ()))
            hint = f"; {holder} has {names}" if names else ""
            return f"needs the field {field}, which {type_name(kind)} does not have{hint}"
        found, holder = within, name
    never = [_unsupported_reason(node) for node in found]
    if None in never:
        return None
    instead = " or ".join(dict.fromkeys(filter(None, never)))
    return f"takes a string, an integer or a boolean from the field {field}, which in {type_name(kind)} is {instead}"


def _of_type(kind: Any) -> Iterator[shapes.Type]:
    try:
        yield from _alternatives(shapes.type_info(kind))
    except Exception:  # a union whose members msgspec cannot distinguish, but the codec can
        for member in get_args(kind):
            yield from _of_type(member)


def _alternatives(node: shapes.Type) -> Iterator[shapes.Type]:
    if isinstance(node, shapes.UnionType):
        for member in node.types:
            yield from _alternatives(member)
    elif isinstance(node, shapes.Metadata):
        yield from _alternatives(node.type)
    else:
        yield node


def _inside(node: shapes.Type, name: str) -> Iterator[shapes.Type]:
    """The possible types of the field with this name; empty if there is no such field."""
    if isinstance(node, shapes.DictType):
        yield from _alternatives(node.value_type)
        return
    fields = _fields(node)
    if fields is None:
        yield _OPEN
    elif name in fields:
        yield from _alternatives(fields[name])


def _fields(node: shapes.Type) -> dict[str, shapes.Type] | None:
    """The fields of a type by JSON name; None if the type does not determine them."""
    if isinstance(node, shapes.AnyType | shapes.DictType):
        return None
    if isinstance(node, shapes.CustomType):
        return _fields_of_model(node.cls)
    fields: dict[str, shapes.Type] = {}
    if isinstance(node, shapes.StructType) and node.array_like:
        return fields
    if isinstance(node, shapes.StructType) and node.tag_field is not None:
        fields[node.tag_field] = shapes.LiteralType((node.tag,))
    if isinstance(node, shapes.StructType | shapes.DataclassType | shapes.TypedDictType):
        fields |= {field.encode_name: field.type for field in node.fields}
    return fields


def _fields_of_model(model: Any) -> dict[str, shapes.Type] | None:
    """The fields of a pydantic model, with open types; None if its JSON may have other fields."""
    known = (
        getattr(model, "__pydantic_complete__", False)
        and not model.__pydantic_root_model__
        and not model.__pydantic_decorators__.model_serializers
        and model.model_config.get("extra") != "allow"
        and model.model_dump.__module__ == model.__get_pydantic_core_schema__.__module__ == "pydantic.main"
    )
    return {field.serialization_alias or name: _OPEN for name, field in model.model_fields.items()} if known else None


def _unsupported_reason(node: shapes.Type) -> str | None:
    """The kind of JSON value, if it cannot be part of a key."""
    return _NEVER.get(type(node).__name__.removesuffix("Type"))

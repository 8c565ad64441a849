"""Whether a type has the fields that a key template names: a typo is reported at import, not by failed runs.

Pure. Fields have their names in JSON, from which keys are made. Where the type does not say (Any, a dict, a model with
a serializer of its own), `template.fill` decides for each value; likewise for a field that only some values have.
"""

from collections.abc import Iterator
from typing import Any, get_args

import msgspec.inspect as shapes

from underway.keys import template as templates
from underway.payload.type_names import type_name

_ANY = shapes.AnyType()
# What a value is in JSON if no key can contain it, by the names of msgspec.inspect's types
_UNSUITABLE = {"None": "null"}
_UNSUITABLE |= dict.fromkeys(("List", "Set", "FrozenSet", "VarTuple", "Tuple", "NamedTuple"), "a list")
_UNSUITABLE |= dict.fromkeys(("Dict", "TypedDict", "Dataclass", "Struct"), "an object")


def mismatch(template: str, kind: Any) -> str | None:
    """Why no value of this type can fill in the template; None if some may."""
    return next(filter(None, (_mismatch(field, kind) for field in templates.fields(template))), None)


def _mismatch(field: str, kind: Any) -> str | None:
    found, holder = list(_alternatives_of(kind)), "it"
    for name in field.split("."):
        inner = [alternative for node in found for alternative in _field(node, name)]
        if not inner:
            names = ", ".join(dict.fromkeys(name for node in found for name in _fields(node) or ()))
            hint = f"; {holder} has {names}" if names else ""
            return f"needs the field {field}, which {type_name(kind)} does not have{hint}"
        found, holder = inner, name
    unsuitable = [_UNSUITABLE.get(type(node).__name__.removesuffix("Type")) for node in found]
    if None in unsuitable:
        return None
    json = " or ".join(dict.fromkeys(filter(None, unsuitable)))
    return f"takes a string, an integer or a boolean from the field {field}, which in {type_name(kind)} is {json}"


def _alternatives_of(kind: Any) -> Iterator[shapes.Type]:
    """The members of a union, or the type itself."""
    try:
        yield from _alternatives(shapes.type_info(kind))
    except Exception:  # a union whose members msgspec cannot distinguish, unlike the codec
        for member in get_args(kind):
            yield from _alternatives_of(member)


def _alternatives(node: shapes.Type) -> Iterator[shapes.Type]:
    if isinstance(node, shapes.UnionType):
        for member in node.types:
            yield from _alternatives(member)
    elif isinstance(node, shapes.Metadata):
        yield from _alternatives(node.type)
    else:
        yield node


def _field(node: shapes.Type, name: str) -> Iterator[shapes.Type]:
    """The types that a field may have; none if the type has no such field."""
    if isinstance(node, shapes.DictType):
        yield from _alternatives(node.value_type)
        return
    fields = _fields(node)
    if fields is None:
        yield _ANY
    elif name in fields:
        yield from _alternatives(fields[name])


def _fields(node: shapes.Type) -> dict[str, shapes.Type] | None:
    """The fields of a type by their names in JSON; None if the type does not say."""
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
    """The fields of a pydantic model, which alone knows how it writes their values; None if it may write others."""
    is_known = (
        getattr(model, "__pydantic_complete__", False)
        and not model.__pydantic_root_model__
        and not model.__pydantic_decorators__.model_serializers
        and model.model_config.get("extra") != "allow"
        and model.model_dump.__module__ == model.__get_pydantic_core_schema__.__module__ == "pydantic.main"
    )
    return {field.serialization_alias or name: _ANY for name, field in model.model_fields.items()} if is_known else None

"""Types as a user writes them, for error messages."""

import builtins
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin


def type_name(expected: Any) -> str:
    """A type as one would write it: `list[Order] | None`."""
    origin, args = get_origin(expected), get_args(expected)
    if origin is Annotated:
        return type_name(args[0])
    if origin in (Union, UnionType):
        return " | ".join(map(type_name, args))
    if args or isinstance(expected, list):  # a list holds the parameters of a Callable
        inner = ", ".join(map(repr if origin is Literal else type_name, args or expected))
        return f"{type_name(origin) if args else ''}[{inner}]"
    if expected is NoneType or expected is ...:
        return "None" if expected is NoneType else "..."
    return _class_name(expected)


def _class_name(expected: Any) -> str:
    names = (getattr(expected, attribute, None) for attribute in ("__qualname__", "__name__", "__forward_arg__"))
    name = next((name for name in names if isinstance(name, str)), None) or repr(expected)[:100]
    name = name.rpartition("<locals>.")[2]
    if isinstance(expected, type) and getattr(builtins, name, expected) is not expected:
        return f"{expected.__module__}.{name}"  # numpy's bool is not a bool
    return name


def type_names(one: Any, other: Any) -> tuple[str, str]:
    """The names of two types for one message, with their modules if the names alone are equal."""
    names = type_name(one), type_name(other)
    if names[0] != names[1] or one is other:
        return names
    return f"{getattr(one, '__module__', '')}.{names[0]}", f"{getattr(other, '__module__', '')}.{names[1]}"

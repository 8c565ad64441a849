"""A key template is refused exactly if the step's input cannot have one of its fields."""

import contextlib
import enum
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, Optional, TypedDict, TypeVar

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic.alias_generators import to_camel
from test_codec import Kind, containers, leaves, records, relaxed

from underway import Context, Done, JobDefinitionError, PayloadError, To, Underway
from underway.keys import template as keys
from underway.keys.fields import mismatch
from underway.payload import codec

T = TypeVar("T")


@dataclass
class Customer:
    id: int
    name: str | None = None
    tags: tuple[str, ...] = ()


@dataclass
class Order:
    number: int
    customer: Customer
    lines: list[Customer]
    parent: Optional["Order"] = None


class Row(TypedDict):
    id: int
    label: NotRequired[str]


class Camel(msgspec.Struct, rename="camel", tag_field="kind", tag="camel"):
    customer_id: int
    the_owner: Customer | msgspec.UnsetType = msgspec.UNSET


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    owner: Customer


class Listed(msgspec.Struct, array_like=True):
    id: int


class Point(NamedTuple):
    x: int


class Box(msgspec.Struct, Generic[T]):
    content: T


class Size(enum.IntEnum):
    SMALL = 1


class Parcel(TypedDict):
    size: Size
    letter: Literal["x", "y"]
    weight: float  # which may be encoded as an integer


class Model(pydantic.BaseModel):
    customer_id: int = pydantic.Field(alias="customerId")
    owner: Customer


class Renaming(pydantic.BaseModel, alias_generator=to_camel):
    customer_id: int


class Open(pydantic.BaseModel, extra="allow"):
    id: int


class Rooted(pydantic.RootModel[dict[str, int]]):
    pass


class Spelled(pydantic.BaseModel):
    id: int

    @pydantic.model_serializer
    def spell(self) -> dict[str, Any]:
        return {"other": self.id}


class Dumping(pydantic.BaseModel):
    id: int

    def model_dump(self, **how: Any) -> dict[str, Any]:
        return {"other": self.id}


FITS: list[tuple[str, Any]] = [
    ("constant", None),
    ("constant", str),
    ("{id}", Customer),
    ("{name}", Customer),
    ("{number}/{customer.id}", Order),
    ("{parent.parent.customer.name}", Order),
    ("{id}", Customer | None),
    ("{id}", Annotated[Customer, "with a note"]),
    ("{id}{label}", Row),
    ("{customerId} {kind}", Camel),
    ("{theOwner.id}", Camel),
    ("{type} {lives}", Cat | Dog),
    ("{owner.id}", Cat | Dog),
    ("{id}", Customer | dict[str, float]),
    ("{content.id}", Box[Customer]),
    ("{size} {letter} {weight}", Parcel),
    *((template, kind) for template in ("{a}", "{a.b}") for kind in (Any, object, dict, dict[str, Any])),
    ("{a}", dict[str, int]),
    ("{customerId}{owner.anything}", Model),
    ("{customerId}", Renaming),
    *((template, kind) for template in ("{id}", "{other}") for kind in (Open, Rooted, Spelled, Dumping)),
]


@pytest.mark.parametrize(("template", "kind"), FITS)
def test_fields_that_the_type_has_or_may_have_are_accepted(template: str, kind: Any) -> None:
    assert mismatch(template, kind) is None


MISFITS: list[tuple[str, Any, str]] = [
    ("{idd}", Customer, "needs the field idd, which Customer does not have; it has id, name, tags"),
    ("{customer.idd}", Order, "needs the field customer.idd, which Order does not have; customer has id, name, tags"),
    ("{number.x}", Order, "needs the field number.x, which Order does not have"),
    ("{number}{nr}", Order, "needs the field nr, which Order does not have; it has number, customer, lines, parent"),
    ("{lines.id}", Order, "needs the field lines.id, which Order does not have"),
    ("{lines}", Order, "takes a string, an integer or a boolean from the field lines, which in Order is a list"),
    ("{parent}", Order, "takes a string, an integer or a boolean from the field parent, which in Order is "
     "an object or null"),
    ("{idd}", Customer | None, "needs the field idd, which Customer | None does not have; it has id, name, tags"),
    ("{bark}", Cat | Dog, "needs the field bark, which Cat | Dog does not have; it has type, lives, owner"),
    ("{lable}", Row, "needs the field lable, which Row does not have; it has id, label"),
    ("{customer_id}", Camel, "needs the field customer_id, which Camel does not have; it has kind, customerId, "
     "theOwner"),
    ("{customer_id}", Model, "needs the field customer_id, which Model does not have; it has customerId, owner"),
    ("{customer_id}", Renaming, "needs the field customer_id, which Renaming does not have; it has customerId"),
    ("{id}", Listed, "needs the field id, which Listed does not have"),
    ("{x}", Point, "needs the field x, which Point does not have"),
    ("{id}", list[Customer], "needs the field id, which list[Customer] does not have"),
    ("{id}", str, "needs the field id, which str does not have"),
    ("{id}", None, "needs the field id, which None does not have"),
    ("{a.b}", dict[str, int], "needs the field a.b, which dict[str, int] does not have"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "kind", "reason"), MISFITS)
def test_fields_that_no_value_of_the_type_has_are_refused(template: str, kind: Any, reason: str) -> None:
    assert mismatch(template, kind) == reason


# For any value: if a template can be filled from it, the template must not be refused for its type.


def fillable(tree: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The templates with one field that this input can fill."""
    if isinstance(tree, dict):
        for name, inner in tree.items():
            yield from fillable(inner, (*path, name))
    elif path and all(name and not set(name) & set("{}.") for name in path):
        yield "{" + ".".join(path) + "}"


inner = st.sampled_from(leaves)
inner |= st.lists(inner, min_size=1, max_size=3).flatmap(records) | containers(inner)
inputs = st.lists(inner, min_size=1, max_size=4).flatmap(records) | containers(inner)


@settings(relaxed, max_examples=500)
@given(st.data(), inputs, inputs)
def test_templates_that_some_value_fills_are_accepted(data: st.DataObject, kind: Kind, other: Kind) -> None:
    payload = codec.encode(data.draw(kind.values), kind.type)
    for template in fillable(json.loads(payload)):
        with contextlib.suppress(PayloadError):
            keys.fill(template, payload)
            assert mismatch(template, kind.type) is None
            codec.check_type(kind.type | other.type)
            assert mismatch(template, kind.type | other.type) is None


# In a job


def begin(cx: Context) -> To[Customer]:
    return To.next(Customer(1))


def order(cx: Context, customer: Customer) -> To[Customer]:
    return To.next(customer)


def end(cx: Context, customer: Customer) -> Done:
    return To.done()


def refusal(job: Any) -> str:
    with pytest.raises(JobDefinitionError) as refused:
        job.manifest()
    return str(refused.value)


def test_a_typo_in_the_key_of_any_step_is_refused_with_the_job() -> None:
    app = Underway()
    declared = app.job("later").step(begin).step(order).step(end, concurrency_key="customer {idd}", name="last")
    message = (
        "job 'later', step 'last': concurrency_key 'customer {idd}' needs the field idd, which Customer "
        "does not have; it has id, name, tags"
    )
    assert refusal(declared) == refusal(app) == message
    with pytest.raises(JobDefinitionError, match="needs the field idd"):
        declared.enqueue()
    first = Underway().job("first").step(end, unique_key="{nam}")
    assert refusal(first).startswith("job 'first', step 'end': unique_key '{nam}' needs the field nam,")
    without = Underway().job("without").step(begin, concurrency_key="{id}").step(end)
    assert "concurrency_key '{id}' needs the field id, which None does not have" in refusal(without)
    Underway().job("good").step(begin).step(end, concurrency_key="{id} of {name}").manifest()

"""A value that is encoded is decoded as an equal value, or its encoding is refused with the path of the problem."""

import contextlib
import dataclasses
import datetime as dt
import enum
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ForwardRef, Literal, NamedTuple, NewType, NotRequired, Optional
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import TypedDict

from underway.errors import PayloadError
from underway.payload.codec import (
    MAX_PAYLOAD,
    Codec,
    check_type,
    codec_for,
    decode,
    encode,
)
from underway.payload.diagnose import MAX_DEPTH
from underway.payload.type_names import type_name, type_names

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Mode(enum.StrEnum):
    FAST = "fast"


@dataclass
class Line:
    price: float
    note: str = ""


@dataclass
class Order:
    lines: list[Line]
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass
class BigOrder(Order):
    extra: int = 0


@dataclass
class SameOrder(Order):
    pass


@dataclass(eq=False)
class Incomparable:
    x: int
    inner: list["Incomparable"] = field(default_factory=list)


@dataclass
class Chain:
    next: Optional["Chain"] = None


class Point(NamedTuple):
    x: int
    y: float


class Row(TypedDict):
    id: int
    label: NotRequired[str]


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    name: str


class Camel(msgspec.Struct, rename="camel"):
    first_name: str


class Customer(pydantic.BaseModel):
    name: str
    credit: Decimal = Decimal(0)
    seen: dt.datetime | None = None
    tags: set[int] = set()
    _session: int = pydantic.PrivateAttr(0)


class Vip(Customer):
    level: int = 1


class Strict(pydantic.BaseModel, strict=True, extra="forbid"):
    day: dt.date
    amount: int = pydantic.Field(alias="Amount")

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def doubled(self) -> int:
        return 2 * self.amount


@dataclass
class Everything:
    customers: list[Customer]
    by_id: dict[UUID, Customer]
    rows: list[Row]
    pets: list[Cat | Dog]
    point: Point
    window: tuple[dt.datetime, dt.timedelta]
    colours: frozenset[Colour]
    blob: bytes
    nested: Order | None = None
    counts: dict[int, Decimal] = field(default_factory=dict)


def travels(value: Any, expected: Any) -> None:
    data = encode(value, expected)
    assert decode(data, expected) == value


# --- generated types and values ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A type, and a way to draw values of it."""

    type: Any
    values: st.SearchStrategy[Any]
    modelled: bool = True  # pydantic can have it in a field, and keeps it exactly

    def __repr__(self) -> str:
        return type_name(self.type)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
integers = st.integers(-(2**63), 2**64 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False) | st.floats(1e15, 2e19)
zones = st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=5, minutes=45)), dt.timezone(-dt.timedelta(hours=8))])
plain_json = st.recursive(
    st.none() | st.booleans() | integers | floats | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
moments = st.datetimes() | st.datetimes(
    dt.datetime(1, 1, 2),
    dt.datetime(9999, 12, 30),
    timezones=zones,
)
keys = [
    Kind(str, texts),
    Kind(int, integers),
    Kind(UUID, st.uuids()),
    Kind(dt.date, st.dates()),
    Kind(Colour, st.sampled_from(Colour)),
    Kind(Mode, st.sampled_from(Mode)),
    Kind(Size, st.sampled_from(Size)),
]
hashable = [
    *keys,
    Kind(None, st.none()),
    Kind(bool, st.booleans()),
    Kind(float, floats),
    Kind(Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    Kind(dt.datetime, moments),
    Kind(dt.time, st.times()),
    Kind(dt.timedelta, st.timedeltas()),
    Kind(bytes, st.binary(max_size=10), modelled=False),
]
leaves = [*hashable, Kind(Any, plain_json), Kind(dict[str, Any], st.dictionaries(texts, plain_json, max_size=3))]


def records(members: list[Kind]) -> st.SearchStrategy[Kind]:
    """Classes with these kinds of fields."""
    fields = {f"f{index}": kind for index, kind in enumerate(members)}
    types: dict[str, Any] = {name: kind.type for name, kind in fields.items()}
    values = {name: kind.values for name, kind in fields.items()}
    modelled = all(kind.modelled for kind in members)

    def made(cls: Any, modelled: bool = modelled) -> Kind:
        return Kind(cls, st.builds(cls, **values), modelled)

    kinds: list[Callable[[], Kind]] = [
        lambda: made(dataclasses.make_dataclass("Data", list(types.items()))),
        lambda: made(dataclasses.make_dataclass("Frozen", list(types.items()), frozen=True, slots=True)),
        lambda: made(msgspec.defstruct("Struct", list(types.items())), modelled=False),
        lambda: Kind(TypedDict("Total", types), st.fixed_dictionaries(values), modelled),  # type: ignore[operator]
        lambda: Kind(
            TypedDict("Partial", types, total=False),  # type: ignore[operator]
            st.fixed_dictionaries({}, optional=values),
            modelled,
        ),
        lambda: made(NamedTuple("Tuple", list(types.items()))),
    ]
    if modelled:
        declared: dict[str, Any] = {name: (tp, ...) for name, tp in types.items()}
        kinds.append(lambda: made(pydantic.create_model("Model", **declared)))
    return st.sampled_from(kinds).map(lambda make: make())


def containers(inner: st.SearchStrategy[Kind]) -> st.SearchStrategy[Kind]:
    return st.one_of(
        inner.map(lambda k: Kind(list[k.type], st.lists(k.values, max_size=3), k.modelled)),  # type: ignore[name-defined]
        inner.map(lambda k: Kind(Optional[k.type], st.none() | k.values, k.modelled)),  # noqa: UP045
        inner.map(lambda k: Kind(tuple[k.type, ...], st.lists(k.values, max_size=3).map(tuple), k.modelled)),  # type: ignore[name-defined]
        st.tuples(inner, inner).map(
            lambda pair: Kind(
                tuple[pair[0].type, pair[1].type],  # type: ignore[misc]
                st.tuples(pair[0].values, pair[1].values),
                pair[0].modelled and pair[1].modelled,
            )
        ),
        st.sampled_from(hashable).map(lambda k: Kind(set[k.type], st.sets(k.values, max_size=3), k.modelled)),  # type: ignore[name-defined]
        st.tuples(st.sampled_from(keys), inner).map(
            lambda pair: Kind(
                dict[pair[0].type, pair[1].type],  # type: ignore[misc]
                st.dictionaries(pair[0].values, pair[1].values, max_size=3),
                pair[1].modelled,
            )
        ),
        st.lists(inner, max_size=3).flatmap(records),
    )


kinds = st.recursive(st.sampled_from(leaves), containers, max_leaves=6)
kinds |= st.lists(kinds, min_size=1, max_size=3).flatmap(records)


@relaxed
@given(st.data(), kinds)
def test_every_value_comes_back_equal(data: st.DataObject, kind: Kind) -> None:
    travels(data.draw(kind.values), kind.type)


@relaxed
@given(st.data(), kinds, kinds)
def test_a_value_of_another_type_comes_back_equal_or_is_refused(data: st.DataObject, kind: Kind, other: Kind) -> None:
    value = data.draw(kind.values)
    try:
        encoded = encode(value, other.type)
    except PayloadError:
        return
    assert decode(encoded, other.type) == value


@relaxed
@given(plain_json, kinds)
def test_foreign_data_is_read_or_refused(value: Any, kind: Kind) -> None:
    with contextlib.suppress(PayloadError):
        decode(json.dumps(value), kind.type)


@given(plain_json)
def test_plain_json_keeps_its_types(value: Any) -> None:
    def shape(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: shape(inner) for key, inner in part.items()}
        return [shape(inner) for inner in part] if isinstance(part, list) else type(part)

    assert shape(decode(encode(value, Any), Any)) == shape(value)


@given(floats)
@settings(max_examples=500)
def test_a_float_keeps_its_value_and_its_type(value: float) -> None:
    for expected in (float, Any, object, float | None):
        back = decode(encode(value, expected), expected)
        assert back == value
        assert type(back) is float


def test_integers_reach_from_signed_to_unsigned_64_bit() -> None:
    for value in (-(2**63), 2**63 - 1, 2**63, 2**64 - 1):
        travels(value, int)
        travels([value], Any)


# --- each way to declare a value -----------------------------------------------------------------------------------


def test_everything_in_everything() -> None:
    moment = dt.datetime(2024, 2, 29, 12, 30, 0, 123456, tzinfo=ZoneInfo("Europe/Berlin"))
    customer = Customer(name="Zoë \N{PILE OF POO}", credit=Decimal("1.10"), seen=moment, tags={1, 2})
    value = Everything(
        customers=[customer],
        by_id={uuid4(): customer},
        rows=[{"id": 1}, {"id": 2, "label": "b"}],
        pets=[Cat(9), Dog("Rex")],
        point=Point(1, -0.0),
        window=(moment, dt.timedelta(days=-1, microseconds=7)),
        colours=frozenset({Colour.RED, Colour.BLUE}),
        blob=bytes(range(256)),
        nested=Order([Line(0.1)], {"a": [None, True, {"b": 1}]}),
        counts={2**63: Decimal("1E+3")},
    )
    travels(value, Everything)
    travels([value], list[Everything])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (None, type(None)),
        (3, NewType("Number", int)),
        (3, Annotated[int, msgspec.Meta(ge=1)]),
        (3, Annotated[int, {"has": "no hash"}]),
        ("a", Literal["a", "b"]),
        (Colour.RED, Colour | None),
        ({Colour.RED: 1}, dict[Colour, int]),
        ({Mode.FAST: 1}, dict[str, int]),
        ({Mode.FAST: Mode.FAST}, Any),
        (Cat(9), Cat | Dog),
        (Camel("Ada"), Camel),
        (Strict(day=dt.date(2024, 1, 1), Amount=2), Strict),
    ],
)
def test_declared_types(value: Any, expected: Any) -> None:
    travels(value, expected)


def test_a_class_without_equality_is_compared_by_its_fields() -> None:
    value = Incomparable(1, [Incomparable(2), Incomparable(3)])
    back = decode(encode(value, Incomparable), Incomparable)
    assert [back.x, *(part.x for part in back.inner)] == [1, 2, 3]
    with pytest.raises(PayloadError, match=r"Incomparable.inner\[0\].x: Expected `int`, got `str`"):
        encode(Incomparable(1, [Incomparable("2")]), Incomparable)  # type: ignore[arg-type]


def test_a_time_in_the_repeated_hour_of_a_zone() -> None:
    # in Python it is unequal to every time with another tzinfo, although it is the same instant
    for fold in (0, 1):
        value = dt.datetime(2024, 10, 27, 2, 30, fold=fold, tzinfo=ZoneInfo("Europe/Berlin"))
        back = decode(encode(value, dt.datetime), dt.datetime)
        assert back.astimezone(dt.UTC) == value.astimezone(dt.UTC)


def test_subclasses_of_numbers_and_strings_are_encoded_as_their_base() -> None:
    class Metres(float):
        pass

    class Count(int):
        pass

    class Name(str):
        pass

    class Stamp(dt.datetime):
        pass

    travels([Metres(1.5), Count(3), Name("n")], Any)
    travels(Order([Line(Metres(1.5), Name("n"))], {"n": Count(2)}), Order)
    travels(Stamp(2024, 1, 1, 2, 3, 4, 5, tzinfo=dt.UTC), dt.datetime)


def test_a_union_that_msgspec_cannot_decide_is_decoded_by_its_tag() -> None:
    @dataclass
    class Paid:
        order: int

    @dataclass
    class Refused:
        order: int
        reason: str = ""

    for either in (Paid | Refused, Refused | Paid, Refused | Customer | Paid | None):
        for value in (Paid(1), Refused(1), Refused(1, "no")):
            travels(value, either)
    travels(Customer(name="x"), Refused | Customer | Paid | None)
    travels(None, Refused | Customer | Paid | None)
    travels("abc", str | dt.datetime)
    with pytest.raises(PayloadError, match="a `str` would arrive as a `datetime`"):
        encode("2024-01-01T00:00:00", str | dt.datetime)
    with pytest.raises(PayloadError, match=r"value: fits no member of Paid | Refused"):
        decode(b"[]", Paid | Refused)

    @dataclass
    class Twin:
        order: int

    with pytest.raises(PayloadError, match="a `Twin` would arrive as a `Paid`"):
        encode(Twin(1), Twin | Paid)


def test_a_recursive_type() -> None:
    travels(Chain(Chain(Chain())), Chain)


# --- refusals ------------------------------------------------------------------------------------------------------


def order(**line: Any) -> Order:
    return Order([Line(1.0), Line(**{"price": 1.0, **line})])


@pytest.mark.parametrize(
    ("value", "expected", "place", "problem"),
    [
        (order(note="a\0b"), Order, "Order.lines[1].note:", "NUL"),
        ({"a": [1, "\\u0000 \0"]}, Any, "value['a'][1]:", "NUL"),
        ({"a": {"k\0": 1}}, Any, "value['a'], key 'k\\x00':", "NUL"),
        (Customer(name="\0"), Customer, "Customer.name:", "NUL"),
        (Customer(name="\0"), Customer | Order, "value.name:", "NUL"),
        (Order([], {"x": [Customer(name="\0")]}), Order, "Order.meta['x'][0].name:", "NUL"),
        (order(price=float("nan")), Order, "Order.lines[1].price:", "NaN"),
        (order(price=float("inf")), Order, "Order.lines[1].price:", "Infinity"),
        ([[1, -float("inf")]], Any, "value[0][1]:", "Infinity"),
        ([None, float("nan")], list[float | None], "value[1]:", "NaN"),
        ([Decimal("NaN")], list[Decimal], "value[0]:", "NaN"),
        ([Decimal("sNaN")], list[Decimal], "value[0]:", "NaN"),
        ({"n": 2**64}, Any, "value['n']:", "64 bits"),
        (Order([], {"n": -(2**63) - 1}), Order, "Order.meta['n']:", "64 bits"),
        (order(note="\ud800"), Order, "Order.lines[1].note:", "lone surrogate"),
        ({"\udfff": 1}, Any, "value, key '\\udfff':", "lone surrogate"),
        (order(price="free"), Order, "Order.lines[1].price:", "Expected `float`, got `str`"),
        ({"id": "x"}, Row, "Row.id:", "Expected `int`, got `str`"),
        ({"label": "x"}, Row, "Row:", "missing required field `id`"),
        ({"id": 1, "other": 2}, Row, "Row['other']:", "would be dropped: not a field of Row"),
        ({"a": 1.5}, dict[str, int], "value[...]:", "Expected `int`"),
        ({"x": 1}, dict[int, int], "value, a key:", "Expected `int`"),
        (1.5, int, "value:", "Expected `int`"),
        (True, int, "value:", "Expected `int`"),
        (2**53 + 1, float, "value:", "a `int` would arrive as a `float`"),
        (BigOrder([]), Order, "Order:", "a `BigOrder` would arrive as a `Order`"),
        (SameOrder([]), Order, "Order:", "a `SameOrder` would arrive as a `Order`"),
        ([Vip(name="x")], list[Customer], "value[0]:", "a `Vip` would arrive as a `Customer`"),
        ({"lines": [], "meta": {}}, Order, "Order:", "a `dict` would arrive as a `Order`"),
        (Order([], {"when": dt.date(2024, 1, 1)}), Order, "Order.meta['when']:", "a `date` would arrive as a `str`"),
        ({"t": (1, 2)}, Any, "value['t']:", "a `tuple` would arrive as a `list`"),
        ([{1}], Any, "value[0]:", "a `set` would arrive as a `list`"),
        ((1, 2), list[int], "value:", "a `tuple` would arrive as a `list`"),
        (Line(1.0), Any, "value:", "a `Line` would arrive as a `dict`"),
        ({"b": b"x"}, Any, "value['b']:", "a `bytes` would arrive as a `str`"),
        ({"d": {1: 2}}, Any, "value['d'][1]:", "a non-string key"),
        ({1: 2}, dict[int | str, int], "value[1]:", "a non-string key"),
        ({"d": {(1, 2): 2}}, Any, "value['d']:", "a key of type tuple"),
        ({"d": {None: 2}}, Any, "value['d']:", "a key of type None"),
        ({"d": {True: 2}}, Any, "value['d']:", "a key of type bool"),
        (Order([], {"f": print}), Order, "Order.meta['f']:", "cannot travel as JSON"),
        ([threading.Lock()], list[Any], "value[0]:", "a `lock` cannot travel as JSON"),
        ([1j], Any, "value[0]:", "a `complex` cannot travel as JSON"),
        ([Order], Any, "value[0]:", "a `type` cannot travel as JSON"),
        (Customer.model_construct(name=5), Customer, "Customer:", "name"),
        (Customer.model_construct(name="x", credit=Decimal("NaN")), Customer, "Customer.credit:", "NaN"),
        (
            [dt.datetime(1850, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))],
            list[dt.datetime],
            "value[0]:",
            "would arrive as",
        ),
        (0, Annotated[int, msgspec.Meta(ge=1)], "value:", ">= 1"),
        ("c", Literal["a", "b"], "value:", "Invalid enum value 'c'"),
    ],
)
def test_refused_with_its_path(value: Any, expected: Any, place: str, problem: str) -> None:
    with pytest.raises(PayloadError) as refused:
        encode(value, expected)
    assert str(refused.value).startswith(place)
    assert problem in str(refused.value)


def test_an_integer_too_long_to_print() -> None:
    with pytest.raises(PayloadError, match="64 bits"):
        encode(10**5000, int)


def test_private_state_of_a_model_is_not_lost_silently() -> None:
    customer = Customer(name="x")
    travels(customer, Customer)
    customer._session = 7
    with pytest.raises(PayloadError, match=r"Customer._session: 7 would arrive as 0"):
        encode(customer, Customer)


def test_a_model_may_contain_types_that_only_pydantic_knows() -> None:
    class Files(pydantic.BaseModel, extra="allow"):
        path: Path
        count: int

    travels(Files(path=Path("a/b"), count=1, more=[1]), Files)  # type: ignore[call-arg]
    travels([Files(path=Path("a/b"), count=1)], list[Files])
    with pytest.raises(PayloadError, match=r"^Files: count: Input should be a valid integer"):
        encode(Files.model_construct(path=Path("a"), count="x"), Files)
    with pytest.raises(PayloadError, match=r"^Files.more: a `date` would arrive as a `str`"):
        encode(Files(path=Path("a"), count=1, more=dt.date(2024, 1, 1)), Files)  # type: ignore[call-arg]


def test_an_escaped_backslash_is_not_mistaken_for_nul() -> None:
    for value in ("\\u0000", "\\\\u0000", ["\\", "u0000"], {"\\u0000": "\\\\\\u0000"}):
        travels(value, Any)
    for value in ("\\\0", "\\\\\0", "\0", "\\u0000\0"):
        with pytest.raises(PayloadError, match="NUL"):
            encode(value, Any)


@given(st.text(st.sampled_from('\\u0\0a"'), max_size=12))
def test_a_nul_is_found_at_any_position(text: str) -> None:
    if "\0" in text:
        with pytest.raises(PayloadError, match="NUL"):
            encode({"k": text}, dict[str, str])
    else:
        travels({"k": text}, dict[str, str])


def nested(levels: int, wrap: Callable[[Any], Any], innermost: Any = None) -> Any:
    for _ in range(levels):
        innermost = wrap(innermost)
    return innermost


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [(lambda v: [v], Any), (lambda v: {"k": v}, dict[str, Any]), (lambda v: [v], list[Any]), (Chain, Chain)],
)
def test_depth(wrap: Callable[[Any], Any], expected: Any) -> None:
    travels(nested(MAX_DEPTH, wrap), expected)
    for levels in (MAX_DEPTH + 1, MAX_DEPTH + 5, 5000):
        with pytest.raises(PayloadError, match=r"more than 250 levels deep, or contains itself") as refused:
            encode(nested(levels, wrap), expected)
        assert len(str(refused.value)) < 200


def test_depth_counts_containers_only() -> None:
    travels(nested(MAX_DEPTH - 1, lambda v: [v], {}), Any)
    with pytest.raises(PayloadError, match="250 levels"):
        encode(nested(MAX_DEPTH, lambda v: [v], {}), Any)


def test_a_value_that_contains_itself() -> None:
    loop: list[Any] = []
    loop.append({"again": loop})
    chain = Chain()
    chain.next = chain
    for value, expected in ((loop, Any), (loop, list[Any]), (chain, Chain), (Order([], {"loop": loop}), Order)):
        with pytest.raises(PayloadError, match="contains itself"):
            encode(value, expected)


def test_size() -> None:
    assert len(encode("x" * 98, str, max_payload=100)) == 100
    with pytest.raises(PayloadError, match=r"str: a payload of 101 bytes, and max_payload is 100: keep it in"):
        encode("x" * 99, str, max_payload=100)
    with pytest.raises(PayloadError, match=r"8,388,609 bytes, and max_payload is 8,388,608"):
        encode("x" * (MAX_PAYLOAD - 1), str)
    travels("é" * ((MAX_PAYLOAD - 2) // 2), str)


# --- data that does not fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected", "problem"),
    [
        (
            b'{"lines": [{"price": 1}, {"price": "x"}]}',
            Order,
            "Order: Order.lines[1].price: Expected `float`, got `str`",
        ),
        (b'{"meta": {}}', Order, "missing required field `lines`; give a new field a default"),
        (
            b'{"line": []}',
            Order,
            "field `lines`; the data has an unknown field `line`: was the field renamed? Otherwise give",
        ),
        (b'{"lines": [{"prices": 1}]}', Order, "Order.lines[0]: Object missing required field `price`; the data"),
        (b'{"x": {"Price": 1}}', dict[str, Line], "an unknown field `Price`: was the field renamed?"),
        (b'{"first_name": "x"}', Camel, "field `firstName`; the data has an unknown field `first_name`"),
        (b'[{"note": "", "cost": 1}]', list[Line], "missing required field `price`; give a new field a default"),
        (b'{"name": 5}', Customer, "Customer: Customer: name: Input should be a valid string"),
        (b'[{"name": 5}]', list[Customer], "list[Customer]: value[0]: name: Input should be a valid string"),
        (b'"pink"', Colour, "Invalid enum value 'pink'"),
        (b"nope", Order, "the data does not fit Order: Order: JSONDecodeError"),
        (b"", Any, "the data does not fit Any: value: JSONDecodeError"),
        (b"18446744073709551616", int, "Expected `int`, got `float`"),
        (b"null", Order, "Expected `object`, got `null`"),
        (b"[" * 3000 + b"]" * 3000, Any, "depth"),
    ],
)
def test_data_that_does_not_fit(data: bytes, expected: Any, problem: str) -> None:
    with pytest.raises(PayloadError) as refused:
        decode(data, expected)
    assert problem in str(refused.value)


def test_unknown_fields_are_ignored() -> None:
    assert decode(b'{"price": 1, "currency": "EUR"}', Line) == Line(1.0)
    assert decode('{"price": 1}', Line) == Line(1.0)


def test_a_class_that_refuses_its_fields() -> None:
    @dataclass
    class Even:
        n: int

        def __post_init__(self) -> None:
            if self.n % 2:
                raise KeyError("odd")

    travels(Even(2), Even)
    with pytest.raises(PayloadError, match=r"Even: Even: KeyError: 'odd'"):
        decode(b'{"n": 3}', Even)
    value = Even(2)
    value.n = 3
    with pytest.raises(PayloadError, match=r"Even: KeyError: 'odd'"):
        encode(value, Even)


# --- hostile values ------------------------------------------------------------------------------------------------


class Hostile:
    def explode(self, *_: object) -> Any:
        raise RuntimeError("boom")

    __repr__ = __str__ = __eq__ = __iter__ = __len__ = __bool__ = explode
    __hash__ = object.__hash__


class HostileText(str):
    __str__ = __repr__ = __eq__ = Hostile.explode
    __hash__ = str.__hash__


class HostileDict(dict[str, Any]):
    items = keys = __repr__ = __eq__ = __iter__ = Hostile.explode


class Unspeakable(Exception):
    __str__ = __repr__ = Hostile.explode


class Undumpable(pydantic.BaseModel):
    def model_dump(self, **_: Any) -> Any:
        raise Unspeakable


@pytest.mark.parametrize("expected", [Any, object, list[Any], dict[str, Any], list[str], Order, Customer, int | None])
@pytest.mark.parametrize(
    "value",
    [
        Hostile(),
        [Hostile()],
        {"k": Hostile()},
        {Hostile(): 1},
        HostileDict(k="\0"),
        [HostileDict(k=object())],
        [HostileText("\0")],
        Undumpable(),
        [Undumpable()],
        {HostileText("\0"): 1},
    ],
)
def test_a_hostile_value_is_refused_like_any_other(value: Any, expected: Any) -> None:
    with pytest.raises(PayloadError) as refused:
        encode(value, expected)
    assert str(refused.value)


def test_base_exceptions_are_not_swallowed() -> None:
    class Stop(BaseException):
        pass

    @dataclass
    class Slow:
        n: int

        def __post_init__(self) -> None:
            if self.n == 2:
                raise Stop

    with pytest.raises(Stop):
        decode(b'{"n": 2}', Slow)


# --- types ---------------------------------------------------------------------------------------------------------


class Plain:
    pass


@pytest.mark.parametrize(
    ("expected", "problem"),
    [
        (socket.socket, "socket is a `socket`: use a dataclass"),
        (Plain, "Plain is a `Plain`: use a dataclass"),
        (dict[str, list[Plain]], "value[...][...] is a `Plain`"),
        (
            dataclasses.make_dataclass("Job", [("name", str), ("tools", list[Plain] | None)]),
            "Job.tools[...] is a `Plain`",
        ),
        (TypedDict("Bag", {"thing": Plain}), "Bag.thing is a `Plain`"),  # type: ignore[operator]
        (dataclasses.make_dataclass("Job", [("n", "Missing")]), "name 'Missing' is not defined"),
        (Callable[[int], str], "Callable[[int], str] cannot travel"),
        (Iterator[int], "Iterator[int] cannot travel"),
        (type, "type cannot travel"),
        (complex, "complex cannot travel"),
        (print, "cannot travel"),
        (5, "5 cannot travel"),
        ("Order", "'Order' cannot travel"),
        ([int], "[int] cannot travel"),
        (msgspec.Raw, "msgspec"),
        (dict[tuple[int, int], str], "keys that JSON cannot represent"),
        (dict[Customer, str], "keys that JSON cannot represent"),
        (list[Order | Line], "tag its members"),
        (Order | Plain, "Plain is a `Plain`"),
        (enum.Enum("Odd", {"A": 1.5}), "Enums must contain"),
    ],
)
def test_types_that_can_travelnot_travel(expected: Any, problem: str) -> None:
    with pytest.raises(PayloadError) as refused:
        check_type(expected)
    assert problem in str(refused.value)


def test_types_that_can_travel() -> None:
    for expected in (Any, object, None, int, Order, Chain, Everything, Row, Customer, list[Cat | Dog], Order | Line):
        check_type(expected)


def test_a_codec_is_built_once() -> None:
    assert codec_for(Order) is codec_for(Order)
    assert codec_for(list[Order]) is codec_for(list[Order])
    assert isinstance(codec_for(int), Codec)
    assert codec_for(Order).name == "Order"


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        (list[Order] | None, "list[Order] | None"),
        (Optional[Order], "Order | None"),  # noqa: UP045
        (dict[str, Any], "dict[str, Any]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Literal["a", 1], "Literal['a', 1]"),
        (Annotated[int, "note"], "int"),
        (Callable[[int, Order], str], "Callable[[int, Order], str]"),
        (NewType("OrderId", int), "OrderId"),
        (ForwardRef("Order"), "Order"),
        (None, "None"),
        (type(None), "None"),
        (Any, "Any"),
        (dt.datetime, "datetime"),
    ],
)
def test_type_names(expected: Any, name: str) -> None:
    assert type_name(expected) == name


def test_type_name_of_a_local_class() -> None:
    class Local:
        class Inner:
            pass

    assert type_name(list[Local.Inner]) == "list[Local.Inner]"


def test_pydantic_is_never_imported() -> None:
    code = "import sys, underway.payload.codec as c; c.encode([1], list[int]); assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_types_with_the_same_name_are_distinguished_by_module() -> None:
    like_numpys = type("bool", (), {"__module__": "numpy"})
    with pytest.raises(PayloadError, match=r"^value: a `numpy.bool` cannot travel as JSON"):
        encode(like_numpys(), bool)
    with pytest.raises(PayloadError, match=r"^value\['a'\]: a `numpy.bool` cannot travel"):
        encode({"a": like_numpys()}, Any)
    assert (type_name(bool), type_name(list[like_numpys])) == ("bool", "list[numpy.bool]")  # type: ignore[valid-type]
    one, other = (dataclasses.make_dataclass("Order", [("n", int)]) for _ in range(2))
    for kind, module in ((one, "shop"), (other, "billing")):
        kind.__module__ = module
    with pytest.raises(PayloadError, match=r"a `shop.Order` would arrive as a `billing.Order`"):
        encode(one(1), other)
    assert type_names(one, int) == ("Order", "int")
    assert type_names(one, other) == ("shop.Order", "billing.Order")

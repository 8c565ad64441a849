"""Columns arrive in Postgres like the driver's own arrays: every type, nulls, extremes, and invalid values."""

import asyncio
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from underway.postgres.arrays import Column, Float4s, Float8s, Int2s, Int4s, Int8s, Texts, UUIDs, register
from underway.postgres.queries import statements
from underway.postgres.reconnecting import ReconnectingConnection

# The Postgres type of the elements of each kind of column.
TYPES: dict[type[Column], str] = {
    Int2s: "int2",
    Int4s: "int4",
    Int8s: "int8",
    Float4s: "float4",
    Float8s: "float8",
    Texts: "text",
    UUIDs: "uuid",
}
WIDTHS: dict[type[Column], int] = {Int2s: 15, Int4s: 31, Int8s: 63}
LARGEST_FLOAT4 = struct.unpack("!f", b"\x7f\x7f\xff\xff")[0]
SMALLEST_FLOAT4 = struct.unpack("!f", b"\x00\x00\x00\x01")[0]


class ColumnConnection:
    """A sync connection with the columns' dumpers, which work alike on sync and async connections."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        register(self.connection)

    def arrived(self, column: Column) -> list[Any]:
        """The elements as Postgres received them. Without a cast, so that the type is the column's own."""
        query = "select v from unnest(%s) with ordinality as c (v, n) order by n"
        rows = self.connection.execute(query, [column], binary=True)  # as text a float4 would be rounded
        return [row[0] for row in rows]

    def type_of(self, column: Column) -> int:
        """The oid of the type that Postgres sees."""
        row = self.connection.execute("select pg_typeof(%s)::oid", [column]).fetchone()
        assert row is not None
        return int(row[0])

    def type_of_name(self, element: str) -> int:
        row = self.connection.execute("select %s::regtype::oid", [f"{element}[]"]).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture(scope="module")
def registered(server: str) -> Iterator[ColumnConnection]:
    registered = ColumnConnection(server)
    yield registered
    registered.connection.close()


def same(one: Iterable[Any], other: Iterable[Any]) -> bool:
    """Equal, where a NaN is equal to a NaN and -0.0 is not 0.0."""
    return list(map(_comparable, one)) == list(map(_comparable, other))


def _comparable(value: Any) -> Any:
    if isinstance(value, float):
        return "nan" if math.isnan(value) else (value, math.copysign(1, value))
    return value


def test_every_kind_of_column_is_listed() -> None:
    def leaves(kind: type[Column]) -> set[type[Column]]:
        subclasses = kind.__subclasses__()
        return set().union(*map(leaves, subclasses)) if subclasses else {kind}

    assert leaves(Column) == TYPES.keys()


@pytest.mark.parametrize("kind", TYPES)
def test_a_column_has_its_type_and_may_be_empty(registered: ColumnConnection, kind: type[Column]) -> None:
    assert registered.type_of(kind()) == registered.type_of_name(TYPES[kind])
    assert registered.arrived(kind()) == []


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind is not UUIDs])
@pytest.mark.parametrize("count", [1, 2, 1000])
def test_a_column_may_hold_only_nulls(registered: ColumnConnection, kind: type[Column], count: int) -> None:
    assert registered.arrived(kind([None] * count)) == [None] * count


@pytest.mark.parametrize("kind", WIDTHS)
def test_integers_up_to_their_limits_and_not_beyond(registered: ColumnConnection, kind: type[Column]) -> None:
    largest = 2 ** WIDTHS[kind] - 1
    values = [0, 1, -1, None, largest, -largest - 1, 255, 256, -256]
    assert registered.arrived(kind(values)) == values
    for beyond in (largest + 1, -largest - 2):
        with pytest.raises((struct.error, psycopg.DataError)):
            registered.arrived(kind([beyond]))


def test_floats_up_to_their_limits(registered: ColumnConnection) -> None:
    doubles = [0.0, -0.0, None, 0.1, 1.7976931348623157e308, 5e-324, math.inf, -math.inf, math.nan]
    assert same(registered.arrived(Float8s(doubles)), doubles)
    singles = [0.0, -0.0, None, 0.5, LARGEST_FLOAT4, SMALLEST_FLOAT4, math.inf, -math.inf, math.nan]
    assert same(registered.arrived(Float4s(singles)), singles)
    (rounded,) = registered.arrived(Float4s([0.1]))
    assert rounded == pytest.approx(0.1, rel=1e-7)
    # A float column accepts integers.
    assert registered.arrived(Float8s([3])) == registered.arrived(Float4s([3])) == [3.0]


TEXTS = ["", " ", "a", None, "ü🦆", "\u0301", "\r\n\t\\N {},\"'%s", "{1,2}", "NULL", "\x01\x7f", "x" * 2**20]


def test_texts_of_every_kind(registered: ColumnConnection) -> None:
    assert registered.arrived(Texts(TEXTS)) == TEXTS


def test_str_and_encoded_bytes_may_share_a_column_of_texts(registered: ColumnConnection) -> None:
    given = [text if text is None else text.encode() for text in TEXTS]
    assert registered.arrived(Texts(given)) == TEXTS
    assert registered.arrived(Texts([*given, *TEXTS])) == TEXTS * 2


@pytest.mark.parametrize(
    "data", [b"\xff", b"a\x00b", b"\x00", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"], ids=repr
)
def test_invalid_utf8_is_refused_and_the_next_statement_works(registered: ColumnConnection, data: bytes) -> None:
    with pytest.raises(psycopg.DataError, match=r"invalid byte sequence for encoding \"UTF8\": 0x"):
        registered.arrived(Texts(["before", data, "after"]))
    assert registered.arrived(Texts(["again"])) == ["again"]


def test_a_text_with_a_nul_is_refused_by_postgres(registered: ColumnConnection) -> None:
    with pytest.raises(psycopg.DataError):
        registered.arrived(Texts(["a\0b"]))


def test_uuids_as_objects_and_as_strings(registered: ColumnConnection) -> None:
    ids = [UUID(int=0), UUID(int=2**128 - 1), uuid4()]
    assert registered.arrived(UUIDs(ids)) == ids
    assert registered.arrived(UUIDs([str(each) for each in ids])) == ids
    assert registered.arrived(UUIDs([each.hex.upper() for each in ids])) == ids


@pytest.mark.parametrize("wrong", ["", "00", "0" * 31, "0" * 34, "not a uuid"], ids=repr)
def test_an_invalid_uuid_is_refused(registered: ColumnConnection, wrong: str) -> None:
    with pytest.raises((psycopg.DataError, ValueError)):
        registered.arrived(UUIDs([wrong]))


def test_a_column_from_a_generator(registered: ColumnConnection) -> None:
    assert registered.arrived(Int4s(n for n in range(3))) == [0, 1, 2]


# Against the driver's own lists


def _nullable(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.none() | values, max_size=30)


_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
VALUES: dict[type[Column], st.SearchStrategy[list[Any]]] = {
    **{kind: _nullable(st.integers(-(2**bits), 2**bits - 1)) for kind, bits in WIDTHS.items()},
    Float4s: _nullable(st.floats(width=32, allow_nan=False)),
    Float8s: _nullable(st.floats(allow_nan=False)),
    Texts: _nullable(_TEXT),
    UUIDs: st.lists(st.uuids(), max_size=30),
}


@pytest.mark.parametrize("kind", TYPES)
def test_a_column_arrives_like_the_list_that_the_driver_dumps(registered: ColumnConnection, kind: type[Column]) -> None:
    element = TYPES[kind]

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(VALUES[kind])
    def compare(values: Sequence[Any]) -> None:
        # Postgres compares the bytes. A cast of the column would hide its type.
        row = registered.connection.execute(
            f"select array_send(%s) = array_send(%s::{element}[]), %s",
            [kind(values), list(values), kind(values)],
            binary=True,
        ).fetchone()
        assert row is not None
        identical, back = row
        assert identical or not values  # the driver's empty array has no dimension, ours has one
        assert same(back, values)

    compare()


def test_a_reconnecting_connection_accepts_columns_after_a_reconnect(database: str) -> None:
    """The dumpers are registered on each new connection."""

    async def fetch_twice() -> list[Any]:
        connection = ReconnectingConnection(database)
        answers = []
        try:
            for _ in range(2):
                answers += await connection.fetch(
                    "recorded_attempts", {"ids": UUIDs([uuid4()]), "tokens": Int8s([2**63 - 1])}
                )
                await connection.close()
        finally:
            await connection.close()
        return answers

    assert "%(tokens)s::int8[]" in statements()["recorded_attempts"]
    assert asyncio.run(fetch_twice()) == []

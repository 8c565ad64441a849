"""Cursors that adapt values in one fixed way, whatever adapters, row factory and encoding the connection has.

The connection may belong to the caller, whose adapters on it, or on psycopg itself, are meant for the caller's own
statements. (With a text loader for uuid, a run's ID was a str, and `created` was False for every run.)
"""

import json
import re
from typing import Any

import psycopg
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import AdaptersMap, Dumper, Loader
from psycopg.postgres import register_default_adapters, register_default_types
from psycopg.rows import tuple_row
from psycopg.types.array import register_all_arrays

from underway.payload import codec
from underway.postgres import arrays

_NO_ASCII = re.compile(r"[^\x00-\x7f]")


class Json(str):
    """A JSON text as a parameter. It arrives unchanged even if the client encoding lacks some of its characters."""

    __slots__ = ()


class _JsonDumper(Dumper):
    def dump(self, obj: Json) -> bytes:
        if _encoding(self) == "utf-8":
            return obj.encode()
        return _NO_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], obj).encode()


def _encoding(adapter: Dumper | Loader) -> str:
    encoding = "utf-8" if adapter.connection is None else adapter.connection.info.encoding
    return "utf-8" if encoding == "ascii" else encoding  # psycopg's name for SQL_ASCII: bytes pass unchanged


class _TextLoader(Loader):
    """Load text as str even if the client encoding is SQL_ASCII, for which psycopg returns bytes."""

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        self._encoding = _encoding(self)

    def load(self, data: Buffer) -> str:
        return bytes(data).decode(self._encoding)


class _JsonLoader(Loader):
    """Load JSON as plain values even if psycopg's set_json_loads() has changed the loader for the whole process."""

    def load(self, data: Buffer) -> Any:
        return codec.decode_plain(bytes(data))


def _own_adapters() -> AdaptersMap:
    """psycopg's default adapters, without those that the process has registered in psycopg.adapters."""
    adapters = AdaptersMap()
    register_default_types(adapters.types)
    register_default_adapters(adapters)
    register_all_arrays(adapters)
    for kind in ("text", "varchar", "name"):
        adapters.register_loader(kind, _TextLoader)
    for kind in ("json", "jsonb"):
        adapters.register_loader(kind, _JsonLoader)
    adapters.register_dumper(Json, _JsonDumper)
    arrays.register(adapters)
    return adapters


_ADAPTERS = _own_adapters()


class _OwnAdapters:
    adapters = _ADAPTERS


class OwnCursor(_OwnAdapters, psycopg.Cursor[tuple[Any, ...]]):
    """Rows are tuples."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__(connection, row_factory=tuple_row)


class AsyncOwnCursor(_OwnAdapters, psycopg.AsyncCursor[tuple[Any, ...]]):
    """Rows are tuples."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        super().__init__(connection, row_factory=tuple_row)


class OwnClientCursor(_OwnAdapters, psycopg.ClientCursor[tuple[Any, ...]]):
    """Merges parameters on the client, for statements that take no server-side parameters."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__(connection, row_factory=tuple_row)

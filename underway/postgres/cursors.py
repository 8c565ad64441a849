"""Cursors that read and write values in one way, whatever the connection's own adapters, rows and encoding are.

A connection may be the caller's, and what the caller has registered on it, or on psycopg itself, is for the caller's
statements: with a text loader for uuid the id of a run was a str, and `created` was False for each run.
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

from underway.postgres import columns

_NO_ASCII = re.compile(r"[^\x00-\x7f]")


class Json(str):
    """A parameter: a text of JSON, which arrives as it is also where the client's encoding lacks its characters."""

    __slots__ = ()


class _JsonDumper(Dumper):
    def dump(self, obj: Json) -> bytes:
        if _encoding(self) == "utf-8":
            return obj.encode()
        return _NO_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], obj).encode()


def _encoding(adapter: Dumper | Loader) -> str:
    encoding = "utf-8" if adapter.connection is None else adapter.connection.info.encoding
    return "utf-8" if encoding == "ascii" else encoding  # what Python calls SQL_ASCII: the server's, unchanged


class _TextLoader(Loader):
    """Text as str also for a client of SQL_ASCII, for which psycopg loads bytes."""

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        self._encoding = _encoding(self)

    def load(self, data: Buffer) -> str:
        return bytes(data).decode(self._encoding)


class _JsonLoader(Loader):
    """JSON as plain values also where psycopg's set_json_loads() has set another function for the whole process."""

    def load(self, data: Buffer) -> Any:
        return json.loads(bytes(data))


def _own_adapters() -> AdaptersMap:
    """psycopg's defaults, without what the process has registered in psycopg.adapters."""
    adapters = AdaptersMap()
    register_default_types(adapters.types)
    register_default_adapters(adapters)
    register_all_arrays(adapters)
    for kind in ("text", "varchar", "name"):
        adapters.register_loader(kind, _TextLoader)
    for kind in ("json", "jsonb"):
        adapters.register_loader(kind, _JsonLoader)
    adapters.register_dumper(Json, _JsonDumper)
    columns.register(adapters)
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
    """Merges parameters into the statement, for those that take none."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__(connection, row_factory=tuple_row)

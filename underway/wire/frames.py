"""Messages as bytes: a length, a kind, a small JSON header, then opaque payload bytes.

A frame is `length:u32 kind:u8 header_length:u32 header payload`, big-endian; the length counts everything after
itself. The header is a JSON array of the message's fields except its payload, which the supervisor never parses.

The reader checks every field against its annotation, because user code can write into a worker's socket. (A number in
place of a text has ended a supervisor.)
"""

import struct
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import msgspec
import orjson

from underway.wire.messages import Message

# A payload has at most 8 MiB. The rest is room for the header of a step that enqueues many runs, whose inputs travel
# in it. A longer frame is a stray write of user code into the socket.
MAX_FRAME = 128 * 1024 * 1024
# The largest input of a task, with room for the rest of its frame. The database's limit is much smaller.
MAX_INPUT = MAX_FRAME - 1024 * 1024

KINDS: tuple[type[Message], ...] = get_args(Message)
NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
_HAS_PAYLOAD = tuple("payload" in kind._fields for kind in KINDS)
_PREFIX = struct.Struct("!IBI")


def _header_decoder(kind: type[Message]) -> "msgspec.json.Decoder[tuple[Any, ...]]":
    types = [hint for name, hint in get_type_hints(kind, include_extras=True).items() if name != "payload"]
    return msgspec.json.Decoder(tuple[tuple(types)])  # type: ignore[misc]  # known at run time only


_DECODERS = tuple(map(_header_decoder, KINDS))


class BrokenFrame(Exception):
    """The bytes are not frames of ours. The connection cannot be trusted any more."""


def encode(message: Message) -> bytes:
    number = NUMBERS[type(message)]
    fields: tuple[Any, ...] = message
    if _HAS_PAYLOAD[number]:
        header, payload = orjson.dumps(fields[:-1], tuple), fields[-1]  # tuple: for a NextStep
        assert isinstance(payload, bytes)
    else:
        header, payload = orjson.dumps(tuple(fields)), b""
    return _PREFIX.pack(5 + len(header) + len(payload), number, len(header)) + header + payload


class FrameReader:
    """Turns bytes, split anywhere, into messages. Keeps an incomplete frame until the rest arrives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def incomplete(self) -> bool:
        """Whether the bytes end within a frame: at end of file, the peer died while it was writing."""
        return bool(self._buffer)

    def feed(self, data: bytes | memoryview) -> Iterator[Message]:
        """The messages completed by these bytes. Raises BrokenFrame for bytes that no peer of ours writes."""
        self._buffer += data
        if _frame_at(self._buffer, 0) is None:
            return
        complete = bytes(self._buffer)  # slices of bytes cost a third of views into a buffer
        position = 0
        try:
            while (frame := _frame_at(complete, position)) is not None:
                number, payload, end = frame
                start, position = position + _PREFIX.size, end
                yield _decode(number, complete[start:payload], complete[payload:end])
        finally:
            del self._buffer[:position]


def _frame_at(data: bytes | bytearray, start: int) -> tuple[int, int, int] | None:
    """The kind of the frame that begins at `start`, the start of its payload, and its end. None if it is incomplete."""
    if len(data) - start < _PREFIX.size:
        return None
    length, number, header_length = _PREFIX.unpack_from(data, start)
    if length > MAX_FRAME or number >= len(KINDS) or header_length > length - 5:
        raise BrokenFrame(f"frame of kind {number} with length {length}")
    end = start + 4 + length
    return (number, start + _PREFIX.size + header_length, end) if end <= len(data) else None


def _decode(number: int, header: bytes, payload: bytes) -> Message:
    try:
        fields = _DECODERS[number].decode(header)
    except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
        raise BrokenFrame(f"{KINDS[number].__name__}: {error}") from error
    message: Message = KINDS[number]._make((*fields, payload) if _HAS_PAYLOAD[number] else fields)
    return message

"""Frames between a supervisor and its workers: a length, a kind, a small JSON header, then opaque payload bytes.

A frame is `length:u32 kind:u8 header_length:u32 header payload`, big-endian, the length counting what follows it.
The header is a JSON array of the message's fields; the payload is the user's JSON, which the supervisor never
parses. Both ends read with a FrameReader, which takes bytes in whatever pieces they come, and whose messages hold what
their annotations say: user code can write into a worker's socket, and a number where a text should be has ended a
supervisor.
"""

import signal
import struct
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args, get_type_hints

import msgspec
import orjson
from typing_extensions import TypedDict

# A payload is at most 8 MiB; the rest is room for the header of a step that enqueues many runs (their inputs travel
# there). Anything longer is not ours: a stray write into our socket, so the peer is treated as broken.
MAX_FRAME = 128 * 1024 * 1024
# The largest input of a task, with room for the rest of its frame. The database's limit is much smaller.
MAX_INPUT = MAX_FRAME - 1024 * 1024
# On this signal a worker writes the stacks of its threads, even if one of them is in a call that never returns.
# It is one of the last real-time signals, which are rarely used; 0 on systems that have none.
STACK_SIGNAL = int(signal.SIGRTMAX) - 3 if sys.platform == "linux" else 0


class Hello(NamedTuple):
    """Worker: the app is imported; `payload` is the manifest."""

    pid: int
    payload: bytes


class BootFailed(NamedTuple):
    """Worker: the app does not import; `payload` is the traceback."""

    payload: bytes


class Welcome(NamedTuple):
    """Supervisor: in whose name, and on which database, a step's own transaction hands over. Before any Task."""

    owner: str
    host: str
    database: str


class Task(NamedTuple):
    """Supervisor: run this.

    `attempt` counts from 1; `attempts` and `crashes` are the counters of the run, which a step's own transaction must
    leave as they are; `timeout` is in seconds from the start of the step, `scheduled_at` in those of the epoch.
    """

    run: str
    token: int
    job: str
    step: str
    attempt: int
    attempts: int
    crashes: int
    timeout: float
    scheduled_at: float | None
    payload: bytes

    @property
    def ran_step(self) -> str:
        """As the supervisor's own tasks call it."""
        return self.step


class Started(NamedTuple):
    """Worker: from here on a death is charged to this task. Sent before its payload is touched."""

    token: int


class Progress(NamedTuple):
    token: int
    payload: bytes


Scalar: TypeAlias = str | int | float | bool | None


class Log(NamedTuple):
    """Worker: a log record of user code. `payload` is its message, `exception` its traceback, and `extra` the
    attributes that user code added to it.
    """

    token: int
    level: int
    logger: str
    exception: str | None
    extra: dict[str, Scalar]
    payload: bytes


class Transaction(NamedTuple):
    """Worker: the step opens its own transaction, whose backend must die with the worker. Sent before it is used."""

    token: int


Ending: TypeAlias = Literal["next", "done", "committed", "retry", "fail", "interrupted"]
ENDINGS: tuple[Ending, ...] = get_args(Ending)
# Step, queue, priority, delay, keep, concurrency_key, concurrency_limit of the next step.
Placement: TypeAlias = tuple[str, str, int, float, float, str | None, int | None]


class Spawn(TypedDict):
    """A run to enqueue with the hand-over, as the statement takes it."""

    id: str
    job: str
    step: str
    queue: str
    priority: int
    delay: float
    keep: float
    concurrency_key: str | None
    concurrency_limit: int | None
    input: str


# Figures that can be stored: an ending that holds another can not be written, not even as a failure.
Pause: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=365_000 * 86_400)]  # retry.LONGEST
Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Bytes: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Result(NamedTuple):
    """Worker: how the step ended. `payload` is the next step's input, the run's result, or the error's text.

    After "committed" nothing is left to write, the step's own transaction has done it. `retry_after` is what the step
    asked for; `spawned` are the runs to enqueue with the hand-over; times and sizes are in seconds and bytes. `then` is
    the task that starts now: a Started of its own would double the frames of short tasks.
    """

    token: int
    then: int | None
    ending: Ending
    placement: Placement | None
    retry_after: Pause | None
    spawned: list[Spawn]
    seconds: Seconds
    cpu_seconds: Seconds
    peak_rss: Bytes
    payload: bytes


class Stop(NamedTuple):
    """Supervisor: interrupt this task if it is the one that runs. Followed by SIGUSR1."""

    token: int
    reason: str


class Revoke(NamedTuple):
    """Supervisor: do not start this task, which was handed ahead."""

    token: int


class Skipped(NamedTuple):
    """Worker: a task was not run, because it was revoked or because the worker's process state cannot be restored."""

    token: int


class Spoilt(NamedTuple):
    """Worker: a step has changed this process irreversibly: replace it. Unstarted tasks are returned as Skipped."""

    reason: str


class End(NamedTuple):
    """Supervisor: exit in order. Sent only to a worker that has no tasks."""


Message: TypeAlias = (
    Hello
    | BootFailed
    | Welcome
    | Task
    | Started
    | Progress
    | Log
    | Transaction
    | Result
    | Stop
    | Revoke
    | Skipped
    | Spoilt
    | End
)

_KINDS: tuple[type[Message], ...] = (
    Hello,
    BootFailed,
    Welcome,
    Task,
    Started,
    Progress,
    Log,
    Transaction,
    Result,
    Stop,
    Revoke,
    Skipped,
    Spoilt,
    End,
)
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}
_HAS_PAYLOAD = tuple("payload" in kind._fields for kind in _KINDS)
_HEAD = struct.Struct("!IBI")


def _header_of(kind: type[Message]) -> "msgspec.json.Decoder[tuple[Any, ...]]":
    types = [hint for name, hint in get_type_hints(kind, include_extras=True).items() if name != "payload"]
    return msgspec.json.Decoder(tuple[tuple(types)])  # type: ignore[misc]  # known at run time only


_HEADERS = tuple(map(_header_of, _KINDS))


class BrokenFrame(Exception):
    """The bytes are not frames of ours; the connection cannot be trusted any more."""


def encode(message: Message) -> bytes:
    number = _NUMBERS[type(message)]
    fields: tuple[Any, ...] = message
    if _HAS_PAYLOAD[number]:
        header, payload = orjson.dumps(fields[:-1]), fields[-1]
        assert isinstance(payload, bytes)
    else:
        header, payload = orjson.dumps(tuple(fields)), b""
    return _HEAD.pack(5 + len(header) + len(payload), number, len(header)) + header + payload


class FrameReader:
    """Turns bytes in any pieces into messages; keeps an incomplete frame until the rest arrives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def incomplete(self) -> bool:
        """Whether a frame was begun and not finished: at end of file, what died was writing."""
        return bool(self._buffer)

    def feed(self, data: bytes | memoryview) -> Iterator[Message]:
        """Messages completed by these bytes. Raises BrokenFrame for bytes that no peer of ours writes."""
        self._buffer += data
        if _head(self._buffer, 0) is None:
            return
        complete = bytes(self._buffer)  # slices of bytes cost a third of views into a buffer
        position = 0
        try:
            while (head := _head(complete, position)) is not None:
                number, payload, end = head
                start, position = position + _HEAD.size, end
                yield _decode(number, complete[start:payload], complete[payload:end])
        finally:
            del self._buffer[:position]


def _head(data: bytes | bytearray, start: int) -> tuple[int, int, int] | None:
    """Of the frame that begins here: its kind, where its payload begins, where it ends; None if it is not all there."""
    if len(data) - start < _HEAD.size:
        return None
    length, number, header_length = _HEAD.unpack_from(data, start)
    if length > MAX_FRAME or number >= len(_KINDS) or header_length > length - 5:
        raise BrokenFrame(f"frame of kind {number} with length {length}")
    end = start + 4 + length
    return (number, start + _HEAD.size + header_length, end) if end <= len(data) else None


def _decode(number: int, header: bytes, payload: bytes) -> Message:
    try:
        fields = _HEADERS[number].decode(header)
    except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
        raise BrokenFrame(f"{_KINDS[number].__name__}: {error}") from error
    message: Message = _KINDS[number]._make((*fields, payload) if _HAS_PAYLOAD[number] else fields)
    return message

"""Frames can be split at any point, and invalid bytes are refused."""

import itertools
import struct
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from underway.wire import frames
from underway.wire import messages as wire
from underway.wire.frames import BrokenFrame, FrameReader
from underway.wire.messages import Message

texts = st.text(st.characters(codec="utf-8"), max_size=20)
payloads = st.binary(max_size=300)
tokens = st.integers(0, 2**63 - 1)
seconds = st.floats(0, 1e9)
extras = st.dictionaries(
    texts, st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | seconds | texts, max_size=3
)
counts = st.integers(0, 2**31)
json_values: st.SearchStrategy[Any] = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts
next_steps = st.none() | st.builds(
    wire.NextStep,
    texts,
    texts,
    st.integers(-(2**15), 2**15 - 1),
    seconds,
    seconds,
    st.none() | texts,
    st.none() | counts,
)
spawns = st.builds(
    wire.Spawn,
    id=texts,
    job=texts,
    step=texts,
    queue=texts,
    priority=counts,
    delay=seconds,
    keep=seconds,
    concurrency_key=st.none() | texts,
    concurrency_limit=st.none() | counts,
    input=texts,
)

messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(wire.Hello, st.integers(1, 2**22), payloads),
    st.builds(wire.BootFailed, payloads),
    st.builds(wire.Welcome, texts, texts, texts),
    st.builds(
        wire.Assignment,
        texts,
        tokens,
        texts,
        texts,
        st.integers(1, 2**31),
        counts,
        counts,
        seconds,
        st.none() | seconds,
        payloads,
    ),
    st.builds(wire.Started, tokens),
    st.builds(wire.Progress, tokens, payloads),
    st.builds(wire.Log, tokens, st.integers(0, 50), texts, st.none() | texts, extras, payloads),
    st.builds(wire.Transaction, tokens),
    st.builds(
        wire.Result,
        tokens,
        st.none() | tokens,
        st.sampled_from(get_args(wire.Ending)),
        next_steps,
        st.none() | seconds,
        st.lists(spawns, max_size=3),
        seconds,
        seconds,
        st.integers(0, 2**50),
        payloads,
    ),
    st.builds(wire.Stop, tokens, texts),
    st.builds(wire.Revoke, tokens),
    st.builds(wire.Skipped, tokens),
    st.builds(wire.Tainted, texts),
    st.builds(wire.End),
)


def frame(kind: int, header: bytes, payload: bytes = b"", *, length: int | None = None) -> bytes:
    whole = 5 + len(header) + len(payload) if length is None else length
    return struct.pack("!IBI", whole, kind, len(header)) + header + payload


def read(*pieces: bytes) -> list[Message]:
    reader = FrameReader()
    return [message for piece in pieces for message in reader.feed(piece)]


def test_every_message_type_is_covered() -> None:
    assert {kind.__name__ for kind in frames.KINDS} == {
        "Hello", "BootFailed", "Welcome", "Assignment", "Started", "Progress", "Log", "Transaction", "Result", "Stop",
        "Revoke", "Skipped", "Tainted", "End",
    }  # fmt: skip


@given(st.lists(messages, max_size=6), st.data())
def test_messages_survive_any_split(sent: list[Message], data: st.DataObject) -> None:
    stream = b"".join(map(frames.encode, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    edges = [0, *cuts, len(stream)]
    reader = FrameReader()
    received: list[Message] = []
    for begin, end in itertools.pairwise(edges):
        received += reader.feed(stream[begin:end])
    assert received == sent
    assert [type(message) for message in received] == [type(message) for message in sent]
    assert not reader.incomplete


@given(messages)
def test_messages_survive_byte_by_byte(sent: Message) -> None:
    stream = frames.encode(sent)
    reader = FrameReader()
    for index, byte in enumerate(stream):
        received = list(reader.feed(bytes([byte])))
        last = index == len(stream) - 1
        assert received == ([sent] if last else [])
        assert reader.incomplete is not last


def test_a_reader_that_stops_in_the_middle_of_a_batch_loses_nothing() -> None:
    sent = [wire.Started(number) for number in range(5)]
    reader = FrameReader()
    for message in reader.feed(b"".join(map(frames.encode, sent))):
        assert message == sent[0]
        break
    # the generator was dropped after one message; the others must not be lost
    assert list(reader.feed(b"")) == sent[1:]


def test_a_large_payload_and_one_too_large() -> None:
    large = wire.Progress(1, b"x" * (8 * 2**20))
    assert read(frames.encode(large)) == [large]
    with pytest.raises(BrokenFrame, match="with length"):
        read(frame(3, b"[1]", length=frames.MAX_FRAME + 1))


BROKEN = {
    "a kind there is not": frame(len(frames.KINDS), b"[]"),
    "the last kind there could be": frame(255, b"[]"),
    "text in place of frames": b"HTTP/1.1 200 OK\r\n\r\n",
    "print output": b"hello world, this is a library writing to the wrong descriptor\n",
    "ones only": b"\xff" * 20,
    "no room for its own head": frame(3, b"", length=0),
    "a header longer than the frame": struct.pack("!IBI", 10, 3, 6) + b"[1]   ",
    "an extra that is a list": frame(frames.NUMBERS[wire.Log], b'[1,20,"x",null,{"pages":[1]}]'),
    "a header that is not JSON": frame(3, b"]1["),
    "a header that is not text": frame(3, b"\xff\xfe"),
    "an empty header": frame(3, b""),
    "an object for a header": frame(3, b'{"token": 1}'),
    "a number for a header": frame(3, b"1"),
    "null for a header": frame(3, b"null"),
    "null for a header before a payload": frame(4, b"null", b"x"),
    "too few fields": frame(3, b"[]"),
    "too many fields": frame(3, b"[1, 2]"),
    **{
        f"{field} that cannot be stored: {value}": frame(8, b"[1, null, %s]" % figures.encode(), b"x")
        for field, value, figures in [
            ("a memory", 2**63, f'"done", null, null, [], 1.0, 1.0, {2**63}'),
            ("a memory", -1, '"done", null, null, [], 1.0, 1.0, -1'),
            ("a time", 1e300, '"done", null, null, [], 1e300, 1.0, 1'),
            ("a CPU time", 1e300, '"done", null, null, [], 1.0, 1e300, 1'),
            ("a pause", 1e300, '"retry", null, 1e300, [], 1.0, 1.0, 1'),
            ("a pause", -1, '"retry", null, -1, [], 1.0, 1.0, 1'),
        ]
    },
    "too few fields before a payload": frame(2, b'["run", 1]', b"x"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_frames_are_refused(name: str) -> None:
    good = wire.Started(1)
    reader = FrameReader()
    received: list[Message] = []
    with pytest.raises(BrokenFrame):  # noqa: PT012
        for message in reader.feed(frames.encode(good) + BROKEN[name]):
            received.append(message)  # messages before it still count
    assert received == [good]


@given(st.binary(max_size=200))
def test_noise_is_refused_or_treated_as_incomplete(noise: bytes) -> None:
    reader = FrameReader()
    try:
        for message in reader.feed(noise):
            assert frames.encode(message)
    except BrokenFrame:
        return
    assert len(reader._buffer) <= len(noise)


@given(messages, st.data())
def test_a_flipped_byte_raises_nothing_but_broken_frame(sent: Message, data: st.DataObject) -> None:
    stream = bytearray(frames.encode(sent))
    stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        for message in read(bytes(stream)):
            assert isinstance(message, tuple)
    except BrokenFrame:
        pass


def test_the_payload_is_never_parsed() -> None:
    for payload in (b"\xff\x00 not json", b"", b"[", orjson.dumps("x")):
        task = wire.Assignment("run", 1, "job", "step", 1, 0, 0, 1.0, None, payload)
        assert read(frames.encode(task)) == [task]


def test_the_header_is_small_json_with_what_a_supervisor_needs() -> None:
    stream = frames.encode(wire.Assignment("run", 7, "job", "step", 1, 0, 0, 2.5, None, b"payload"))
    length, kind, header_length = struct.unpack_from("!IBI", stream)
    assert length == len(stream) - 4
    assert frames.KINDS[kind] is wire.Assignment
    assert orjson.loads(stream[9 : 9 + header_length]) == ["run", 7, "job", "step", 1, 0, 0, 2.5, None]
    assert stream[9 + header_length :] == b"payload"

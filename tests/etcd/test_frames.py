"""HTTP/2's frames and header blocks: whole ones, cut ones, and what cannot be one."""

import itertools
import struct

import pytest
from hpack import Decoder, Encoder, HeaderTuple, NeverIndexedHeaderTuple
from hypothesis import given
from hypothesis import strategies as st

from aiolibkv.backends.etcd import frames
from aiolibkv.backends.etcd.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PRIORITIZED,
    FrameReader,
    HeaderReader,
    WrongFrameError,
    frame,
)

STREAMS = st.integers(1, frames.LAST_STREAM)
FRAMES = st.one_of(
    st.tuples(st.just(DATA), st.just(0), STREAMS, st.binary(max_size=50)),
    st.tuples(st.just(HEADERS), st.just(END_HEADERS), STREAMS, st.binary(max_size=50)),
    st.tuples(st.just(frames.PING), st.just(0), st.just(0), st.binary(min_size=8, max_size=8)),
    st.tuples(st.just(frames.GOAWAY), st.just(0), st.just(0), st.binary(min_size=8, max_size=50)),
    st.tuples(st.just(frames.WINDOW_UPDATE), st.just(0), st.just(0) | STREAMS, st.binary(min_size=4, max_size=4)),
    # Of a kind that nobody knows yet.
    st.tuples(st.integers(10, 255), st.just(0), st.just(0) | STREAMS, st.binary(max_size=50)),
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:stop] for start, stop in itertools.pairwise(ends)]


@given(st.lists(FRAMES, max_size=5), st.lists(st.integers(0), max_size=8))
def test_frames_are_found_however_they_are_cut(sent: list[frames.Frame], places: list[int]) -> None:
    reader = FrameReader()
    data = b"".join(frame(*each) for each in sent)
    assert [found for part in cut(data, places) for found in reader.read(part)] == sent


@given(st.lists(st.binary(max_size=40_000), max_size=5))
def test_of_garbage_no_more_is_kept_than_a_frame_and_a_block(parts: list[bytes]) -> None:
    reader = FrameReader()
    try:
        for part in parts:
            for _, _, _, payload in reader.read(part):
                assert len(payload) <= frames.MAX_HEADER_BYTES
            assert len(reader._rest) <= frames.SMALLEST_FRAME_LIMIT + 9
    except WrongFrameError:
        return
    assert reader._block is None or len(reader._block[2]) <= frames.MAX_HEADER_BYTES


@given(st.binary(max_size=300), st.integers(0, 255), st.integers(1, 100))
def test_a_header_block_in_parts(block: bytes, padding: int, size: int) -> None:
    first, rest = block[:size], block[size:]
    payload = bytes([padding]) + bytes(5) + first + bytes(padding)
    flags = PADDED | PRIORITIZED | END_STREAM
    data = frame(HEADERS, flags | (0 if rest else END_HEADERS), 1, payload)
    while rest:
        part, rest = rest[:size], rest[size:]
        data += frame(CONTINUATION, 0 if rest else END_HEADERS, 1, part)
    (found,) = FrameReader().read(data)
    assert (found[0], found[1] & END_STREAM, found[2:]) == (HEADERS, END_STREAM, (1, block))


@given(st.binary(max_size=300), st.integers(0, 255))
def test_padding_is_taken_off(content: bytes, padding: int) -> None:
    assert frames.unpadded(bytes([padding]) + content + bytes(padding)) == content


def wrong(data: bytes) -> int:
    with pytest.raises(WrongFrameError) as caught:
        list(FrameReader().read(data))
    return caught.value.code


OPEN_BLOCK = frame(HEADERS, 0, 1, b"\x88")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", frames.FRAME_SIZE_ERROR),
        (b"\x00\x40\x01\x00\x00\x00\x00\x00\x01", frames.FRAME_SIZE_ERROR),
        (frame(DATA, 0, 0, b"x"), frames.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 0, b"\x88"), frames.PROTOCOL_ERROR),
        (frame(frames.SETTINGS, 0, 1), frames.PROTOCOL_ERROR),
        (frame(frames.PING, 0, 1, bytes(8)), frames.PROTOCOL_ERROR),
        (frame(frames.PING, 0, 0, bytes(7)), frames.FRAME_SIZE_ERROR),
        (frame(frames.RST_STREAM, 0, 1, bytes(5)), frames.FRAME_SIZE_ERROR),
        (frame(frames.WINDOW_UPDATE, 0, 1, bytes(3)), frames.FRAME_SIZE_ERROR),
        (frame(frames.PUSH_PROMISE, END_HEADERS, 1, bytes(8)), frames.PROTOCOL_ERROR),
        (frame(CONTINUATION, END_HEADERS, 1, b"\x88"), frames.PROTOCOL_ERROR),
        (OPEN_BLOCK + frame(CONTINUATION, END_HEADERS, 3, b"\x88"), frames.PROTOCOL_ERROR),
        (OPEN_BLOCK + frame(DATA, 0, 1, b"x"), frames.PROTOCOL_ERROR),
        (OPEN_BLOCK + frame(HEADERS, END_HEADERS, 3, b"\x88"), frames.PROTOCOL_ERROR),
        (OPEN_BLOCK + frame(99, 0, 0), frames.PROTOCOL_ERROR),
        (OPEN_BLOCK + frame(CONTINUATION, 0, 1), frames.ENHANCE_YOUR_CALM),
        (OPEN_BLOCK + 5 * frame(CONTINUATION, 0, 1, bytes(16384)), frames.ENHANCE_YOUR_CALM),
        (frame(HEADERS, END_HEADERS | PADDED, 1, b"\x06abcde"), frames.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS | PRIORITIZED, 1, bytes(4)), frames.FRAME_SIZE_ERROR),
    ],
)
def test_what_cannot_be_a_frame(data: bytes, code: int) -> None:
    assert wrong(data) == code


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x05abcd"])
def test_more_padding_than_there_is(payload: bytes) -> None:
    with pytest.raises(WrongFrameError):
        frames.unpadded(payload)


@pytest.mark.parametrize(
    "settings",
    [bytes(5), struct.pack(">HL", 4, 1 << 31), struct.pack(">HL", 5, 16383), struct.pack(">HL", 5, 1 << 24)],
)
def test_settings_that_cannot_be(settings: bytes) -> None:
    with pytest.raises(WrongFrameError):
        frames.read_settings(settings)


# -- header blocks -----------------------------------------------------------------------------------------------------

NAMES = st.sampled_from([b":status", b"content-type", b"grpc-status", b"x-1", b"x-2"])
VALUES = st.sampled_from([b"200", b"0", b"application/grpc", b"", b"text/html"]) | st.binary(max_size=5)
FIELDS = st.dictionaries(NAMES, VALUES, max_size=4)


@given(st.lists(FIELDS, max_size=20), st.sampled_from([0, 60, 4096]))
def test_blocks_mean_what_was_encoded_also_when_they_come_again(sent: list[dict[bytes, bytes]], table: int) -> None:
    # A small table forgets: the same bytes then mean something else.
    encoder, reader = Encoder(), HeaderReader()
    encoder.header_table_size = table
    for fields in sent:
        for _ in range(2):
            block = encoder.encode([HeaderTuple(*field) for field in fields.items()])
            assert reader.read(block) == fields


@given(st.binary(max_size=100))
def test_a_block_of_garbage_is_wrong_or_means_something(block: bytes) -> None:
    try:
        assert isinstance(HeaderReader().read(block), dict)
    except WrongFrameError:
        pass


def test_a_small_block_that_means_a_lot_is_wrong() -> None:
    name = b"\x40\x01x" + b"\x7f\x81\x1e" + bytes(4000)
    with pytest.raises(WrongFrameError):
        HeaderReader().read(name + b"\xbe" * 1000)


def test_no_more_blocks_are_kept_than_servers_use() -> None:
    reader = HeaderReader()
    for first, second in itertools.product(range(0x82, 0xBD), repeat=2):
        reader.read(bytes([first, second]))
        reader.read(bytes([first, second]) * 100)
    assert len(reader._known) <= 64


@pytest.mark.parametrize("size", [0, 100, 126, 127, 128, 254, 255, 20_000, 70_000])
@pytest.mark.parametrize("limit", [100, 16384])
def test_a_request_is_read_as_it_was_written_and_its_fields_go_into_no_table(size: int, limit: int) -> None:
    fields = [(b"te", b"trailers"), (b"token", b"t" * size)]
    block = frames.request_block(b"host:1", b"/path", fields, secure=True)
    sent = frames.header_frames(3, frames.first_block(block), limit)
    at, got = 0, b""
    while at < len(sent):
        length, kind, flags = int.from_bytes(sent[at : at + 3]), sent[at + 3], sent[at + 4]
        assert length <= limit
        assert kind == (CONTINUATION if at else HEADERS)
        got += sent[at + 9 : at + 9 + length]
        at += 9 + length
        assert (flags == END_HEADERS) == (at == len(sent))
    decoder = Decoder(200_000)
    decoder.max_allowed_table_size = 0
    read = list(decoder.decode(got, raw=True))
    assert read[0:4] == [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", b"/path"),
        (b":authority", b"host:1"),
    ]
    assert read[4:] == fields
    assert all(isinstance(field, NeverIndexedHeaderTuple) for field in read[4:])
    assert b"\x86" not in frames.request_block(b"h", b"/", [], secure=True)[:2]


def test_an_end_that_is_cut_off() -> None:
    with pytest.raises(WrongFrameError):
        frames.read_goaway(bytes(7))
    assert frames.read_goaway(b"\xff\xff\xff\xff\0\0\0\x0btoo many\xff") == (frames.LAST_STREAM, 11, "too many\ufffd")

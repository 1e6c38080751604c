"""HTTP/2's frames and header blocks as bytes, without I/O: RFC 9113 and RFC 7541.

What is written never uses HPACK's table of recent fields: each block stands for itself and can be kept for the next
request. What is read may, and so every block has to be decoded, in order, whoever it is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from struct import Struct
from typing import Any

from hpack import Decoder, HPACKError

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
"""The kinds of frames."""
ACK = END_STREAM = 0x1
END_HEADERS, PADDED, PRIORITIZED = 0x4, 0x8, 0x20
"""The flags of frames."""
ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 2, 3, 4, 5, 6
"""The settings."""
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 0, 1, 3, 6, 7, 8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11
"""The reasons why a stream or a connection ends."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client says before its first frame."""
LARGEST_WINDOW = LAST_STREAM = (1 << 31) - 1
DEFAULT_WINDOW = (1 << 16) - 1
SMALLEST_FRAME_LIMIT = 1 << 14
"""Bytes that a frame's payload may have unless its receiver allows more."""
LARGEST_FRAME_LIMIT = (1 << 24) - 1
MAX_HEADER_BYTES = 1 << 16
"""Bytes of a header block that are taken, before and after decoding."""

_HEAD = Struct(">BHBBL")
_HEAD_SIZE = _HEAD.size
_SETTING = Struct(">HL")
_LONG = Struct(">L")
_GOAWAY = Struct(">LL")
_PRIORITY_SIZE = 5
_SIZES = {PRIORITY: _PRIORITY_SIZE, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_OF_THE_CONNECTION = (SETTINGS, PING, GOAWAY)
_OF_EITHER = (WINDOW_UPDATE,)

_LOW_BITS, _MORE = 0x7F, 0x80
_NO_TABLE = b"\x20"
"""A change of the size of HPACK's table to 0, so that the reader's limit does not matter. It begins the first block."""
_INDEXES = bytes(range(0x81, 0xFF))
"""Bytes that each stand for a whole field and leave the table as it is."""
_KNOWN_BLOCKS, _KNOWN_BLOCK_BYTES = 64, 64

Fields = Mapping[bytes, bytes]


class WrongFrameError(Exception):
    """What the other side says is not HTTP/2; the connection is of no use any more.

    Attributes:
        code: the reason to tell it.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


Frame = tuple[int, int, int, bytes]
"""Kind, flags, stream and payload; of one with a header block, the whole block, whatever the number of frames."""


# -- writing -----------------------------------------------------------------------------------------------------------


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """Return a frame."""
    size = len(payload)
    return b"".join((_HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream), payload))


def number_frame(kind: int, stream: int, number: int) -> bytes:
    """Return a frame of a number: WINDOW_UPDATE or RST_STREAM."""
    return _HEAD.pack(0, _LONG.size, kind, 0, stream) + _LONG.pack(number)


def settings_frame(settings: Iterable[tuple[int, int]]) -> bytes:
    """Return a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*setting) for setting in settings))


def goaway_frame(code: int) -> bytes:
    """Return a GOAWAY frame of a client, to which no stream was ever opened."""
    return frame(GOAWAY, 0, 0, _GOAWAY.pack(0, code))


def header_frames(stream: int, block: bytes, limit: int, *, ends: bool = False) -> bytes:
    """Return a header block as a HEADERS frame, and CONTINUATION frames for what exceeds the limit of a frame."""
    flags = END_STREAM if ends else 0
    if len(block) <= limit:
        return frame(HEADERS, flags | END_HEADERS, stream, block)
    out = bytearray(frame(HEADERS, flags, stream, block[:limit]))
    for at in range(limit, len(block), limit):
        is_last = at + limit >= len(block)
        out += frame(CONTINUATION, END_HEADERS if is_last else 0, stream, block[at : at + limit])
    return bytes(out)


def request_block(authority: bytes, path: bytes, fields: Iterable[tuple[bytes, bytes]], *, secure: bool) -> bytes:
    """Encode the head of a POST; no intermediary may put its fields into a table either, since one may be a secret."""
    others = b"".join(b"\x10%b%b" % (_text(name), _text(value)) for name, value in fields)
    return b"\x83%b\x04%b\x01%b%b" % (b"\x87" if secure else b"\x86", _text(path), _text(authority), others)


def first_block(block: bytes) -> bytes:
    """Return a block as the first one of a connection."""
    return _NO_TABLE + block


def _text(data: bytes) -> bytes:
    size = len(data)
    if size < _LOW_BITS:
        return b"%c%b" % (size, data)
    out = bytearray((_LOW_BITS,))
    size -= _LOW_BITS
    while size >= _MORE:
        out.append(size & _LOW_BITS | _MORE)
        size >>= 7
    out.append(size)
    return bytes(out) + data


# -- reading -----------------------------------------------------------------------------------------------------------


class FrameReader:
    """Finds the frames in the bytes of a connection; keeps no more than one frame, or header block, of them."""

    def __init__(self) -> None:
        self._rest = b""
        self._block: tuple[int, int, bytearray] | None = None

    def read(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete, each checked for its size and for being in its place.

        Raises:
            WrongFrameError: one cannot be. It is the end of the connection.
        """
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while end - at >= _HEAD_SIZE:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
            size = high << 16 | low
            if size > SMALLEST_FRAME_LIMIT:
                raise WrongFrameError(FRAME_SIZE_ERROR, f"a frame of {size} bytes")
            stop = at + _HEAD_SIZE + size
            if stop > end:
                break
            payload = data[at + _HEAD_SIZE : stop]
            at = stop
            stream &= LAST_STREAM
            if kind == DATA and stream and self._block is None:
                yield kind, flags, stream, payload
            elif kind == HEADERS and stream and flags & END_HEADERS and self._block is None:
                yield kind, flags, stream, _block(flags, payload)
            elif (whole := self._check(kind, flags, stream, payload)) is not None:
                yield whole
        self._rest = data[at:]

    def _check(self, kind: int, flags: int, stream: int, payload: bytes) -> Frame | None:
        """Return an unusual frame unless it is a part of a header block that is not complete."""
        if kind == CONTINUATION:
            return self._continue(flags, stream, payload)
        if self._block is not None:
            raise WrongFrameError(PROTOCOL_ERROR, "a header block is interrupted")
        if kind not in _OF_EITHER and kind <= CONTINUATION and (stream == 0) != (kind in _OF_THE_CONNECTION):
            raise WrongFrameError(PROTOCOL_ERROR, f"a frame of kind {kind} on stream {stream}")
        if kind in _SIZES and len(payload) != _SIZES[kind]:
            raise WrongFrameError(FRAME_SIZE_ERROR, f"a frame of kind {kind} with {len(payload)} bytes")
        if kind == PUSH_PROMISE:
            raise WrongFrameError(PROTOCOL_ERROR, "a push, which was not allowed")
        if kind == HEADERS:
            self._block = (stream, flags, bytearray(_block(flags, payload)))
            return None
        return kind, flags, stream, payload

    def _continue(self, flags: int, stream: int, payload: bytes) -> Frame | None:
        if self._block is None or self._block[0] != stream:
            raise WrongFrameError(PROTOCOL_ERROR, "a continuation of nothing")
        _, first_flags, block = self._block
        if not payload and not flags & END_HEADERS:
            # They could come for ever.
            raise WrongFrameError(ENHANCE_YOUR_CALM, "an empty part of a header block")
        block += payload
        if len(block) > MAX_HEADER_BYTES:
            raise WrongFrameError(ENHANCE_YOUR_CALM, f"a header block of more than {MAX_HEADER_BYTES} bytes")
        if not flags & END_HEADERS:
            return None
        self._block = None
        return HEADERS, first_flags, stream, bytes(block)


class HeaderReader:
    """Decodes the header blocks of a connection, all of them in their order."""

    def __init__(self) -> None:
        self._decoder = Decoder(MAX_HEADER_BYTES)
        self._known: dict[bytes, Fields] = {}

    def read(self, block: bytes) -> Fields:
        """Decode a block; of a field that is there twice, the last one counts.

        Raises:
            WrongFrameError: it is none. It is the end of the connection.
        """
        fields = self._known.get(block)
        if fields is None:
            fields = self._decode(block)
            if block.translate(None, _INDEXES):
                # It may have changed the table, and so what all others mean.
                self._known.clear()
            elif len(block) <= _KNOWN_BLOCK_BYTES and len(self._known) < _KNOWN_BLOCKS:
                self._known[block] = fields
        return fields

    def _decode(self, block: bytes) -> Fields:
        try:
            decoded: Any = self._decoder.decode(block, raw=True)
        except HPACKError as error:
            raise WrongFrameError(COMPRESSION_ERROR, f"a header block that cannot be decoded: {error}") from error
        return dict(decoded)


def unpadded(payload: bytes) -> bytes:
    """Return what a padded payload holds.

    Raises:
        WrongFrameError: there is less than the padding.
    """
    if not payload or payload[0] >= len(payload):
        raise WrongFrameError(PROTOCOL_ERROR, "more padding than there is")
    return payload[1 : len(payload) - payload[0]]


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Return the settings of a frame in their order, those that are known checked for their values.

    Raises:
        WrongFrameError: there can be no such settings.
    """
    if len(payload) % _SETTING.size:
        raise WrongFrameError(FRAME_SIZE_ERROR, f"settings of {len(payload)} bytes")
    settings = list(_SETTING.iter_unpack(payload))
    for name, value in settings:
        if name == INITIAL_WINDOW_SIZE and value > LARGEST_WINDOW:
            raise WrongFrameError(FLOW_CONTROL_ERROR, f"a window of {value} bytes")
        if name == MAX_FRAME_SIZE and not SMALLEST_FRAME_LIMIT <= value <= LARGEST_FRAME_LIMIT:
            raise WrongFrameError(PROTOCOL_ERROR, f"frames of {value} bytes")
    return settings


def read_number(payload: bytes) -> int:
    """Return the number that a frame consists of."""
    number: int = _LONG.unpack(payload)[0]
    return number


def read_goaway(payload: bytes) -> tuple[int, int, str]:
    """Return the last stream that counts, the reason, and the text beside it.

    Raises:
        WrongFrameError: it is cut off.
    """
    if len(payload) < _GOAWAY.size:
        raise WrongFrameError(FRAME_SIZE_ERROR, f"an end with {len(payload)} bytes")
    last, code = _GOAWAY.unpack_from(payload)
    return last & LAST_STREAM, code, payload[_GOAWAY.size :].decode(errors="replace")


def _block(flags: int, payload: bytes) -> bytes:
    """Return the header block in a HEADERS frame."""
    if flags & PADDED:
        payload = unpadded(payload)
    if not flags & PRIORITIZED:
        return payload
    if len(payload) < _PRIORITY_SIZE:
        raise WrongFrameError(FRAME_SIZE_ERROR, "a header block without its priority")
    return payload[_PRIORITY_SIZE:]

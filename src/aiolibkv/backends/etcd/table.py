"""Protobuf's encoding of any message, from a table: the message's own fields.

A message is a dataclass, or a NamedTuple, whose fields are annotated with their numbers. A field that may be None is
one of several exclusive ones, and written even when it is 0; any other is left out when it has its default. Decoding
skips fields that are not in the table, as protobuf demands, checks every length against what is there, and raises
MalformedError for anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from types import UnionType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_LONGEST_VARINT = 10
_LOW_BITS, _MORE = 0x7F, 0x80
_UINT64 = (1 << 64) - 1
_INT64_SIGN = 1 << 63
_HIGHEST_FIELD = (1 << 29) - 1


class MalformedError(ValueError):
    """Bytes that are not the expected message."""


class _Kind(IntEnum):
    INTEGER = 0
    TRUTH = 1
    BYTES = 2
    TEXT = 3
    MESSAGE = 4


_KINDS = {int: _Kind.INTEGER, bool: _Kind.TRUTH, bytes: _Kind.BYTES, str: _Kind.TEXT}


class _Field(NamedTuple):
    name: str
    number: int
    kind: _Kind
    message: type[Any] | None
    many: bool
    optional: bool


M = TypeVar("M")


def encode(message: Any) -> bytes:
    """Return the bytes of a message."""
    out = bytearray()
    for name, number, kind, _, many, optional in _table(type(message)).fields:
        value = getattr(message, name)
        if many:
            for item in value:
                _append_delimited(out, number, encode(item))
        elif value is None or not (value or optional):
            continue
        elif kind is _Kind.MESSAGE:
            content = encode(value)
            if content or optional:
                _append_delimited(out, number, content)
        elif kind is _Kind.BYTES:
            _append_delimited(out, number, value)
        elif kind is _Kind.TEXT:
            _append_delimited(out, number, value.encode())
        else:
            out += varint(number << 3 | _VARINT) + varint(value)
    return bytes(out)


def decode(kind: type[M], data: bytes, at: int, end: int) -> M:
    """Read a message of one kind from a part of some bytes.

    Raises:
        MalformedError: they are no such message.
    """
    known = _table(kind).by_number
    values: dict[str, Any] = {}
    while at < end:
        number, wire, value, at, stop = _read_field(data, at, end)
        field_of = known.get(number)
        if field_of is not None:
            if wire != (_VARINT if field_of.kind <= _Kind.TRUTH else _DELIMITED):
                raise MalformedError(f"field {number} of {kind.__name__} has the type {wire}")
            if field_of.message is None:
                values[field_of.name] = _READERS[field_of.kind](value, data, at, stop)
            elif field_of.many:
                values.setdefault(field_of.name, []).append(decode(field_of.message, data, at, stop))
            else:
                values[field_of.name] = decode(field_of.message, data, at, stop)
        at = stop
    return kind(**values)


class _Table:
    """The fields of a kind of message, in their order and by their numbers."""

    def __init__(self, kind: type[Any]) -> None:
        self.fields = tuple(_field(*item) for item in get_type_hints(kind, include_extras=True).items())
        self.by_number = {each.number: each for each in self.fields}


_tables: dict[type[Any], _Table] = {}


def _table(kind: type[Any]) -> _Table:
    if kind not in _tables:
        _tables[kind] = _Table(kind)
    return _tables[kind]


def _field(name: str, hint: Any) -> _Field:
    declared, number = get_args(hint)
    many = get_origin(declared) is list
    optional = isinstance(declared, UnionType)
    content = get_args(declared)[0] if many or optional else declared
    kind = _KINDS.get(content, _Kind.MESSAGE)
    return _Field(name, number, kind, content if kind is _Kind.MESSAGE else None, many, optional)


def varint(number: int) -> bytes:
    """Return a number in seven bits a byte; a negative one as the 64 bits of its complement."""
    number &= _UINT64
    out = bytearray()
    while number >= _MORE:
        out.append(number & _LOW_BITS | _MORE)
        number >>= 7
    out.append(number)
    return bytes(out)


def _append_delimited(out: bytearray, number: int, data: bytes) -> None:
    out += varint(number << 3 | _DELIMITED) + varint(len(data)) + data


def read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return a number without a sign, and where what follows it begins.

    Raises:
        MalformedError: it is cut off or too long.
    """
    if at + 1 < end and data[at + 1] < _MORE <= data[at]:
        # Most that are not written out have two bytes.
        return data[at] & _LOW_BITS | data[at + 1] << 7, at + 2
    value = shift = 0
    for byte in data[at : min(end, at + _LONGEST_VARINT)]:
        at += 1
        value |= (byte & _LOW_BITS) << shift
        if byte < _MORE:
            return value & _UINT64, at
        shift += 7
    raise MalformedError("a number is cut off or too long")


def _read_field(data: bytes, at: int, end: int) -> tuple[int, int, int, int, int]:
    """Return a field's number and type, its value or length, and where its content begins and ends."""
    tag, at = read_varint(data, at, end)
    number, wire = tag >> 3, tag & 7
    if not 0 < number <= _HIGHEST_FIELD:
        raise MalformedError(f"no field has the number {number}")
    if wire == _VARINT:
        value, at = read_varint(data, at, end)
        return number, wire, value, at, at
    if wire == _DELIMITED:
        value, at = read_varint(data, at, end)
    elif wire in _FIXED_SIZES:
        value = _FIXED_SIZES[wire]
    else:
        raise MalformedError(f"field {number} has the unknown type {wire}")
    if value > end - at:
        raise MalformedError(f"field {number} is cut off")
    return number, wire, value, at, at + value


def _read_integer(value: int, _data: bytes, _at: int, _stop: int) -> int:
    return value - (1 << 64) if value >= _INT64_SIGN else value


def _read_truth(value: int, _data: bytes, _at: int, _stop: int) -> bool:
    return value != 0


def _read_bytes(_value: int, data: bytes, at: int, stop: int) -> bytes:
    return data[at:stop]


def _read_text(_value: int, data: bytes, at: int, stop: int) -> str:
    try:
        return data[at:stop].decode()
    except UnicodeDecodeError as error:
        raise MalformedError("a text is not UTF-8") from error


_READERS: tuple[Callable[[int, bytes, int, int], Any], ...] = (_read_integer, _read_truth, _read_bytes, _read_text)

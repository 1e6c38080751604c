"""The protobuf encoding of the few messages spoken with etcd, from a table: the messages' own fields.

A message is a dataclass whose fields are annotated with their numbers. A field that may be None is one of several
exclusive ones, and written even when it is 0; any other is left out when it has its default. Decoding skips fields
that are not in the table, as protobuf demands, checks every length against what is there, and raises MalformedError
for anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from types import UnionType
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar, get_args, get_origin, get_type_hints

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


# -- key-value -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Header:
    """What every answer begins with."""

    revision: Annotated[int, 3] = 0


class Headed(Protocol):
    """An answer with a header, which every server fills."""

    header: Header


@dataclass(slots=True)
class KeyValue:
    """A key as it was at one revision; after a deletion only key and mod_revision are set."""

    key: Annotated[bytes, 1] = b""
    create_revision: Annotated[int, 2] = 0
    mod_revision: Annotated[int, 3] = 0
    value: Annotated[bytes, 5] = b""


@dataclass(slots=True)
class Range:
    """Read one key, or those from key up to range_end."""

    key: Annotated[bytes, 1] = b""
    range_end: Annotated[bytes, 2] = b""
    limit: Annotated[int, 3] = 0
    revision: Annotated[int, 4] = 0
    serializable: Annotated[bool, 7] = False
    keys_only: Annotated[bool, 8] = False
    count_only: Annotated[bool, 9] = False


@dataclass(slots=True)
class RangeAnswer:
    """The pairs in order; count is of all that there are, whatever the limit."""

    header: Annotated[Header, 1] = field(default_factory=Header)
    kvs: Annotated[list[KeyValue], 2] = field(default_factory=list)
    more: Annotated[bool, 3] = False
    count: Annotated[int, 4] = 0


@dataclass(slots=True)
class Put:
    """Write a key; lease 0 is none."""

    key: Annotated[bytes, 1] = b""
    value: Annotated[bytes, 2] = b""
    lease: Annotated[int, 3] = 0


@dataclass(slots=True)
class PutAnswer:
    """The header's revision is the key's mod_revision."""

    header: Annotated[Header, 1] = field(default_factory=Header)


@dataclass(slots=True)
class DeleteRange:
    """Delete one key, or those from key up to range_end."""

    key: Annotated[bytes, 1] = b""
    range_end: Annotated[bytes, 2] = b""


@dataclass(slots=True)
class DeleteRangeAnswer:
    """How many keys there were."""

    header: Annotated[Header, 1] = field(default_factory=Header)
    deleted: Annotated[int, 2] = 0


@dataclass(slots=True)
class Compare:
    """A condition that key has this mod_revision; 0 for a key that does not exist. Result 0 means equal."""

    result: Annotated[int, 1] = 0
    target: Annotated[int, 2] = 0
    key: Annotated[bytes, 3] = b""
    mod_revision: Annotated[int | None, 6] = None

    MOD = 2


@dataclass(slots=True)
class Operation:
    """One step of a Txn: exactly one of these."""

    range: Annotated[Range | None, 1] = None
    put: Annotated[Put | None, 2] = None
    delete_range: Annotated[DeleteRange | None, 3] = None


@dataclass(slots=True)
class Txn:
    """Carry out success when every condition holds, else failure, all at one revision."""

    compare: Annotated[list[Compare], 1] = field(default_factory=list)
    success: Annotated[list[Operation], 2] = field(default_factory=list)
    failure: Annotated[list[Operation], 3] = field(default_factory=list)


@dataclass(slots=True)
class OperationAnswer:
    """The answer to one step, by its kind."""

    range: Annotated[RangeAnswer | None, 1] = None
    put: Annotated[PutAnswer | None, 2] = None
    delete_range: Annotated[DeleteRangeAnswer | None, 3] = None


@dataclass(slots=True)
class TxnAnswer:
    """Which of the branches was taken, and its answers in order."""

    header: Annotated[Header, 1] = field(default_factory=Header)
    succeeded: Annotated[bool, 2] = False
    responses: Annotated[list[OperationAnswer], 3] = field(default_factory=list)


# -- leases --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class LeaseGrant:
    """Begin a lease of ttl seconds under a chosen identifier."""

    ttl: Annotated[int, 1] = 0
    id: Annotated[int, 2] = 0


@dataclass(slots=True)
class LeaseGrantAnswer:
    """The seconds granted."""

    header: Annotated[Header, 1] = field(default_factory=Header)
    id: Annotated[int, 2] = 0
    ttl: Annotated[int, 3] = 0


@dataclass(slots=True)
class LeaseRevoke:
    """End a lease and delete its keys."""

    id: Annotated[int, 1] = 0


@dataclass(slots=True)
class LeaseRevokeAnswer:
    """Nothing but a header."""

    header: Annotated[Header, 1] = field(default_factory=Header)


@dataclass(slots=True)
class LeaseKeepAlive:
    """Renew a lease."""

    id: Annotated[int, 1] = 0


@dataclass(slots=True)
class LeaseKeepAliveAnswer:
    """The seconds that it has from now; 0 when there is no such lease."""

    header: Annotated[Header, 1] = field(default_factory=Header)
    id: Annotated[int, 2] = 0
    ttl: Annotated[int, 3] = 0


# -- watching ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class WatchCreate:
    """Watch one key, or those from key up to range_end, from start_revision on, under a chosen number."""

    key: Annotated[bytes, 1] = b""
    range_end: Annotated[bytes, 2] = b""
    start_revision: Annotated[int, 3] = 0
    watch_id: Annotated[int, 7] = 0
    fragment: Annotated[bool, 8] = False


@dataclass(slots=True)
class WatchCancel:
    """End a watch."""

    watch_id: Annotated[int, 1] = 0


@dataclass(slots=True)
class WatchRequest:
    """A message on the watch stream: exactly one of these."""

    create: Annotated[WatchCreate | None, 1] = None
    cancel: Annotated[WatchCancel | None, 2] = None


@dataclass(slots=True)
class Event:
    """A change of one key."""

    type: Annotated[int, 1] = 0
    kv: Annotated[KeyValue | None, 2] = None

    DELETE = 1


@dataclass(slots=True)
class WatchAnswer:
    """Events of one watch, or what became of a request. fragment: more of the same follows."""

    header: Annotated[Header, 1] = field(default_factory=Header)
    watch_id: Annotated[int, 2] = 0
    created: Annotated[bool, 3] = False
    canceled: Annotated[bool, 4] = False
    compact_revision: Annotated[int, 5] = 0
    cancel_reason: Annotated[str, 6] = ""
    fragment: Annotated[bool, 7] = False
    events: Annotated[list[Event], 11] = field(default_factory=list)


# -- authentication ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Authenticate:
    """Ask for a token."""

    name: Annotated[str, 1] = ""
    password: Annotated[str, 2] = field(default="", repr=False)


@dataclass(slots=True)
class AuthenticateAnswer:
    """The token for further calls."""

    header: Annotated[Header, 1] = field(default_factory=Header)
    token: Annotated[str, 2] = field(default="", repr=False)


# -- encoding ------------------------------------------------------------------------------------------------------

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
            _append_varint(out, number << 3 | _VARINT)
            _append_varint(out, value & _UINT64)
    return bytes(out)


def decode(kind: type[M], data: bytes) -> M:
    """Read a message of one kind.

    Raises:
        MalformedError: the bytes are no such message.
    """
    return _decode(kind, data, 0, len(data))


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


def _append_varint(out: bytearray, number: int) -> None:
    while number >= _MORE:
        out.append(number & _LOW_BITS | _MORE)
        number >>= 7
    out.append(number)


def _append_delimited(out: bytearray, number: int, data: bytes) -> None:
    _append_varint(out, number << 3 | _DELIMITED)
    _append_varint(out, len(data))
    out += data


def _read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    if at < end and data[at] < _MORE:
        return data[at], at + 1
    value = shift = 0
    for place in range(at, min(end, at + _LONGEST_VARINT)):
        byte = data[place]
        value |= (byte & _LOW_BITS) << shift
        if byte < _MORE:
            return value & _UINT64, place + 1
        shift += 7
    raise MalformedError("a number is cut off or too long")


def _read_field(data: bytes, at: int, end: int) -> tuple[int, int, int, int, int]:
    """Return a field's number and type, its value or length, and where its content begins and ends."""
    tag, at = _read_varint(data, at, end)
    number, wire = tag >> 3, tag & 7
    if not 0 < number <= _HIGHEST_FIELD:
        raise MalformedError(f"no field has the number {number}")
    if wire == _VARINT:
        value, at = _read_varint(data, at, end)
        return number, wire, value, at, at
    if wire == _DELIMITED:
        value, at = _read_varint(data, at, end)
    elif wire in _FIXED_SIZES:
        value = _FIXED_SIZES[wire]
    else:
        raise MalformedError(f"field {number} has the unknown type {wire}")
    if value > end - at:
        raise MalformedError(f"field {number} is cut off")
    return number, wire, value, at, at + value


def _decode(kind: type[M], data: bytes, at: int, end: int) -> M:
    known = _table(kind).by_number
    message = kind()
    while at < end:
        number, wire, value, at, stop = _read_field(data, at, end)
        field_of = known.get(number)
        if field_of is not None:
            if wire != (_VARINT if field_of.kind <= _Kind.TRUTH else _DELIMITED):
                raise MalformedError(f"field {number} of {kind.__name__} has the type {wire}")
            if field_of.message is None:
                setattr(message, field_of.name, _READERS[field_of.kind](value, data, at, stop))
            elif field_of.many:
                getattr(message, field_of.name).append(_decode(field_of.message, data, at, stop))
            else:
                setattr(message, field_of.name, _decode(field_of.message, data, at, stop))
        at = stop
    return message


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

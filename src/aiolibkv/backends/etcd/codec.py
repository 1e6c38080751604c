"""The few messages spoken with etcd, and their protobuf encoding.

What is sent and received all the time is written out here, in the order in which etcd writes it. All else, and whatever
is in another order or malformed, is left to the table. Both give the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar, cast

from aiolibkv.backends.etcd import table
from aiolibkv.backends.etcd.pairs import UnusualError, read_pairs
from aiolibkv.backends.etcd.table import MalformedError, read_varint

# -- key-value -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Header:
    """What every answer begins with."""

    revision: Annotated[int, 3] = 0


class Headed(Protocol):
    """An answer with a header, which every server fills."""

    header: Header


class KeyValue(NamedTuple):
    """A key as it was at one revision; after a deletion only key and mod_revision are set."""

    key: Annotated[bytes, 1] = b""
    mod_revision: Annotated[int, 3] = 0
    value: Annotated[bytes, 5] = b""


@dataclass(slots=True)
class Range:
    """Read one key, or those from key up to range_end."""

    key: Annotated[bytes, 1] = b""
    range_end: Annotated[bytes, 2] = b""
    limit: Annotated[int, 3] = 0
    revision: Annotated[int, 4] = 0
    sort_order: Annotated[int, 5] = 0
    sort_target: Annotated[int, 6] = 0
    serializable: Annotated[bool, 7] = False
    keys_only: Annotated[bool, 8] = False
    count_only: Annotated[bool, 9] = False
    max_create_revision: Annotated[int, 13] = 0

    DESCEND = 2
    CREATE = 2


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
    """A condition on the mod_revision of a key, or of all from key up to range_end; 0 when there is none."""

    result: Annotated[int, 1] = 0
    target: Annotated[int, 2] = 0
    key: Annotated[bytes, 3] = b""
    mod_revision: Annotated[int | None, 6] = None
    range_end: Annotated[bytes, 64] = b""

    EQUAL, GREATER = 0, 1
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
_SIZES = [table.varint(size) for size in range(1 << 10)]


def encode(message: object) -> bytes:
    """Return the bytes of a message."""
    written_out = _ENCODERS.get(type(message))
    return table.encode(message) if written_out is None else written_out(message)


def _size(number: int) -> bytes:
    return _SIZES[number] if 0 <= number < len(_SIZES) else table.varint(number)


def _delimited(tag: bytes, data: bytes) -> bytes:
    return b"%b%b%b" % (tag, _size(len(data)), data)


def _encode_range(message: Range) -> bytes:
    if message.sort_order or message.sort_target or message.max_create_revision:
        return table.encode(message)
    out = _delimited(b"\x0a", message.key) if message.key else b""
    if message.range_end:
        out += _delimited(b"\x12", message.range_end)
    if message.limit:
        out += b"\x18" + _size(message.limit)
    if message.revision:
        out += b"\x20" + _size(message.revision)
    if message.serializable:
        out += b"\x38\x01"
    if message.keys_only:
        out += b"\x40\x01"
    if message.count_only:
        out += b"\x48\x01"
    return out


def _encode_put(message: Put) -> bytes:
    out = _delimited(b"\x0a", message.key) if message.key else b""
    if message.value:
        out += _delimited(b"\x12", message.value)
    if message.lease:
        out += b"\x18" + _size(message.lease)
    return out


def _encode_delete_range(message: DeleteRange) -> bytes:
    out = _delimited(b"\x0a", message.key) if message.key else b""
    if message.range_end:
        out += _delimited(b"\x12", message.range_end)
    return out


def _encode_compare(message: Compare) -> bytes:
    out = b"\x08" + _size(message.result) if message.result else b""
    if message.target:
        out += b"\x10" + _size(message.target)
    if message.key:
        out += _delimited(b"\x1a", message.key)
    if message.mod_revision is not None:
        out += b"\x30" + _size(message.mod_revision)
    if message.range_end:
        out += _delimited(b"\x82\x04", message.range_end)
    return out


def _encode_operation(message: Operation) -> bytes:
    out = b"" if message.range is None else _delimited(b"\x0a", _encode_range(message.range))
    if message.put is not None:
        out += _delimited(b"\x12", _encode_put(message.put))
    if message.delete_range is not None:
        out += _delimited(b"\x1a", _encode_delete_range(message.delete_range))
    return out


def _encode_txn(message: Txn) -> bytes:
    parts = [_delimited(b"\x0a", _encode_compare(each)) for each in message.compare]
    parts += [_delimited(b"\x12", _encode_operation(each)) for each in message.success]
    parts += [_delimited(b"\x1a", _encode_operation(each)) for each in message.failure]
    return b"".join(parts)


_ENCODERS: dict[type[Any], Callable[[Any], bytes]] = {
    Range: _encode_range,
    Put: _encode_put,
    DeleteRange: _encode_delete_range,
    Txn: _encode_txn,
}


# -- decoding ------------------------------------------------------------------------------------------------------


def decode(kind: type[M], data: bytes) -> M:
    """Read a message of one kind.

    Raises:
        MalformedError: the bytes are no such message.
    """
    written_out = _DECODERS.get(kind)
    if written_out is not None:
        try:
            return cast("M", written_out(data, 0, len(data)))
        except (UnusualError, IndexError, MalformedError):
            pass
    return table.decode(kind, data, 0, len(data))


# The number of the cluster, that of the member, the revision, and the term of the leader. Within the answer to a
# transaction the header of a step has the revision alone.
_HEADER = re.compile(
    rb"(?:\x08[\x80-\xff]{0,9}[\x00-\x7f]\x10[\x80-\xff]{0,9}[\x00-\x7f])?"
    rb"\x18([\x80-\xff]{0,8}[\x00-\x7f])(?:\x20[\x80-\xff]{0,9}[\x00-\x7f])?"
)


def decode_header(data: bytes, at: int, stop: int) -> Header:
    """Read the header of an answer, all of some bytes.

    Raises:
        UnusualError: there is something else.
    """
    found = _HEADER.match(data, at, stop)
    if found is None or found.end() != stop:
        raise UnusualError
    value = shift = 0
    for byte in found[1]:
        value |= (byte & 0x7F) << shift
        shift += 7
    return Header(value)


def _end_of(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return where a part whose size stands somewhere begins and ends."""
    size = data[at]
    at += 1
    if size >= 0x80:
        if data[at] < 0x80:
            size += (data[at] - 1) << 7
            at += 1
        else:
            size, at = read_varint(data, at - 1, end)
    if size > end - at:
        raise UnusualError
    return at, at + size


def _decode_range_answer(data: bytes, at: int, end: int) -> RangeAnswer:
    answer = RangeAnswer()
    while at < end:
        tag = data[at]
        if tag == 0x12:
            keys, revisions, values, at = read_pairs(data, at, end)
            answer.kvs += map(KeyValue, keys, revisions, values)
        elif tag == 0x20:
            answer.count, at = read_varint(data, at + 1, end)
        elif tag == 0x0A:
            at, stop = _end_of(data, at + 1, end)
            answer.header = decode_header(data, at, stop)
            at = stop
        elif tag == 0x18 and data[at + 1] <= 1:
            answer.more = data[at + 1] == 1
            at += 2
        else:
            raise UnusualError
    if answer.count >= 1 << 63 or at != end:
        raise UnusualError
    return answer


def _decode_put_answer(data: bytes, at: int, end: int) -> PutAnswer:
    if at == end:
        return PutAnswer()
    if data[at] != 0x0A:
        raise UnusualError
    at, stop = _end_of(data, at + 1, end)
    if stop != end:
        raise UnusualError
    return PutAnswer(decode_header(data, at, stop))


def _decode_delete_range_answer(data: bytes, at: int, end: int) -> DeleteRangeAnswer:
    answer = DeleteRangeAnswer()
    if at < end and data[at] == 0x0A:
        at, stop = _end_of(data, at + 1, end)
        answer.header = decode_header(data, at, stop)
        at = stop
    if at < end and data[at] == 0x10:
        answer.deleted, at = read_varint(data, at + 1, end)
    if at != end or answer.deleted >= 1 << 63:
        raise UnusualError
    return answer


def _decode_operation_answer(data: bytes, at: int, end: int) -> OperationAnswer:
    tag = data[at]
    at, stop = _end_of(data, at + 1, end)
    if stop != end:
        raise UnusualError
    if tag == 0x0A:
        return OperationAnswer(range=_decode_range_answer(data, at, stop))
    if tag == 0x12:
        return OperationAnswer(put=_decode_put_answer(data, at, stop))
    if tag == 0x1A:
        return OperationAnswer(delete_range=_decode_delete_range_answer(data, at, stop))
    raise UnusualError


def _decode_txn_answer(data: bytes, at: int, end: int) -> TxnAnswer:
    answer = TxnAnswer()
    while at < end:
        tag = data[at]
        if tag == 0x1A:
            at, stop = _end_of(data, at + 1, end)
            answer.responses.append(_decode_operation_answer(data, at, stop))
            at = stop
        elif tag == 0x0A:
            at, stop = _end_of(data, at + 1, end)
            answer.header = decode_header(data, at, stop)
            at = stop
        elif tag == 0x10 and data[at + 1] <= 1:
            answer.succeeded = data[at + 1] == 1
            at += 2
        else:
            raise UnusualError
    if at != end:
        raise UnusualError
    return answer


def _decode_event(data: bytes, at: int, end: int) -> Event:
    event = Event()
    if data[at] == 0x08 and data[at + 1] <= 1:
        event.type = data[at + 1]
        at += 2
    keys, revisions, values, at = read_pairs(data, at, end)
    if len(keys) != 1 or at != end:
        raise UnusualError
    event.kv = KeyValue(keys[0], revisions[0], values[0])
    return event


def _decode_watch_answer(data: bytes, at: int, end: int) -> WatchAnswer:
    answer = WatchAnswer()
    while at < end:
        tag = data[at]
        if tag == 0x5A:
            at, stop = _end_of(data, at + 1, end)
            answer.events.append(_decode_event(data, at, stop))
            at = stop
        elif tag == 0x0A:
            at, stop = _end_of(data, at + 1, end)
            answer.header = decode_header(data, at, stop)
            at = stop
        elif tag == 0x10:
            answer.watch_id, at = read_varint(data, at + 1, end)
        elif tag == 0x38 and data[at + 1] <= 1:
            answer.fragment = data[at + 1] == 1
            at += 2
        else:
            # What becomes of a request is rare.
            raise UnusualError
    if answer.watch_id >= 1 << 63 or at != end:
        raise UnusualError
    return answer


_DECODERS: dict[type[Any], Callable[[bytes, int, int], object]] = {
    RangeAnswer: _decode_range_answer,
    PutAnswer: _decode_put_answer,
    DeleteRangeAnswer: _decode_delete_range_answer,
    TxnAnswer: _decode_txn_answer,
    WatchAnswer: _decode_watch_answer,
}

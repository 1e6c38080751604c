"""What is said to a ZooKeeper server: operations and refusals.

What begins a connection is said with aiozk's codec, without its client, connection and session. What there are
thousands of is packed here: aiozk takes ten times as long for a request, and thirty times for an answer. It also lacks
watches that stay (AddWatch, ZooKeeper 3.6), many reads in one request (multiRead, 3.6), and transactions whose refusals
keep their codes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from aiozk import protocol

from aiolibkv.backends.zookeeper.failures import ROLLED_BACK, TransactionRefusedError, refusal
from aiolibkv.errors import StoreError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

ANY_VERSION = -1

PING_XID: int = protocol.PING_XID
AUTH_XID: int = protocol.AUTH_XID
EVENT_XID: int = protocol.WATCH_XID

_CREATE2, _DELETE, _EXISTS, _GET, _SET, _GET_ACL, _CHILDREN, _SYNC = 15, 2, 3, 4, 5, 6, 8, 9
_PING, _CHECK, _TRANSACTION, _REMOVE_WATCHES, _READ_ALL, _ADD_WATCH, _CLOSE = 11, 13, 14, 18, 22, 106, -11
_SASL = 102
_PERSISTENT_RECURSIVE = 1
_ANY_WATCHER = 3
_EPHEMERAL = 1
_FAILED = -1
_CREATED = 1
_DELETED = 2
"""The type of an event."""
_INT = struct.Struct("!i")
_INTS = struct.Struct("!ii")
_STAT = struct.Struct("!qqqqiiiqiiq")
_RESULT = struct.Struct("!i?i")
_END_OF_BUNDLE = _RESULT.pack(-1, True, -1)
_NULL = _INT.pack(-1)


class MalformedError(ValueError):
    """Bytes that are not what a server answers."""


_NONSENSE = (struct.error, ValueError, TypeError)
"""What reading bytes of another kind leads to."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What the server keeps of a node besides its data.

    Attributes:
        index: mzxid, the transaction that wrote its data last.
        version: how often its data was written since it was created.
        size: bytes of data; 0 for null, too.
        children: how many it has.
        owner: the session that an ephemeral node lives with; 0 for one that stays.
    """

    index: int
    version: int
    size: int
    children: int
    owner: int


class Node(NamedTuple):
    """A node.

    Attributes:
        data: None when it is null, which is not the same as empty.
        stat: the rest.
    """

    data: bytes | None
    stat: Stat


class Event(NamedTuple):
    """What a watch says.

    Attributes:
        path: of the node that was created, changed or deleted, or whose children did; as the server spells it.
        is_deletion: whether the node is gone.
    """

    path: str
    is_deletion: bool


class Operation(NamedTuple, Generic[T_co]):
    """A request, and how its answer is read.

    Attributes:
        kind: its code.
        path: of its node, as the server spells it.
        body: its bytes behind the header.
        parse: reads the answer in a buffer at an offset, and returns it with the offset behind it.
    """

    kind: int
    path: str
    body: bytes
    parse: Callable[[bytes, int], tuple[T_co, int]]

    def encode(self, xid: int) -> bytes:
        """Return the request's bytes, without the length in front."""
        return _INTS.pack(xid, self.kind) + self.body

    def read(self, frame: bytes, offset: int) -> T_co:
        """Read the answer.

        Raises:
            MalformedError: it is none.
            StoreError: it is a refusal.
        """
        try:
            return self.parse(frame, offset)[0]
        except _NONSENSE as error:
            raise MalformedError(f"{type(error).__name__}: {error}") from error


def _string(text: str) -> bytes:
    encoded = text.encode()
    return _INT.pack(len(encoded)) + encoded


def _bytes(data: bytes | None) -> bytes:
    return _NULL if data is None else _INT.pack(len(data)) + data


PERMISSIONS = {"r": 1, "w": 2, "c": 4, "d": 8, "a": 16}
"""To read, write, create children, delete children, and administer, by zkCli's letters."""
ALL_PERMISSIONS = sum(PERMISSIONS.values())


class Permission(NamedTuple):
    """Who may do what with a node.

    Attributes:
        allowed: a sum of PERMISSIONS.
        scheme: of the identity, such as "digest".
        identity: who.
    """

    allowed: int
    scheme: str
    identity: str


def encode_acl(permissions: Sequence[Permission]) -> bytes:
    """Encode who may do what with a node that is created."""
    entries = [_INT.pack(each.allowed) + _string(each.scheme) + _string(each.identity) for each in permissions]
    return b"".join([_INT.pack(len(entries)), *entries])


WORLD = encode_acl([Permission(ALL_PERMISSIONS, "world", "anyone")])
"""Everybody may do everything with the node."""
CREATOR = encode_acl([Permission(ALL_PERMISSIONS, "auth", "")])
"""Only those identities that its creator has may do anything with the node."""


def _parse_stat(body: bytes, offset: int) -> tuple[Stat, int]:
    _, index, _, _, version, _, _, owner, size, children, _ = _STAT.unpack_from(body, offset)
    return Stat(index, version, size, children, owner), offset + _STAT.size


def _parse_written(body: bytes, offset: int) -> tuple[Stat, int]:
    stat, end = _parse_stat(body, offset)
    if stat.index <= 0:
        raise ValueError(f"a node was written in transaction {stat.index}")
    return stat, end


def _parse_created(body: bytes, offset: int) -> tuple[Stat, int]:
    return _parse_written(body, _parse_bytes(body, offset)[1])


def _parse_node(body: bytes, offset: int) -> tuple[Node, int]:
    data, offset = _parse_bytes(body, offset)
    stat, end = _parse_stat(body, offset)
    if stat.size != len(data or b""):
        raise ValueError(f"data of {len(data or b'')} bytes instead of {stat.size}")
    return Node(data, stat), end


def _parse_names(body: bytes, offset: int) -> tuple[Sequence[str], int]:
    count = _INT.unpack_from(body, offset)[0]
    offset += _INT.size
    names = []
    for _ in range(count):
        name, offset = _parse_bytes(body, offset)
        names.append((name or b"").decode())
    return names, offset


def _parse_bytes(body: bytes, offset: int) -> tuple[bytes | None, int]:
    size = _INT.unpack_from(body, offset)[0]
    start = offset + _INT.size
    if size < 0:
        return None, start
    if start + size > len(body):
        raise ValueError("an answer ends too early")
    return body[start : start + size], start + size


def _parse_nothing(_: bytes, offset: int) -> tuple[None, int]:
    return None, offset


def _parse_permissions(body: bytes, offset: int) -> tuple[Sequence[tuple[str, str]], int]:
    count = _INT.unpack_from(body, offset)[0]
    offset += _INT.size
    identities = []
    for _ in range(count):
        scheme, offset = _parse_bytes(body, offset + _INT.size)
        identity, offset = _parse_bytes(body, offset)
        identities.append(((scheme or b"").decode(), (identity or b"").decode()))
    _, offset = _parse_stat(body, offset)
    return identities, offset


def get(path: str, *, watch: bool = False) -> Operation[Node]:
    """Read a node; watch: be told once when it changes or is deleted, if it exists."""
    return Operation(_GET, path, _string(path) + bytes([watch]), _parse_node)


def get_children(path: str, *, watch: bool = False) -> Operation[Sequence[str]]:
    """Read the names of a node's children; watch: be told once when one comes or goes, or the node goes."""
    return Operation(_CHILDREN, path, _string(path) + bytes([watch]), _parse_names)


def get_acl(path: str) -> Operation[Sequence[tuple[str, str]]]:
    """Read who may use a node, as (scheme, identity)."""
    return Operation(_GET_ACL, path, _string(path), _parse_permissions)


def exists(path: str, *, watch: bool = False) -> Operation[Stat]:
    """Read a node's stat; watch: be told once when it is created, changes or is deleted."""
    return Operation(_EXISTS, path, _string(path) + bytes([watch]), _parse_stat)


def sync() -> Operation[None]:
    """Have the connected server catch up with the leader before it carries out what is sent after this."""
    return Operation(_SYNC, "/", _string("/"), _parse_nothing)


def create(path: str, data: bytes | None, acl: bytes, *, ephemeral: bool = False) -> Operation[Stat]:
    """Create a node; an ephemeral one lives with the session of the connection."""
    body = _string(path) + _bytes(data) + acl + _INT.pack(_EPHEMERAL if ephemeral else 0)
    return Operation(_CREATE2, path, body, _parse_created)


def set_data(path: str, data: bytes | None, version: int = ANY_VERSION) -> Operation[Stat]:
    """Write a node's data."""
    return Operation(_SET, path, _string(path) + _bytes(data) + _INT.pack(version), _parse_written)


def delete(path: str, version: int = ANY_VERSION) -> Operation[None]:
    """Delete a node that has no children."""
    return Operation(_DELETE, path, _string(path) + _INT.pack(version), _parse_nothing)


def check(path: str, version: int = ANY_VERSION) -> Operation[None]:
    """Have a transaction depend on a node's version."""
    return Operation(_CHECK, path, _string(path) + _INT.pack(version), _parse_nothing)


def add_watch(path: str) -> Operation[None]:
    """Be told of every change of a node and of all below it, until the connection ends (ZooKeeper 3.6)."""
    return Operation(_ADD_WATCH, path, _string(path) + _INT.pack(_PERSISTENT_RECURSIVE), _parse_nothing)


def remove_watches(path: str) -> Operation[None]:
    """Be told nothing of a node any more (ZooKeeper 3.5)."""
    return Operation(_REMOVE_WATCHES, path, _string(path) + _INT.pack(_ANY_WATCHER), _parse_nothing)


def sasl(token: bytes) -> Operation[bytes | None]:
    """Log in by SASL, one step; the result is what the server says next."""
    return Operation(_SASL, "", _bytes(token), _parse_bytes)


def close_session() -> Operation[None]:
    """End the session, with its ephemeral nodes."""
    return Operation(_CLOSE, "", b"", _parse_nothing)


def transaction(operations: Sequence[Operation[Any]]) -> Operation[Sequence[Any]]:
    """Carry out all operations or none.

    The server (3.8) does not give the stat of what is created in a transaction: that result is None. Reading the
    answer raises TransactionRefusedError.
    """

    def parse(body: bytes, offset: int) -> tuple[Sequence[Any], int]:
        results, end = _parse_results(operations, body, offset)
        for position, result in enumerate(results):
            if isinstance(result, int) and result not in ROLLED_BACK:
                raise TransactionRefusedError(position, refusal(result, operations[position].path))
        if any(isinstance(result, int) for result in results):
            raise ValueError("a refusal that nothing is to blame for")
        return results, end

    return Operation(_TRANSACTION, "", _bundle(operations), parse)


def read_all(operations: Sequence[Operation[T]]) -> Operation[Sequence[T | StoreError]]:
    """Carry out many reads of data and children (ZooKeeper 3.6); each gives its result or what is wrong with it.

    The server makes one answer of all in its memory.
    """

    def parse(body: bytes, offset: int) -> tuple[Sequence[T | StoreError], int]:
        results, end = _parse_results(operations, body, offset)
        return [
            refusal(result, operation.path) if isinstance(result, int) else result
            for operation, result in zip(operations, results, strict=True)
        ], end

    return Operation(_READ_ALL, "", _bundle(operations), parse)


def _bundle(operations: Sequence[Operation[Any]]) -> bytes:
    parts = [part for each in operations for part in (_RESULT.pack(each.kind, False, -1), each.body)]
    return b"".join([*parts, _END_OF_BUNDLE])


def _parse_results(operations: Sequence[Operation[Any]], body: bytes, offset: int) -> tuple[list[Any], int]:
    """Read the results of many operations: what each gives, or the code of its failure."""
    results: list[Any] = []
    for operation in operations:
        kind = _RESULT.unpack_from(body, offset)[0]
        offset += _RESULT.size
        if kind == _FAILED:
            results.append(_INT.unpack_from(body, offset)[0])
            offset += _INT.size
        elif kind == _CREATED and operation.kind == _CREATE2:
            offset = _parse_bytes(body, offset)[1]
            results.append(None)
        elif kind == operation.kind:
            result, offset = operation.parse(body, offset)
            results.append(result)
        else:
            raise ValueError(f"the result of an operation of kind {kind} instead of {operation.kind}")
    return results, offset


class Welcome(NamedTuple):
    """A server's answer to the first request on a connection.

    Attributes:
        timeout: seconds that the session outlives its last sign of life.
        session: its number; 0 when the server does not know the one that was to be continued.
        password: to continue it with.
    """

    timeout: float
    session: int
    password: bytes


_NO_PASSWORD = bytes(16)
_LONGEST_TIMEOUT = 2**31 - 1


def hello(timeout: float, session: int = 0, password: bytes = b"", zxid: int = 0) -> bytes:
    """Encode the first request on a connection.

    Args:
        timeout: seconds, as wanted for a new session.
        session: 0 to begin one.
        password: of the session that is continued.
        zxid: the last transaction known here; a server that does not know it yet does not answer.
    """
    encoded: bytes = protocol.ConnectRequest(
        protocol_version=0,
        last_seen_zxid=zxid,
        timeout=min(max(round(timeout * 1000), 1), _LONGEST_TIMEOUT),
        session_id=session,
        password=password or _NO_PASSWORD,
        read_only=False,
    ).serialize()
    return encoded


def parse_welcome(frame: bytes) -> Welcome:
    """Read the answer to ``hello``.

    Raises:
        MalformedError: it is none.
    """
    try:
        answer, _ = protocol.ConnectResponse.parse(frame, 0)
    except _NONSENSE as error:
        raise MalformedError(f"no answer to the first request: {error}") from error
    if answer.session_id and answer.timeout <= 0:
        raise MalformedError(f"a session with a timeout of {answer.timeout} ms")
    return Welcome(answer.timeout / 1000, answer.session_id, answer.password)


def authenticate(credentials: bytes) -> bytes:
    """Encode the request that adds the identity of a user and password."""
    encoded: bytes = protocol.AuthRequest(type=0, scheme="digest", auth=credentials).serialize(AUTH_XID)
    return encoded


def ping() -> bytes:
    """Encode a ping."""
    return _INTS.pack(PING_XID, _PING)


def parse_event(frame: bytes, offset: int) -> Event:
    """Read what a watch says.

    Raises:
        MalformedError: it says nothing.
    """
    try:
        kind, _ = _INTS.unpack_from(frame, offset)
        path = (_parse_bytes(frame, offset + _INTS.size)[0] or b"").decode()
    except _NONSENSE as error:
        raise MalformedError(f"no event: {error}") from error
    if not path:
        raise MalformedError("an event is of no node")
    return Event(path, kind == _DELETED)

"""What is said to a ZooKeeper server: operations and refusals, on aiozk's codec.

The codec is used without aiozk's client, connection and session. What it lacks is added here: watches that stay
(AddWatch, ZooKeeper 3.6), many reads in one request (multiRead, 3.6), and transactions whose refusals keep their codes.
What there are thousands of in a list is read without it: its answers to reads take thirty times as long as struct.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from aiozk import protocol
from aiozk.protocol.acl import AUTHED_UNRESTRICTED, UNRESTRICTED_ACCESS
from aiozk.protocol.primitives import Int, UString

from aiolibkv.errors import AccessDeniedError, NotReachableError, StoreError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

ANY_VERSION = -1

WORLD: Any = UNRESTRICTED_ACCESS
"""Everybody may do everything with the node."""
CREATOR: Any = AUTHED_UNRESTRICTED
"""Only those identities that its creator has may do anything with the node."""

PING_XID: int = protocol.PING_XID
AUTH_XID: int = protocol.AUTH_XID
EVENT_XID: int = protocol.WATCH_XID

_PERSISTENT_RECURSIVE = 1
_ANY_WATCHER = 3
_EPHEMERAL = 1
_FAILED = -1
_CREATED = 1
_INT = struct.Struct("!i")
_STAT = struct.Struct("!qqqqiiiqiiq")
_RESULT = struct.Struct("!i?i")


class MalformedError(ValueError):
    """Bytes that are not what a server answers."""


_NONSENSE = (struct.error, ValueError, TypeError)
"""What reading bytes of another kind leads to."""


class RefusedError(StoreError):
    """The server refused an operation; nothing of it was done.

    Attributes:
        code: the server's, negative.
    """

    meaning: ClassVar[str] = "the server refused the request"

    def __init__(self, code: int) -> None:
        super().__init__(f"{self.meaning} (code {code})")
        self.code = code


class NoNodeError(RefusedError):
    """There is no such node, or no parent to create it below."""

    meaning = "there is no such node"


class BadVersionError(RefusedError):
    """The node is at another version."""

    meaning = "the node is at another version"


class EphemeralParentError(RefusedError):
    """The parent is an ephemeral node, which has no children."""

    meaning = "an ephemeral node has no children"


class NodeExistsError(RefusedError):
    """The node exists already."""

    meaning = "the node exists"


class NotEmptyError(RefusedError):
    """The node has children, and cannot be deleted."""

    meaning = "the node has children"


class UnknownOperationError(RefusedError):
    """The server is too old for this operation."""

    meaning = "the server does not know this operation"


_REFUSALS: dict[int, type[RefusedError]] = {
    -6: UnknownOperationError,
    -101: NoNodeError,
    -103: BadVersionError,
    -108: EphemeralParentError,
    -110: NodeExistsError,
    -111: NotEmptyError,
}
_DENIALS = frozenset({-102, -114, -115, -124})
"""NoAuth, InvalidACL (nobody is authenticated), AuthFailed, SessionClosedRequireAuth."""
SESSION_CODES = frozenset({-112, -118})
"""SessionExpired, SessionMoved: this connection has no session any more."""
_PASSING = frozenset({-4, -7, -127}) | SESSION_CODES
"""ConnectionLoss, OperationTimeout, Throttled."""
_ROLLED_BACK = frozenset({0, -2})
"""What a refused transaction says of those operations that were not to blame."""


def refusal(code: int) -> StoreError:
    """Return the error that an error code of the server stands for."""
    if code in _DENIALS:
        return AccessDeniedError()
    if code in _PASSING:
        return NotReachableError(f"the server cannot serve now (code {code})")
    return _REFUSALS.get(code, RefusedError)(code)


class TransactionRefusedError(StoreError):
    """A transaction was refused; nothing of it was done.

    Attributes:
        position: which of its operations is to blame.
        reason: what is wrong with that.
    """

    meaning = "the transaction was refused"

    def __init__(self, position: int, reason: StoreError) -> None:
        super().__init__(f"{self.meaning}: {reason.message}")
        self.position = position
        self.reason = reason


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


@dataclass(frozen=True, slots=True)
class Operation(Generic[T_co]):
    """A request, and how its answer is read.

    Attributes:
        request: of aiozk's codec.
        parse: reads the answer in a buffer at an offset, and returns it with the offset behind it.
    """

    request: Any
    parse: Callable[[bytes, int], tuple[T_co, int]]

    def encode(self, xid: int) -> bytes:
        """Return the request's bytes, without the length in front."""
        encoded: bytes = self.request.serialize(xid)
        return encoded

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


class _AddWatchRequest(protocol.GetDataRequest):  # type: ignore[misc] # aiozk is not typed
    opcode = 106
    parts = (("path", UString), ("mode", Int))


class _MultiReadRequest(protocol.TransactionRequest):  # type: ignore[misc] # aiozk is not typed
    opcode = 22


def _stat(stat: Any) -> Stat:
    return Stat(stat.last_modified_zxid, stat.version, stat.data_length, stat.num_children, stat.ephemeral_owner)


def _parse_stat(part: Any, *, is_written: bool) -> Callable[[bytes, int], tuple[Stat, int]]:
    def parse(body: bytes, offset: int) -> tuple[Stat, int]:
        answer, end = part.parse(body, offset)
        stat = _stat(answer.stat)
        if is_written and stat.index <= 0:
            raise ValueError(f"a node was written in transaction {stat.index}")
        return stat, end

    return parse


def _parse_node(body: bytes, offset: int) -> tuple[Node, int]:
    data, offset = _parse_bytes(body, offset)
    _, index, _, _, version, _, _, owner, size, children, _ = _STAT.unpack_from(body, offset)
    if size != len(data or b""):
        raise ValueError(f"data of {len(data or b'')} bytes instead of {size}")
    return Node(data, Stat(index, version, size, children, owner)), offset + _STAT.size


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


def get(path: str, *, watch: bool = False) -> Operation[Node]:
    """Read a node; watch: be told once when it changes or is deleted, if it exists."""
    return Operation(protocol.GetDataRequest(path=path, watch=watch), _parse_node)


def get_children(path: str, *, watch: bool = False) -> Operation[Sequence[str]]:
    """Read the names of a node's children; watch: be told once when one comes or goes, or the node goes."""
    return Operation(protocol.GetChildrenRequest(path=path, watch=watch), _parse_names)


def exists(path: str, *, watch: bool = False) -> Operation[Stat]:
    """Read a node's stat; watch: be told once when it is created, changes or is deleted."""
    return Operation(
        protocol.ExistsRequest(path=path, watch=watch), _parse_stat(protocol.ExistsResponse, is_written=False)
    )


def sync() -> Operation[None]:
    """Have the connected server catch up with the leader before it carries out what is sent after this."""
    return Operation(protocol.SyncRequest(path="/"), _parse_nothing)


def create(path: str, data: bytes | None, acl: Any, *, ephemeral: bool = False) -> Operation[Stat]:
    """Create a node; an ephemeral one lives with the session of the connection."""
    request = protocol.Create2Request(path=path, data=data, acl=[acl], flags=_EPHEMERAL if ephemeral else 0)
    return Operation(request, _parse_stat(protocol.Create2Response, is_written=True))


def set_data(path: str, data: bytes | None, version: int = ANY_VERSION) -> Operation[Stat]:
    """Write a node's data."""
    request = protocol.SetDataRequest(path=path, data=data, version=version)
    return Operation(request, _parse_stat(protocol.SetDataResponse, is_written=True))


def delete(path: str, version: int = ANY_VERSION) -> Operation[None]:
    """Delete a node that has no children."""
    return Operation(protocol.DeleteRequest(path=path, version=version), _parse_nothing)


def check(path: str, version: int = ANY_VERSION) -> Operation[None]:
    """Have a transaction depend on a node's version."""
    return Operation(protocol.CheckVersionRequest(path=path, version=version), _parse_nothing)


def add_watch(path: str) -> Operation[None]:
    """Be told of every change of a node and of all below it, until the connection ends (ZooKeeper 3.6)."""
    return Operation(_AddWatchRequest(path=path, mode=_PERSISTENT_RECURSIVE), _parse_nothing)


def remove_watches(path: str) -> Operation[None]:
    """Be told nothing of a node any more (ZooKeeper 3.5)."""
    return Operation(protocol.RemoveWatchesRequest(path=path, type=_ANY_WATCHER), _parse_nothing)


def close_session() -> Operation[None]:
    """End the session, with its ephemeral nodes."""
    return Operation(protocol.CloseRequest(), _parse_nothing)


def transaction(operations: Sequence[Operation[Any]]) -> Operation[Sequence[Any]]:
    """Carry out all operations or none.

    The server (3.8) does not give the stat of what is created in a transaction: that result is None. Reading the
    answer raises TransactionRefusedError.
    """

    def parse(body: bytes, offset: int) -> tuple[Sequence[Any], int]:
        results, end = _parse_results(operations, body, offset)
        for position, result in enumerate(results):
            if isinstance(result, int) and result not in _ROLLED_BACK:
                raise TransactionRefusedError(position, refusal(result))
        if any(isinstance(result, int) for result in results):
            raise ValueError("a refusal that nothing is to blame for")
        return results, end

    return Operation(_bundled(protocol.TransactionRequest(), operations), parse)


def read_all(operations: Sequence[Operation[T]]) -> Operation[Sequence[T | StoreError]]:
    """Carry out many reads of data and children (ZooKeeper 3.6); each gives its result or what is wrong with it."""

    def parse(body: bytes, offset: int) -> tuple[Sequence[T | StoreError], int]:
        results, end = _parse_results(operations, body, offset)
        return [refusal(result) if isinstance(result, int) else result for result in results], end

    return Operation(_bundled(_MultiReadRequest(), operations), parse)


def _bundled(request: Any, operations: Sequence[Operation[Any]]) -> Any:
    for operation in operations:
        request.add(operation.request)
    return request


def _parse_results(operations: Sequence[Operation[Any]], body: bytes, offset: int) -> tuple[list[Any], int]:
    """Read the results of many operations: what each gives, or the code of its failure."""
    results: list[Any] = []
    for operation in operations:
        kind = _RESULT.unpack_from(body, offset)[0]
        offset += _RESULT.size
        if kind == _FAILED:
            results.append(_INT.unpack_from(body, offset)[0])
            offset += _INT.size
        elif kind == _CREATED and isinstance(operation.request, protocol.Create2Request):
            offset = protocol.CreateResponse.parse(body, offset)[1]
            results.append(None)
        elif kind == operation.request.opcode:
            result, offset = operation.parse(body, offset)
            results.append(result)
        else:
            raise ValueError(f"the result of an operation of kind {kind} instead of {operation.request.opcode}")
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
    encoded: bytes = protocol.PingRequest().serialize(PING_XID)
    return encoded


def parse_event(frame: bytes, offset: int) -> Event:
    """Read what a watch says.

    Raises:
        MalformedError: it says nothing.
    """
    try:
        answer, _ = protocol.WatchEvent.parse(frame, offset)
    except _NONSENSE as error:
        raise MalformedError(f"no event: {error}") from error
    if not answer.path:
        raise MalformedError("an event is of no node")
    return Event(answer.path, answer.type == protocol.WatchEvent.DELETED)

"""The etcd store: every call is one transaction of the server's."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import SystemRandom
from typing import ClassVar

from aiolibkv.backends.etcd.codec import (
    Compare,
    DeleteRange,
    DeleteRangeAnswer,
    LeaseGrant,
    LeaseGrantAnswer,
    LeaseRevoke,
    LeaseRevokeAnswer,
    Operation,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Txn,
    TxnAnswer,
)
from aiolibkv.backends.etcd.connection import Connection, shared
from aiolibkv.backends.etcd.failures import RefusedError
from aiolibkv.backends.etcd.reading import bounds, is_key, read_key, read_tree
from aiolibkv.backends.etcd.watching import Watching
from aiolibkv.config import Config
from aiolibkv.errors import (
    CallNotSupportedError,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    LockLostError,
    NotReachableError,
)
from aiolibkv.store import Call, Driver, Endpoints, Feed, Guard, Lease, LeaseLost, Lifetime, Listing, Removed, Step
from aiolibkv.store.tasks import Tasks
from aiolibkv.types import Capabilities, KVPair

_PORT = 2379
_MAX_VALUE_BYTES = 1024 * 1024
"""etcd takes requests of 1.5 MiB unless told otherwise."""
_SHORTEST_TTL = 2
"""Seconds; etcd 3.4 and 3.5 grant no less with their default election timeout."""
_LONGEST_TTL = 9_000_000_000
"""Seconds; etcd refuses more."""
_EXPIRY_DELAY = 1.0
"""Seconds from a lease's end until its keys are gone; up to 0.52 s was seen with etcd 3.4 and 3.5."""
_identifiers = SystemRandom()


@dataclass(eq=False)
class EtcdLease(Lease):
    """A lease under an identifier that was chosen here, so that a grant whose answer was lost can be found again.

    Attributes:
        id: the identifier.
        granting: the last request to begin it, which goes on when who waits for it is cancelled.
    """

    id: int = field(default_factory=lambda: _identifiers.randrange(1, 1 << 63))
    granting: asyncio.Task[LeaseGrantAnswer] | None = None


def _server_ttl(lifetime: Lifetime) -> int:
    # A plain ttl counts from its put, which comes after the grant, and the client ends it on time.
    seconds = math.ceil(lifetime.ttl) + (0 if lifetime.keep_alive else 1)
    return min(max(_SHORTEST_TTL, seconds), _LONGEST_TTL)


def _ttl_overshoot(ttl: float) -> float:
    return _server_ttl(Lifetime(ttl, keep_alive=False)) - ttl + _EXPIRY_DELAY


class EtcdDriver(Driver[EtcdLease]):
    """A store in etcd 3.4 or later.

    A key that others wrote and no path can name (not UTF-8, or with an empty segment) is not seen, though delete_tree
    deletes and counts it. A new leader and a restarted server let every lease begin anew, which may add one ttl to
    ``ttl_overshoot``.
    """

    name: ClassVar[str] = "etcd"
    longest_ttl: ClassVar[float] = _LONGEST_TTL
    capabilities = Capabilities(
        distributed=True,
        durable=True,
        survives_failover=True,
        linearizable_reads=True,
        exact_compare=True,
        atomic_list=True,
        atomic_delete_tree=True,
        every_change=True,
        lifetime_with_children=True,
        ttl_survives_client=True,
        min_ttl=_SHORTEST_TTL,
        max_value_bytes=_MAX_VALUE_BYTES,
        max_operations=20,
        max_commit_bytes=256 * 1024,
        ttl_overshoot=_ttl_overshoot,
    )

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        """Make a store.

        Args:
            endpoints: "host:port" of one or more members; the port is 2379 when not given.
            config: settings. An SSLContext is made to offer HTTP/2, and nothing else, to its servers.

        Raises:
            ValueError: an endpoint cannot be read, or a setting is none that etcd can use.
        """
        super().__init__(endpoints, config)
        servers = Endpoints(self.endpoints, _PORT)
        if self.config.token is not None:
            raise ValueError("etcd: there is no token to give; etcd makes one of username and password")
        if (self.config.username is None) != (self.config.password is None):
            raise ValueError("etcd: username and password go together")
        self._connection = Connection(servers, self.config)
        self._watches = Watching(self._connection, self.config.request_timeout)
        self._grants = Tasks()

    def hosts(self) -> str:
        return self._connection.server or super().hosts()

    async def connect(self) -> None:
        await self._connection.open()

    async def disconnect(self) -> None:
        await self._grants.close()
        await self._watches.close()
        await self._connection.close()

    async def get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
        pairs = (await read_key(self._connection, path, consistent=consistent)).pairs
        return pairs[0] if pairs else None

    async def exists(self, call: Call, path: str, *, consistent: bool) -> bool:
        request = Range(path.encode(), count_only=True, serializable=not consistent)
        return (await self._connection.call(request, RangeAnswer, needs_leader=consistent)).count > 0

    async def list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
        read = await read_tree(self._connection, directory, consistent=consistent, page_read=call.extend)
        exists = not read.pairs and await self._is_key(directory, read.revision, consistent=consistent)
        return Listing(read.pairs, exists)

    async def _is_key(self, directory: str, revision: int, *, consistent: bool = True) -> bool:
        return bool(directory) and await is_key(self._connection, directory, revision, consistent=consistent)

    async def put(
        self,
        call: Call,
        path: str,
        value: bytes,
        *,
        expected: int | None,
        lease: EtcdLease | None,
        guard: Guard | None,
    ) -> int:
        put = Put(path.encode(), value, lease.id if lease is not None else 0)
        try:
            if expected is None and guard is None:
                return (await self._connection.call(put, PutAnswer, write=call)).header.revision
            return (await self._transact(call, Operation(put=put), path, expected, guard)).header.revision
        except RefusedError as refusal:
            if refusal.says("requested lease not found"):
                raise LeaseLost from refusal
            raise

    async def delete(self, call: Call, path: str, *, expected: int | None, guard: Guard | None) -> None:
        delete = DeleteRange(path.encode())
        if expected is None and guard is None:
            deleted = (await self._connection.call(delete, DeleteRangeAnswer, write=call)).deleted
        else:
            answer = await self._transact(call, Operation(delete_range=delete), path, expected, guard)
            deleted = _deleted(answer)
        if not deleted:
            call.settled()
            raise KeyNotFoundError

    async def delete_tree(self, call: Call, directory: str, *, guard: Guard | None) -> Removed:
        first, end = bounds(directory)
        success = [Operation(delete_range=DeleteRange(*span)) for span in self._without_hidden(first, end)]
        answer = await self._connection.txn(_guarded(Txn(success=success), guard), write=call)
        if not answer.succeeded:
            call.settled()
            raise LockLostError
        deleted = _deleted(answer)
        if not deleted:
            call.settled()
        return Removed(deleted, not deleted and await self._is_key(directory, answer.header.revision))

    def _without_hidden(self, first: bytes, end: bytes) -> Sequence[tuple[bytes, bytes]]:
        """Leave the reserved subtree out of a range, which holds all of it or nothing."""
        hidden, hidden_end = bounds(self.hidden)
        if first <= hidden and (end == b"\x00" or hidden_end <= end):
            return [(first, hidden), (hidden_end, end)]
        return [(first, end)]

    async def _transact(
        self, call: Call, operation: Operation, path: str, expected: int | None, guard: Guard | None
    ) -> TxnAnswer:
        """Carry out a write if its conditions hold, or raise the error that says which does not."""
        request = _guarded(Txn(success=[operation]), guard)
        if expected is not None:
            _require(request, path, expected)
        answer = await self._connection.txn(request, write=call)
        if answer.succeeded:
            return answer
        call.settled()
        found = [response.range.kvs if response.range else [] for response in answer.responses]
        if guard is not None and [kv.mod_revision for kv in found[0]] != [guard.token]:
            raise LockLostError
        if expected == 0:
            raise KeyExistsError
        if operation.delete_range is not None and not found[-1]:
            raise KeyNotFoundError
        raise KeyModifiedError

    async def commit(
        self, call: Call, steps: Sequence[Step], *, lease: EtcdLease | None = None, guard: Guard | None = None
    ) -> Sequence[int]:
        raise CallNotSupportedError

    async def follow(self, feed: Feed) -> None:
        await self._watches.follow(feed)

    def new_lease(self, lifetime: Lifetime) -> EtcdLease:
        return EtcdLease(_server_ttl(lifetime), _EXPIRY_DELAY)

    async def grant(self, call: Call, lease: EtcdLease) -> None:
        request = LeaseGrant(int(lease.ttl), lease.id)
        lease.granting = self._grants.start(self._connection.call(request, LeaseGrantAnswer))
        try:
            answer = await shared(lease.granting)
            if answer.ttl <= 0:
                raise NotReachableError("the answer is not etcd's: a lease of no time")
            lease.ttl = answer.ttl
        except RefusedError as refusal:
            # Nobody else chooses this identifier: it was granted before, and the answer was lost.
            if not refusal.says("lease already exists"):
                raise
            if not await self.renew(call, lease):
                raise NotReachableError("the lease ended before its grant was answered") from refusal

    async def renew(self, call: Call, lease: EtcdLease) -> bool:
        seconds = await self._connection.renew(lease.id, self.hidden.encode())
        if seconds > 0:
            lease.ttl = seconds
            return True
        # A leader that was just elected may not have heard of the lease yet. Revoking goes through the log, so after
        # it the lease and its keys are gone for certain, as is said here.
        await self.revoke(call, lease)
        return False

    async def revoke(self, call: Call, lease: EtcdLease) -> None:
        if lease.granting is not None:
            # The server may take the two in any order, and to revoke what is granted afterwards does nothing.
            await asyncio.wait({lease.granting})
        try:
            await self._connection.call(LeaseRevoke(lease.id), LeaseRevokeAnswer)
        except RefusedError as refusal:
            if not refusal.says("requested lease not found"):
                raise


def _require(request: Txn, path: str, index: int) -> None:
    """Make a transaction depend on a key's index, and have it read the key when a condition does not hold."""
    key = path.encode()
    request.compare.append(Compare(target=Compare.MOD, key=key, mod_revision=index))
    request.failure.append(Operation(range=Range(key, keys_only=True)))


def _guarded(request: Txn, guard: Guard | None) -> Txn:
    if guard is not None:
        _require(request, guard.path, guard.token)
    return request


def _deleted(answer: TxnAnswer) -> int:
    return sum(response.delete_range.deleted for response in answer.responses if response.delete_range is not None)

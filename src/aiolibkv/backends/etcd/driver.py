"""The etcd driver: each call as one request or transaction of the server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import SystemRandom
from typing import ClassVar

from aiolibkv.backends.etcd.codec import (
    DeleteRange,
    DeleteRangeAnswer,
    LeaseGrant,
    LeaseGrantAnswer,
    LeaseRevoke,
    LeaseRevokeAnswer,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    TxnAnswer,
)
from aiolibkv.backends.etcd.connection import Connection, shared
from aiolibkv.backends.etcd.failures import RefusedError
from aiolibkv.backends.etcd.gathering import Gathering
from aiolibkv.backends.etcd.keyspace import Keyspace, without
from aiolibkv.backends.etcd.reading import Reader
from aiolibkv.backends.etcd.transaction import Transaction, Unmet, deleted
from aiolibkv.backends.etcd.watching import Watching
from aiolibkv.config import Config
from aiolibkv.errors import (
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    LockLostError,
    NotReachableError,
    StoreError,
)
from aiolibkv.store import (
    Acquired,
    Call,
    Driver,
    Endpoints,
    Feed,
    Guard,
    Lease,
    LeaseLostError,
    Lifetime,
    Listing,
    Names,
    OwnCall,
    Page,
    Removal,
    Removed,
    Step,
    Write,
)
from aiolibkv.store.tasks import Tasks
from aiolibkv.types import Capabilities, KVPair

_PORT = 2379
_MAX_VALUE_BYTES = 1024 * 1024
"""etcd takes requests of 1.5 MiB unless told otherwise."""
_MAX_COMMIT_BYTES = _MAX_VALUE_BYTES + 64 * 1024
"""A commit of this size, with each key twice more in its conditions, is still below what etcd takes."""
_MAX_OPERATIONS = 127
"""etcd takes 128 conditions and 128 writes; a guard is a condition."""
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
        maybe_granted: whether the server may know it: a request to begin it has left, and was not refused.
        revision: the newest one that is known to its owner: of what was written under it, or of its last renewal.
    """

    id: int = field(default_factory=lambda: _identifiers.randrange(1, 1 << 63))
    granting: asyncio.Task[LeaseGrantAnswer] | None = None
    maybe_granted: bool = False
    revision: int = 0

    def at(self, revision: int) -> int:
        """Take note of a revision, and return it."""
        self.revision = max(self.revision, revision)
        return revision


class _Granting(OwnCall):
    """Notes on a lease whether the request to grant it was sent, and whether it was refused."""

    def __init__(self, lease: EtcdLease) -> None:
        super().__init__()
        self._lease = lease
        self._before = lease.maybe_granted

    def writing(self) -> None:
        super().writing()
        self._lease.maybe_granted = True

    def settled(self) -> None:
        super().settled()
        self._lease.maybe_granted = self._before


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
    option_names: ClassVar[frozenset[str]] = frozenset({"leading_slash"})
    longest_ttl: ClassVar[float] = _LONGEST_TTL
    keeps_line: ClassVar[bool] = True
    capabilities: Capabilities = Capabilities(
        distributed=True,
        durable=True,
        survives_failover=True,
        min_ttl=_SHORTEST_TTL,
        max_value_bytes=_MAX_VALUE_BYTES,
        max_operations=_MAX_OPERATIONS,
        max_commit_bytes=_MAX_COMMIT_BYTES,
        ttl_overshoot=_ttl_overshoot,
    )

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        """Make a driver.

        Args:
            endpoints: "host:port" of one or more members; the port is 2379 when not given.
            config: settings; with the option ``leading_slash`` (true or false) every key has a "/" in front at the
                server, as in the layouts of many others. An SSLContext is made to offer HTTP/2, and nothing else, to
                its servers.

        Raises:
            ValueError: an endpoint cannot be read, or a setting is none that etcd can use.
        """
        super().__init__(endpoints, config)
        servers = Endpoints(self.endpoints, _PORT)
        if self.config.token is not None:
            raise ValueError("etcd: a token cannot be given; give username and password, for which etcd makes one")
        if (self.config.username is None) != (self.config.password is None):
            raise ValueError("etcd: username and password go together")
        self._connection = Connection(servers, self.config, self)
        self._keyspace = Keyspace(leading_slash=_has_leading_slash(self.config))
        self._reader = Reader(self._connection, self._keyspace)
        self._watches = Watching(self._connection, self._keyspace, self.config.request_timeout)
        self._grants = Tasks()
        self._gathering = Gathering(self._connection, self.config.request_timeout)

    def hosts(self) -> str:
        return self._connection.server or super().hosts()

    async def connect(self) -> None:
        await self._connection.open()

    async def disconnect(self) -> None:
        await self._grants.close()
        await self._gathering.close()
        await self._watches.close()
        await self._connection.close()

    async def get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
        request = Range(self._keyspace.key(path), serializable=not consistent)
        kvs = (await self._read(request)).kvs
        return KVPair(path, kvs[0].value, kvs[0].mod_revision) if kvs else None

    async def exists(self, call: Call, path: str, *, consistent: bool) -> bool:
        request = Range(self._keyspace.key(path), count_only=True, serializable=not consistent)
        return (await self._read(request)).count > 0

    async def _read(self, request: Range) -> RangeAnswer:
        if request.serializable:
            return await self._connection.call(request, RangeAnswer, needs_leader=False)
        return await self._gathering.read(request)

    async def list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
        read = await self._reader.tree(directory, consistent=consistent, page_read=call.extend)
        exists = not read.pairs and await self._is_key(directory, read.revision, consistent=consistent)
        return Listing(read.pairs, exists)

    async def get_many(self, call: Call, paths: Sequence[str], *, consistent: bool) -> Sequence[KVPair | None]:
        return await self._reader.many(paths, consistent=consistent, page_read=call.extend)

    async def keys(self, call: Call, directory: str, *, consistent: bool) -> Names:
        read = await self._reader.tree(directory, consistent=consistent, keys_only=True, page_read=call.extend)
        exists = not read.pairs and await self._is_key(directory, read.revision, consistent=consistent)
        return Names([pair.key for pair in read.pairs], exists)

    async def children(self, call: Call, directory: str, *, consistent: bool) -> Names:
        names, revision = await self._reader.children(directory, consistent=consistent, page_read=call.extend)
        return Names(names, not names and await self._is_key(directory, revision, consistent=consistent))

    async def page(self, call: Call, directory: str, after: str, limit: int) -> Page:
        pairs, more = await self._reader.page(directory, after, limit, page_read=call.extend)
        is_empty = not pairs and not after
        return Page(pairs, more, is_empty and await self._is_key(directory, 0))

    async def _is_key(self, directory: str, revision: int, *, consistent: bool = True) -> bool:
        return bool(directory) and await self._reader.is_key(directory, revision, consistent=consistent)

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
        if expected is not None or guard is not None:
            return (await self.commit(call, [Write(path, value, expected)], lease=lease, guard=guard))[0]
        put = Put(self._keyspace.key(path), value, _identifier(lease))
        try:
            revision = (await self._connection.call(put, PutAnswer, write=call)).header.revision
        except RefusedError as refusal:
            _check_lease(refusal)
            raise
        return revision if lease is None else lease.at(revision)

    async def delete(self, call: Call, path: str, *, expected: int | None, guard: Guard | None) -> None:
        if expected is not None or guard is not None:
            await self.commit(call, [Removal(path, expected)], guard=guard)
            return
        request = DeleteRange(self._keyspace.key(path))
        if not (await self._connection.call(request, DeleteRangeAnswer, write=call)).deleted:
            call.settled()
            raise KeyNotFoundError

    async def delete_tree(self, call: Call, directory: str, *, guard: Guard | None) -> Removed:
        keyspace = self._keyspace
        transaction = Transaction(keyspace)
        if guard is not None:
            transaction.require(guard.path, guard.token)
        hidden = keyspace.one(self.hidden), keyspace.below(self.hidden)
        for span in without(keyspace.below(directory), *hidden):
            transaction.delete_span(span)
        answer = await self._connection.txn(transaction.request, write=call)
        if not answer.succeeded:
            call.settled()
            raise LockLostError
        number = deleted(answer)
        if not number:
            call.settled()
        return Removed(number, not number and await self._is_key(directory, answer.header.revision))

    async def commit(
        self, call: Call, steps: Sequence[Step], *, lease: EtcdLease | None = None, guard: Guard | None = None
    ) -> Sequence[int]:
        transaction = Transaction(self._keyspace)
        if guard is not None:
            transaction.require(guard.path, guard.token)
        for step in steps:
            if step.expected is not None or not isinstance(step, Write):
                transaction.require(step.path, step.expected)
        for step in steps:
            if isinstance(step, Write):
                transaction.put(step.path, step.value, _identifier(lease))
            elif isinstance(step, Removal):
                transaction.delete(step.path)
        answer = await self._write(transaction, call)
        if not answer.succeeded:
            call.settled()
            raise self._refusal(transaction.unmet(answer), steps, guard)
        if lease is not None:
            lease.at(answer.header.revision)
        return [answer.header.revision if isinstance(step, Write) else 0 for step in steps]

    async def _write(self, transaction: Transaction, call: Call) -> TxnAnswer:
        try:
            return await self._connection.txn(transaction.request, write=call)
        except RefusedError as refusal:
            _check_lease(refusal)
            raise

    @staticmethod
    def _refusal(unmet: Iterator[Unmet], steps: Sequence[Step], guard: Guard | None) -> StoreError:
        first = next(unmet, None)
        if first is None:
            return NotReachableError("the answer is not etcd's: it refuses what holds")
        if guard is not None and (first.path, first.required) == guard:
            return LockLostError()
        if first.required == 0:
            return KeyExistsError(key=first.path)
        removed = any(step.path == first.path and isinstance(step, Removal) for step in steps)
        if not first.found and (removed or first.required is None):
            return KeyNotFoundError(key=first.path)
        return KeyModifiedError(key=first.path)

    async def acquire(self, call: Call, path: str, value: bytes, lease: EtcdLease, *, line: str | None) -> Acquired:
        transaction = Transaction(self._keyspace)
        transaction.require(path, 0)
        if line is not None:
            transaction.require_nothing_below(line)
        transaction.put(path, value, lease.id)
        answer = await self._write(transaction, call)
        if not answer.succeeded:
            call.settled()
            raise self._refusal(transaction.unmet(answer), (), None)
        revision = lease.at(answer.header.revision)
        return Acquired(revision, revision)

    async def release(self, call: Call, path: str, index: int, place: str | None, lease: EtcdLease) -> None:
        transaction = Transaction(self._keyspace)
        transaction.require(path, index)
        transaction.delete(path)
        if place is not None:
            transaction.delete(place)
        # No call.writing(): to delete what is at an index may be repeated, when the answer was lost.
        answer = await self._connection.txn(transaction.request)
        if not answer.succeeded:
            raise self._refusal(transaction.unmet(answer), [Removal(path, index)], None)

    async def place_ahead(self, call: Call, line: str, place: str) -> str | None:
        exists, ahead = await self._reader.created_before(line, place)
        if not exists:
            raise LeaseLostError
        return ahead

    async def follow(self, feed: Feed) -> None:
        await self._watches.follow(feed)

    def new_lease(self, lifetime: Lifetime) -> EtcdLease:
        return EtcdLease(_server_ttl(lifetime), _EXPIRY_DELAY)

    async def grant(self, call: Call, lease: EtcdLease) -> None:
        request = LeaseGrant(int(lease.ttl), lease.id)
        lease.granting = self._grants.start(self._connection.call(request, LeaseGrantAnswer, write=_Granting(lease)))
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
        known = lease.revision
        seconds, revision = await self._connection.renew(lease.id, self._keyspace.key(self.hidden))
        if seconds > 0 and (revision is None or lease.at(revision) >= known):
            lease.ttl = seconds
            return True
        # A leader that was just elected may not have heard of the lease yet, and a server that was restored from a
        # backup may know it, but not what was written under it since. Revoking goes through the log, so after it the
        # lease and its keys are gone for certain, as is said here.
        await self.revoke(call, lease)
        return False

    async def revoke(self, call: Call, lease: EtcdLease) -> None:
        if lease.granting is not None:
            if not lease.maybe_granted:
                lease.granting.cancel()
            # The server may take the two in any order, and to revoke what is granted afterwards does nothing.
            await asyncio.wait({lease.granting})
        if not lease.maybe_granted:
            return
        try:
            await self._connection.call(LeaseRevoke(lease.id), LeaseRevokeAnswer)
        except RefusedError as refusal:
            if not refusal.says("requested lease not found"):
                raise


def _check_lease(refusal: RefusedError) -> None:
    """Raise LeaseLostError when the server refuses a write because it does not know the lease."""
    if refusal.says("requested lease not found"):
        raise LeaseLostError from refusal


def _identifier(lease: EtcdLease | None) -> int:
    return lease.id if lease is not None else 0


def _has_leading_slash(config: Config) -> bool:
    option = config.options.get("leading_slash", False)
    truths = {True: True, "true": True, False: False, "false": False}
    if not isinstance(option, bool | str) or option not in truths:
        raise ValueError(f"etcd: the option leading_slash is true or false, not {option!r}")
    return truths[option]

"""The Consul store: each call as a transaction of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import uniform
from typing import ClassVar

from aiolibkv.backends.consul.connection import Connection
from aiolibkv.backends.consul.encoding import (
    LOCK_FLAGS,
    MAX_VALUE_BYTES,
    Answer,
    Entry,
    deletion_units,
    is_folder,
    kv_target,
    new_nonce,
    parse_entries,
    parse_names,
    parse_tree,
    read_mode,
    start_of,
)
from aiolibkv.backends.consul.failures import TxnFailedError
from aiolibkv.backends.consul.polls import Polls
from aiolibkv.backends.consul.scope import Scope
from aiolibkv.backends.consul.sessions import (
    LONGEST_TTL,
    SHORTEST_TTL,
    ConsulLease,
    Sessions,
    new_lease,
    overshoot,
)
from aiolibkv.backends.consul.transactions import (
    MAX_TXN_OPERATIONS,
    Operation,
    Transaction,
    checking,
    guarding,
    replacing,
    writing,
)
from aiolibkv.config import Config
from aiolibkv.errors import (
    AccessDeniedError,
    CallNotSupportedError,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    NotReachableError,
    StoreError,
)
from aiolibkv.keys import RESERVED
from aiolibkv.store import Acquired, Call, Driver, Endpoints, Feed, Guard, Lifetime, Listing, Removed, Step
from aiolibkv.store.tasks import Tasks
from aiolibkv.types import Capabilities, KVPair

_DEFAULT_PORT = 8500
_LONGEST_PAUSE = 0.2


@dataclass(frozen=True, slots=True)
class _Write:
    """A transaction that changes one key.

    Attributes:
        path: the key.
        transaction: what is sent.
        expected: the index that it requires, as for ``_put``.
        guard: the lock that it requires.
        deletes: whether the key is gone afterwards.
    """

    path: str
    transaction: Transaction
    expected: int | None
    guard: Guard | None
    deletes: bool = False

    def refusal(self, failed: TxnFailedError) -> Exception:
        """Return the error for its failure."""
        error = failed.refusal(self.guard)
        if self.deletes and isinstance(error, KeyModifiedError) and failed.failures[0].missing:
            return KeyNotFoundError()
        return error


class ConsulDriver(Driver[ConsulLease]):
    """A store in Consul's key/value tree.

    Made for and tested with Consul 1.8.7. A write is one transaction that first deletes the key, which
    detaches it from a session, and sets its flags to a number of its own: a write of the value already there
    is then a change like any other, and a write whose answer was lost is recognised by reading the key.

    Values that do not fit into a transaction (above about 390 KB) are written by plain requests, which can
    neither check a guard nor begin a lifetime: CallNotSupportedError, before anything is written.

    ``delete_tree("")`` is one transaction, which has room for about 60 first characters of keys (30 without a
    prefix). Of more it is a CallNotSupportedError, before anything is deleted; one directory after the other can be.
    """

    name: ClassVar[str] = "consul"
    longest_ttl: ClassVar[float] = LONGEST_TTL
    option_names: ClassVar[frozenset[str]] = Scope.options
    capabilities = Capabilities(
        distributed=True,
        durable=True,
        survives_failover=True,
        linearizable_reads=True,
        exact_compare=True,
        atomic_list=True,
        atomic_delete_tree=True,
        every_change=False,
        lifetime_with_children=True,
        ttl_survives_client=True,
        min_ttl=SHORTEST_TTL,
        max_value_bytes=MAX_VALUE_BYTES,
        max_operations=20,
        max_commit_bytes=256 * 1024,
        ttl_overshoot=overshoot,
    )

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        """Make a store.

        Args:
            endpoints: "host:port" of agents of one datacenter, the port is 8500 when not given; or
                "unix:/path/of/socket".
            config: settings. Consul knows tokens; a user and a password are for a proxy before it, as by
                CONSUL_HTTP_AUTH. Options: ``dc``, another datacenter than that of the agents; ``namespace`` and
                ``partition`` of Consul Enterprise; ``http_path``, a path that what stands before Consul puts before
                its own.

        Raises:
            ValueError: there is no endpoint, or one cannot be read; an option cannot be.
        """
        super().__init__(endpoints, config)
        Scope(self.config)
        self._servers = Endpoints(self.endpoints, _DEFAULT_PORT, unix=True)
        self._tasks = Tasks()
        self._opened: Connection | None = None

    # -- the connection --------------------------------------------------------------------------------------

    async def connect(self) -> None:
        self._opened = Connection(self.config, self._servers)
        self._sessions = Sessions(self._opened, self._tasks)
        self._polls = Polls(self._opened, self._tasks, self.config)
        share = self.config.connection_timeout / len(self._servers)
        reason = NotReachableError()
        for _ in self.endpoints:
            try:
                async with asyncio.timeout(share):
                    await self._opened.greet(self.hidden, self.config.connection_timeout)
                return
            except NotReachableError as error:
                # The connection has moved on already.
                reason = error
            except TimeoutError:
                reason = NotReachableError(f"no answer within {share:g} s", endpoint=str(self._opened.endpoint))
                self._opened.failed(self._opened.endpoint)
        reason.maybe_applied = False
        raise reason

    async def disconnect(self) -> None:
        await self._tasks.close()
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    @property
    def _connection(self) -> Connection:
        assert self._opened is not None, "open"
        return self._opened

    # -- reading ---------------------------------------------------------------------------------------------

    async def get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
        for mode in _modes(consistent=consistent):
            answer = await self._connection.read(kv_target(path, f"raw&{mode}"))
            if answer.found:
                return KVPair(path, answer.body, answer.index)
        return None

    async def exists(self, call: Call, path: str, *, consistent: bool) -> bool:
        for mode in _modes(consistent=consistent):
            said = await self._connection.look([path], mode)
            said.raise_if_denied()
            if said.tells_of_key(0):
                return True
        return False

    async def list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
        while True:
            replaced = self._connection.tokens_replaced
            target = kv_target(start_of(directory), f"recurse&{read_mode(consistent=consistent)}")
            answer = await self._connection.read(target)
            with self._connection.understanding(answer):
                pairs = await parse_tree(answer)
            if pairs:
                return Listing(pairs, exists=True)
            if not consistent:
                consistent = True
                continue
            exists = await self._is_key(directory)
            if replaced == self._connection.tokens_replaced:
                return Listing([], exists)

    async def _is_key(self, directory: str) -> bool:
        """Tell whether a directory with nothing below is itself a key, and make sure that it may be read.

        The server leaves out what may not be read. A directory whose own name may not be read is taken for
        none.
        """
        start = start_of(directory)
        if not directory:
            await self._connection.check_access(start)
            return False
        said = await self._connection.look([start, directory], read_mode(consistent=True))
        if said.is_denied(0):
            said.raise_if_denied()
        return not said.is_denied(1) and said.tells_of_key(1)

    async def commit(
        self, call: Call, steps: Sequence[Step], *, lease: ConsulLease | None = None, guard: Guard | None = None
    ) -> Sequence[int]:
        raise CallNotSupportedError

    async def follow(self, feed: Feed) -> None:
        await self._polls.follow(feed)

    # -- writing ---------------------------------------------------------------------------------------------

    async def put(
        self,
        call: Call,
        path: str,
        value: bytes,
        *,
        expected: int | None,
        lease: ConsulLease | None,
        guard: Guard | None,
    ) -> int:
        nonce = new_nonce()
        session = None if lease is None else lease.session
        transaction = self._transaction(replacing(path, expected, writing(path, value, nonce, session), guard))
        if transaction.is_too_large:
            if lease is not None or guard is not None:
                raise CallNotSupportedError("a value of this size has neither a lifetime nor a guard on Consul")
            return await self._put_large(call, path, value, nonce, expected)

        write = _Write(path, transaction, expected, guard)
        return await self._certainly(call, write, lambda entry: entry.flags == nonce)

    async def acquire(self, call: Call, path: str, value: bytes, lease: ConsulLease, *, line: str | None) -> Acquired:
        """Create a lock's key; see Driver.

        Its flags are those by which Consul's own clients know a lock, and refuse other keys; it is recognised by its
        session instead, which holds no other key of this name.
        """
        session = lease.session
        transaction = self._transaction(replacing(path, 0, writing(path, value, LOCK_FLAGS, session), None))
        if transaction.is_too_large:
            raise CallNotSupportedError("a lock cannot have a value of this size on Consul")
        write = _Write(path, transaction, 0, None)
        index = await self._certainly(call, write, lambda entry: entry.session == session)
        return Acquired(index, index)

    async def delete(self, call: Call, path: str, *, expected: int | None, guard: Guard | None) -> None:
        condition = Operation("get", path) if expected is None else checking(path, expected)
        transaction = self._transaction([*guarding(guard), condition, Operation("delete", path)])
        write = _Write(path, transaction, expected, guard, deletes=True)
        await self._certainly(call, write, lambda _: False)

    async def _certainly(self, call: Call, write: _Write, is_own: Callable[[Entry], bool]) -> int:
        """Carry out a write, and find out what became of it when its answer is lost.

        Args:
            call: what is carried out.
            write: the transaction.
            is_own: tells whether what is there was written by it.

        Returns:
            The key's new index; 0 for a deletion.
        """
        try:
            return await self._write_once(call, write)
        except TxnFailedError as failed:
            call.settled()
            raise write.refusal(failed) from None
        except NotReachableError as error:
            if not call.maybe_applied:
                raise
            return await self._resolve(call, write, is_own, error)

    async def _resolve(
        self, call: Call, write: _Write, is_own: Callable[[Entry], bool], lost: NotReachableError
    ) -> int:
        """Find out what became of a write whose answer was lost.

        As long as the key is at the expected index, the write was not applied and may be sent again: it cannot be
        applied twice, since that index never comes again. No other write is repeated; it might be applied now,
        somebody else's after it, and then the first one, late.
        """
        refused: Exception | None = None
        while True:
            entry, _ = await self._look(write.path, lost)
            if entry is not None and is_own(entry):
                return entry.pair.last_index
            if not write.expected or entry is None or entry.pair.last_index != write.expected:
                raise lost from lost.__cause__
            if refused is not None:
                call.settled()
                raise refused
            try:
                return await self._write_once(call, write)
            except TxnFailedError as failed:
                refused = write.refusal(failed)
                if isinstance(refused, AccessDeniedError):
                    # The first one may have been let in before the right to it was taken away.
                    raise lost from refused
            except StoreError as error:
                # What became of the repetition says nothing of the first one.
                call.writing()
                if not isinstance(error, NotReachableError):
                    raise lost from error
                await _pause()

    async def _write_once(self, call: Call, write: _Write) -> int:
        entries = await self._transact(call, write.transaction)
        if write.deletes:
            return 0
        if not entries:
            raise NotReachableError("the answer is not Consul's: it does not tell what was written")
        return entries[-1].pair.last_index

    async def _look(self, path: str, lost: NotReachableError | None) -> tuple[Entry | None, int]:
        """Read a key to see what became of a write, as soon as a server can be reached again.

        Args:
            path: the key.
            lost: what the write failed with, which is told when the key cannot be read; None when it was applied.
        """
        try:
            return await self._read_entry(path)
        except StoreError:
            if lost is not None:
                raise lost from lost.__cause__
            raise

    async def _read_entry(self, path: str) -> tuple[Entry | None, int]:
        """Read a key; returns it, and the index of the answer."""
        while True:
            try:
                answer = await self._connection.read(kv_target(path, "consistent"))
                with self._connection.understanding(answer):
                    return next(iter(parse_entries(answer)), None), answer.index
            except NotReachableError:
                await _pause()

    def _transaction(self, operations: Sequence[Operation]) -> Transaction:
        return Transaction(operations, self._connection.scope.fields)

    async def _transact(self, call: Call, transaction: Transaction) -> Sequence[Entry]:
        """Send a writing transaction once.

        Raises:
            TxnFailedError: it was refused; the call is not told.
        """
        answer = await self._change(call, "txn?consistent", transaction.body)
        with self._connection.understanding(answer):
            return transaction.parse(answer)

    async def _change(self, call: Call, target: str, body: bytes) -> Answer:
        """Send a change once, and tell the call whether it may have been applied."""
        connection = self._connection
        try:
            return await connection.request("PUT", target, body, patience=connection.patience, on_sending=call.writing)
        except StoreError as error:
            if not error.maybe_applied:
                call.settled()
            raise

    async def _put_large(self, call: Call, path: str, value: bytes, nonce: int, expected: int | None) -> int:
        """Write a value that does not fit into a transaction; three round trips, two to create.

        The write itself is one request, conditional on what was read before: a compare-and-swap at the index
        read, or by the session that holds the key, which is released by it. The server does not say the new
        index, so it is read. If the key was written again in between, an index is returned at which it cannot
        be any more.
        """
        while True:
            condition = "cas=0" if expected == 0 else await self._condition(path, expected)
            lost: NotReachableError | None = None
            try:
                answer = await self._change(call, kv_target(path, f"{condition}&flags={nonce}"), value)
            except NotReachableError as error:
                if not call.maybe_applied:
                    raise
                lost = error
            else:
                if answer.body.strip() != b"true":
                    call.settled()
                    if expected == 0:
                        raise KeyExistsError
                    continue
            entry, index = await self._look(path, lost)
            if entry is not None and entry.flags == nonce:
                return entry.pair.last_index
            if lost is not None:
                raise lost from lost.__cause__
            return index - 1

    async def _condition(self, path: str, expected: int | None) -> str:
        """Return the query parameter by which a plain request replaces just what is there."""
        entry, _ = await self._read_entry(path)
        index = entry.pair.last_index if entry is not None else 0
        if expected and index != expected:
            raise KeyModifiedError
        if entry is None or not entry.session:
            return f"cas={index}"
        if expected:
            raise CallNotSupportedError("a value of this size cannot replace a key with a lifetime on Consul")
        return f"release={entry.session}"

    async def delete_tree(self, call: Call, directory: str, *, guard: Guard | None) -> Removed:
        """Delete a tree in one transaction; see Driver.

        At the store's root, where the reserved subtree is to stay, it takes two requests. The first reads the
        names directly below the root. The transaction then deletes all that begins like one of them, by the
        shortest beginnings that leave the reserved subtree out: mostly one character each. It takes effect at
        one instant, and includes keys created since under the same first characters; others count as created
        afterwards.
        """
        if directory == self.config.prefix:
            return Removed(await self._delete_root(call, guard), exists=False)
        start = start_of(directory)
        deleted = await self._delete_units(call, start, [(start, True)], guard)
        if not deleted:
            call.settled()
        return Removed(deleted, not deleted and await self._is_key(directory))

    async def _delete_root(self, call: Call, guard: Guard | None) -> int:
        start = start_of(self.config.prefix)
        while True:
            replaced = self._connection.tokens_replaced
            names = await self._connection.read(kv_target(start, "keys&separator=/&consistent"))
            with self._connection.understanding(names):
                below = parse_names(names, start)
            units = [(start + unit, whole) for unit, whole in deletion_units(below, f"{RESERVED}/")]
            if units:
                break
            await self._connection.check_access(start)
            if replaced == self._connection.tokens_replaced:
                break
        return await self._delete_units(call, start, units, guard)

    async def _delete_units(
        self, call: Call, start: str, units: Sequence[tuple[str, bool]], guard: Guard | None
    ) -> int:
        """Delete keys, or all that begins in a certain way, in one transaction; return how many there were.

        Args:
            call: told of the write.
            start: what all of them begin with. By it they are read, to be counted, unless it is empty: the server
                takes no empty key.
            units: what is deleted, and whether it is all that begins so.
            guard: as for ``_delete_tree``.
        """
        operations = guarding(guard)
        if units:
            operations += [Operation("get-tree", key) for key in ([start] if start else [unit for unit, _ in units])]
        operations += [Operation("delete-tree" if whole else "delete", unit) for unit, whole in units]
        if not operations:
            return 0
        if len(operations) > MAX_TXN_OPERATIONS:
            raise CallNotSupportedError("the keys have too many first characters for one transaction of Consul")
        try:
            entries = await self._transact(call, self._transaction(operations))
        except TxnFailedError as failed:
            call.settled()
            raise failed.refusal(guard) from None
        starts = tuple(unit for unit, whole in units if whole)
        single = {unit for unit, whole in units if not whole}
        keys = {entry.pair.key for entry in entries}
        return sum(not is_folder(key) and (key in single or key.startswith(starts)) for key in keys)

    # -- lifetimes -------------------------------------------------------------------------------------------

    def new_lease(self, lifetime: Lifetime) -> ConsulLease:
        return new_lease(lifetime)

    async def grant(self, call: Call, lease: ConsulLease) -> None:
        await self._sessions.create(lease)

    async def renew(self, call: Call, lease: ConsulLease) -> bool:
        return await self._sessions.renew(lease)

    async def revoke(self, call: Call, lease: ConsulLease) -> None:
        await self._sessions.destroy(lease)


def _modes(*, consistent: bool) -> Sequence[str]:
    """Return the query parameters of reads of which the first that finds something counts.

    A server that was just started has not read all of its log yet, and does not find what it has.
    """
    return [read_mode(consistent=mode) for mode in ([True] if consistent else [False, True])]


async def _pause() -> None:
    await asyncio.sleep(uniform(_LONGEST_PAUSE / 4, _LONGEST_PAUSE))

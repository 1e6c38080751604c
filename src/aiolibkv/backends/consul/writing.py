"""Writing to Consul, and finding out what became of a write whose answer was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from aiolibkv.backends.consul.connection import Connection
from aiolibkv.backends.consul.encoding import LOCK_FLAGS, Answer, Entry, kv_target, new_nonce, parse_entries
from aiolibkv.backends.consul.failures import TxnFailedError
from aiolibkv.backends.consul.sessions import ConsulLease
from aiolibkv.backends.consul.transactions import Commit, Operation, Transaction
from aiolibkv.errors import (
    AccessDeniedError,
    CallNotSupportedError,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    NotReachableError,
    StoreError,
)
from aiolibkv.store import Acquired, Call, Guard, Removal, Step, Write
from aiolibkv.store.backoff import growing_pauses


class Writer:
    """The writes of a store."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def commit(
        self, call: Call, steps: Sequence[Step], *, lease: ConsulLease | None, guard: Guard | None
    ) -> Sequence[int]:
        """Carry out steps in one transaction; see Driver."""
        nonce = new_nonce()
        commit = self._commit(steps, nonce, lease, guard)
        if not commit.changes:
            return await self._check(commit)
        return await self._certainly(call, commit, lambda entry: entry.flags == nonce)

    async def put(self, call: Call, step: Write, *, lease: ConsulLease | None, guard: Guard | None) -> int:
        """Write a key, which need not fit into a transaction."""
        nonce = new_nonce()
        commit = self._commit([step], nonce, lease, guard)
        if commit.transaction.is_too_large:
            if lease is not None or guard is not None:
                raise CallNotSupportedError("on Consul a value of this size cannot have a ttl, keep_alive or a guard")
            return await self._put_large(call, step.path, step.value, nonce, step.expected)
        return (await self._certainly(call, commit, lambda entry: entry.flags == nonce))[0]

    async def acquire(self, call: Call, path: str, value: bytes, lease: ConsulLease) -> Acquired:
        """Create a lock's key; see Driver.

        Its flags are those by which Consul's own clients know a lock, and refuse other keys; it is recognised by its
        session instead, which holds no other key of this name.
        """
        commit = self._commit([Write(path, value, 0)], LOCK_FLAGS, lease, None)
        if commit.transaction.is_too_large:
            raise CallNotSupportedError("on Consul a lock cannot have a value of this size")
        (index,) = await self._certainly(call, commit, lambda entry: entry.session == lease.session)
        return Acquired(index, index)

    async def release(self, call: Call, path: str, index: int, place: str | None) -> None:
        """Delete a lock's key and its holder's place in one transaction; see Driver.

        When the answer was lost and both are gone, it was done.
        """
        steps = [Removal(path, index)] if place is None else [Removal(path, index), Removal(place)]
        try:
            await self.commit(call, steps, lease=None, guard=None)
        except NotReachableError as lost:
            if not call.maybe_applied:
                raise
            entry, _ = await self._look(path, lost)
            if entry is not None and entry.pair.last_index == index:
                raise
            if place is not None and (await self._look(place, lost))[0] is not None:
                call.settled()
                raise KeyNotFoundError(key=path) from None

    async def transact(self, call: Call, operations: Sequence[Operation], guard: Guard | None) -> Sequence[Entry]:
        """Carry out a transaction of other operations, once.

        Args:
            call: told of it.
            operations: in order.
            guard: the lock that the first of them checks, if it does.
        """
        try:
            return await self._transact(call, Transaction(operations, self._connection.scope.fields))
        except TxnFailedError as failed:
            call.settled()
            raise failed.refusal(guard) or StoreError(f"the server refused: {failed.failures[0].reason}") from None

    def _commit(self, steps: Sequence[Step], flags: int, lease: ConsulLease | None, guard: Guard | None) -> Commit:
        session = None if lease is None else lease.session
        return Commit(steps, flags=flags, session=session, guard=guard, scope=self._connection.scope.fields)

    async def _check(self, commit: Commit) -> Sequence[int]:
        """Carry out a commit that only has conditions: a read."""
        answer = await self._connection.repeatable("PUT", "txn?consistent", commit.transaction.body)
        try:
            with self._connection.understanding(answer):
                commit.transaction.parse(answer)
        except TxnFailedError as failed:
            unmet = commit.unmet(failed)
            if unmet is not None:
                raise commit.refusal(unmet) from None
        return commit.written_at(0)

    async def _certainly(self, call: Call, commit: Commit, is_own: Callable[[Entry], bool]) -> Sequence[int]:
        """Carry out a commit, and find out what became of it when its answer is lost.

        Args:
            call: what is carried out.
            commit: the transaction.
            is_own: tells whether what is at a key was written by it.

        Returns:
            The new index of each step.
        """
        try:
            return await self._write_once(call, commit)
        except TxnFailedError as failed:
            call.settled()
            raise commit.refusal(failed) from None
        except NotReachableError as error:
            if not call.maybe_applied:
                raise
            return await self._resolve(call, commit, is_own, error)

    async def _resolve(
        self, call: Call, commit: Commit, is_own: Callable[[Entry], bool], lost: NotReachableError
    ) -> Sequence[int]:
        """Find out what became of a commit whose answer was lost.

        As long as one of its keys is at the expected index, it was not applied and may be sent again: it cannot be
        applied twice, since that index never comes again. No other commit is repeated; it might be applied now,
        somebody else's after it, and then the first one, late.
        """
        refused: Exception | None = None
        pauses = growing_pauses()
        while True:
            own = await self._own_index(commit, is_own, lost)
            if own is not None:
                return commit.written_at(own)
            if refused is not None:
                call.settled()
                raise refused
            try:
                return await self._write_once(call, commit)
            except TxnFailedError as failed:
                refused = commit.refusal(failed)
                if isinstance(refused, AccessDeniedError):
                    # The first one may have been let in before the right to it was taken away.
                    raise lost from refused
            except StoreError as error:
                # What became of the repetition says nothing of the first one.
                call.writing()
                if not isinstance(error, NotReachableError):
                    raise lost from error
                await asyncio.sleep(next(pauses))

    async def _own_index(self, commit: Commit, is_own: Callable[[Entry], bool], lost: NotReachableError) -> int | None:
        """Return the index of what the commit wrote; None when it certainly was not applied yet.

        Raises:
            NotReachableError: ``lost``, when neither can be known.
        """
        for step in commit.changes:
            entry, _ = await self._look(step.path, lost)
            if entry is not None and is_own(entry):
                return entry.pair.last_index
            if entry is not None and step.expected and entry.pair.last_index == step.expected:
                return None
        raise lost from lost.__cause__

    async def _write_once(self, call: Call, commit: Commit) -> Sequence[int]:
        answer = await self._change(call, "txn?consistent", commit.transaction.body)
        with self._connection.understanding(answer):
            return commit.indexes(commit.transaction.parse(answer))

    async def _transact(self, call: Call, transaction: Transaction) -> Sequence[Entry]:
        answer = await self._change(call, "txn?consistent", transaction.body)
        with self._connection.understanding(answer):
            return transaction.parse(answer)

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
        pauses = growing_pauses()
        while True:
            try:
                answer = await self._connection.read(kv_target(path, "consistent"))
                with self._connection.understanding(answer):
                    return next(iter(parse_entries(answer)), None), answer.index
            except NotReachableError:
                await asyncio.sleep(next(pauses))

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
            raise CallNotSupportedError(
                "on Consul a value of this size cannot replace a key with a lifetime; delete the key first"
            )
        return f"release={entry.session}"

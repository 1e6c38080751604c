"""Writes: what has gathered in a store is one transaction, in which each operation is accepted or refused by itself.

A batch has a number, which the database keeps with what became of it. When an answer is lost, it is asked for; and a
batch that was not carried out by then never will be, though its request may still be on its way.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

from aiolibkv.backends.postgresql.connection import Connections, Link
from aiolibkv.backends.postgresql.failures import is_refusal
from aiolibkv.backends.postgresql.gathering import Gatherer
from aiolibkv.backends.postgresql.schema import Identifiers, Kind
from aiolibkv.backends.postgresql.statements import Statement
from aiolibkv.errors import (
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    LockLostError,
    NotReachableError,
    StoreError,
)
from aiolibkv.store import Call, LeaseLostError, Tasks
from aiolibkv.store.backoff import growing_pauses

_BATCH_OPERATIONS = 500
_BATCH_BYTES = 8 * 1024 * 1024
_RENEWALS_AT_ONCE = 1000
_ID_BITS = 62

_REFUSALS: dict[Kind, Callable[[str], StoreError | LeaseLostError]] = {
    Kind.GUARD: lambda _: LockLostError(),
    Kind.LEASE: lambda _: LeaseLostError(),
    Kind.ABSENT: lambda path: KeyExistsError(key=path),
    Kind.PRESENT: lambda path: KeyNotFoundError(key=path),
    Kind.AT: lambda path: KeyModifiedError(key=path),
    Kind.EMPTY: lambda path: KeyExistsError(key=path),
}


class Instruction(NamedTuple):
    """A step of an operation.

    Attributes:
        kind: what it is.
        path: the key, or the directory of EMPTY and DELETE_TREE.
        value: of WRITE; the path that is spared, of DELETE_TREE.
        number: the index of GUARD and AT; the lease of LEASE, WRITE, BEGIN and END.
        seconds: the ttl of BEGIN, and of a WRITE without a lease.
    """

    kind: Kind
    path: str = ""
    value: bytes | None = None
    number: int | None = None
    seconds: float | None = None


class _Operation:
    """What one caller wants to be done.

    Attributes:
        steps: conditions first.
        size: bytes.
        is_sent: whether it may be carried out.
        is_wanted: whether its caller still waits.
        is_void: whether it certainly was not carried out, and never will be.
    """

    def __init__(self, steps: Sequence[Instruction]) -> None:
        self.steps = steps
        self.size = sum(len(step.value or b"") for step in steps)
        self.is_sent = False
        self.is_wanted = True
        self.is_void = False


class _Outcome(NamedTuple):
    """What became of an operation: the step that was refused, if one was, and a number."""

    refused: Instruction | None
    number: int


_NOT_SENT = _Outcome(None, 0)
"""Of an operation whose caller had given up; nobody asks."""


def new_id() -> int:
    """Return an identifier that nobody else has."""
    return secrets.randbits(_ID_BITS) + 1


class Writer:
    """The writing side of one store."""

    def __init__(self, names: Identifiers, connections: Connections, tasks: Tasks) -> None:
        """Make a writer; nothing is sent."""
        self._connections = connections
        self._id = new_id()
        self._batch = 0
        # A sweep may come between a batch and the question what became of it, so it is another writer.
        self._sweeper_id = new_id()
        self._sweep = 0
        # Both lock the row of the state, so they would only wait for each other, with a connection each.
        self._turn = asyncio.Lock()
        self._apply = Statement(f"SELECT {names.apply}($1, $2, $3, $4, $5, $6, $7, $8)", "a")
        self._resolve = Statement(f"SELECT {names.resolve}($1, $2)", "a")
        self._renew = Statement(f"SELECT {names.renew}($1)", "i")
        self._operations = Gatherer(
            tasks,
            self._carry_out,
            most=_BATCH_OPERATIONS,
            size=lambda operation: operation.size,
            most_bytes=_BATCH_BYTES,
        )
        self._renewals = Gatherer(tasks, self._renew_all, most=_RENEWALS_AT_ONCE)

    async def prepare(self, link: Link) -> None:
        """Have a new connection ready for writes, which then are one round trip each."""
        await link.prepare(self._apply)

    async def write(self, call: Call, steps: Sequence[Instruction]) -> int:
        """Carry out the steps of an operation in one transaction, or none.

        Args:
            call: told of the write.
            steps: conditions first.

        Returns:
            The index of what was written, or how many keys DELETE_TREE has deleted.

        Raises:
            StoreError: a condition does not hold; see ``Driver.commit``.
            LeaseLostError: likewise.
        """
        operation = _Operation(steps)
        call.writing()
        try:
            refused, number = await self._operations.ask(operation)
        except asyncio.CancelledError:
            if not operation.is_sent:
                call.settled()
            raise
        except StoreError:
            if operation.is_void:
                call.settled()
            raise
        finally:
            operation.is_wanted = False
        if refused is not None:
            call.settled()
            raise _REFUSALS[refused.kind](refused.path)
        return number

    async def renew(self, lease: int) -> bool:
        """Renew a lease; False when it is over."""
        return await self._renewals.ask(lease)

    async def sweep(self) -> None:
        """Delete what has expired."""
        async with self._turn, self._connections.borrow() as link:
            self._sweep += 1
            await self._send(link, self._sweeper_id, self._sweep, ())

    async def _renew_all(self, leases: Sequence[int]) -> Sequence[bool]:
        async with self._connections.borrow() as link:
            renewed = {lease for (lease,) in await link.rows(self._renew, list(leases))}
        return [lease in renewed for lease in leases]

    async def _carry_out(self, operations: Sequence[_Operation]) -> Sequence[_Outcome | StoreError]:
        try:
            return await self._commit(operations)
        except StoreError as error:
            if len(operations) == 1 or isinstance(error, NotReachableError) or not operations[0].is_void:
                raise
        # One of them is too much for the server, or all of them together are.
        return [await self._carry_out_alone(operation) for operation in operations]

    async def _carry_out_alone(self, operation: _Operation) -> _Outcome | StoreError:
        try:
            return (await self._commit([operation]))[0]
        except StoreError as error:
            return error

    async def _commit(self, operations: Sequence[_Operation]) -> Sequence[_Outcome]:
        """Carry out a batch, and find out what became of it when the answer is lost."""
        self._batch += 1
        batch = self._batch
        sent: Sequence[_Operation] = ()
        try:
            async with self._turn, self._connections.borrow() as link:
                # Whoever gave up while this waited was told that nothing was written.
                sent = [operation for operation in operations if operation.is_wanted]
                for operation in sent:
                    operation.is_sent, operation.is_void = True, False
                numbers = await self._send(link, self._id, batch, sent) if sent else ()
        except StoreError as error:
            if not sent or (error.__cause__ is not None and is_refusal(error.__cause__)):
                _make_void(operations)
                raise
            numbers = await self._find_out(batch, sent, error)
        if numbers is None:
            _make_void(operations)
            raise NotReachableError("the connection broke before the write")
        steps = [step for operation in sent for step in operation.steps]
        outcomes = {
            operation: _Outcome(steps[refused - 1] if refused else None, number)
            for operation, refused, number in zip(sent, numbers[::2], numbers[1::2], strict=True)
        }
        return [outcomes.get(operation, _NOT_SENT) for operation in operations]

    async def _send(
        self, link: Link, writer: int, batch: int, operations: Sequence[_Operation]
    ) -> Sequence[int] | None:
        rows = [(at, *step) for at, operation in enumerate(operations, 1) for step in operation.steps]
        columns = [list(column) for column in zip(*rows, strict=True)] or [[]] * 6
        return _numbers(await link.rows(self._apply, writer, batch, *columns))

    async def _find_out(self, batch: int, operations: Sequence[_Operation], error: StoreError) -> Sequence[int] | None:
        """Return what became of a batch, None if nothing; raise the error when nobody wants to know any more."""
        breaks = growing_pauses()
        while any(operation.is_wanted for operation in operations):
            try:
                async with self._turn, self._connections.borrow() as link:
                    return _numbers(await link.rows(self._resolve, self._id, batch))
            except NotReachableError:
                await asyncio.sleep(next(breaks))
        raise error


def _numbers(rows: Sequence[Sequence[Sequence[int] | None]]) -> Sequence[int] | None:
    return rows[0][0]


def _make_void(operations: Sequence[_Operation]) -> None:
    for operation in operations:
        operation.is_void = True

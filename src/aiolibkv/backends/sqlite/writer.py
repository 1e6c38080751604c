"""The thread that writes: the operations of many tasks in one transaction.

The event loop collects operations and hands them over together; the thread takes what has gathered when it has the
write lock. Each operation is refused or carried out by itself, but they are made durable by one commit.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from aiolibkv.backends.sqlite.clock import Clock
from aiolibkv.backends.sqlite.failures import meaning, primary_code
from aiolibkv.backends.sqlite.files import Files
from aiolibkv.backends.sqlite.schema import Tables, open_for_writing
from aiolibkv.backends.sqlite.transaction import Transaction
from aiolibkv.errors import StoreClosedError, StoreError
from aiolibkv.store import Call, LeaseLost

T = TypeVar("T")
_log = logging.getLogger("aiolibkv")

_BATCH_OPERATIONS = 500
_BATCH_BYTES = 8 * 1024 * 1024
_PATIENCE = 1.0
"""Seconds for the write lock. Then those who wait are told what is in the way; they try again until their time ends."""
_CLOSING_PATIENCE = 0.3


class _Operation:
    """One write of one task."""

    __slots__ = ("apply", "certain", "claimed", "future", "size", "withdrawn")

    def __init__(self, apply: Callable[[Transaction], Any], size: int, future: asyncio.Future[Any]) -> None:
        self.apply = apply
        self.size = size
        self.future = future
        self.claimed = False
        self.withdrawn = False
        self.certain = False


class _Outcome(NamedTuple):
    operation: _Operation
    result: Any
    error: Exception | None
    certain: bool
    """Whether an error means that nothing was written."""


class Writer:
    """The writing side of one store."""

    def __init__(
        self, files: Files, tables: Tables, clock: Clock, durability: str, written: Callable[[], None]
    ) -> None:
        """Make a writer; ``start`` starts its thread.

        Args:
            files: the database and the files beside it.
            tables: those to write.
            clock: set when the database is opened.
            durability: what SQLite calls "synchronous".
            written: called in the loop after each commit that changed keys.
        """
        self._files = files
        self._tables = tables
        self._clock = clock
        self._durability = durability
        self._written = written
        self._loop = asyncio.get_running_loop()
        self._collected: list[_Operation] = []
        self._ready = threading.Condition()
        self._queue: deque[_Operation] = deque()
        self._stopping = False
        self._to_close: list[sqlite3.Connection] = []
        self._connection: sqlite3.Connection | None = None
        self._transaction: Transaction | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread: threading.Thread | None = None

    async def start(self, patience: float) -> None:
        """Open the database in the thread.

        Args:
            patience: seconds to wait for the write lock.

        Raises:
            StoreError: see ``open_for_writing``.
            NotReachableError: others had the write lock all the time.
        """
        opened: asyncio.Future[None] = self._loop.create_future()
        # A daemon: an interpreter that ends with a store left open is not held up; what was not committed never was.
        self._thread = threading.Thread(
            target=self._work, args=(opened, patience), name=f"aiolibkv-{self._files.path.name}", daemon=True
        )
        self._thread.start()
        await opened

    async def write(self, call: Call, apply: Callable[[Transaction], T], size: int = 0) -> T:
        """Carry out a step of a transaction and return what it returns, once it is durable.

        Args:
            call: told of the write.
            apply: run in the thread, perhaps a second time when the first transaction was rolled back.
            size: bytes that it writes, about.
        """
        if self._stopping:
            raise StoreClosedError
        operation = _Operation(apply, size, self._loop.create_future())
        call.writing()
        if not self._collected:
            self._loop.call_soon(self._hand_over)
        self._collected.append(operation)
        try:
            result: T = await operation.future
        except asyncio.CancelledError:
            if self._withdraw(operation):
                call.settled()
            raise
        except (StoreError, LeaseLost):
            if operation.certain:
                call.settled()
            raise
        return result

    def own(self) -> str:
        """Return the name of this store as an owner of sessions; called in the thread."""
        return self._files.own()

    async def stop(self, connections: Iterable[sqlite3.Connection]) -> None:
        """End the thread, having closed the database; what is not begun is refused.

        Args:
            connections: further ones to close, used by nobody any more.
        """
        if self._thread is None:
            for connection in connections:
                connection.close()
            return
        self._hand_over()
        with self._ready:
            self._to_close.extend(connections)
            self._stopping = True
            self._ready.notify()
        done, _ = await asyncio.wait({self._ended}, timeout=_CLOSING_PATIENCE)
        if not done and self._connection is not None:
            with suppress(sqlite3.ProgrammingError):
                self._connection.interrupt()
            await asyncio.wait({self._ended})
        self._thread.join()

    # -- in the loop -----------------------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        if self._collected:
            with self._ready:
                self._queue.extend(self._collected)
                self._ready.notify()
            self._collected = []

    def _withdraw(self, operation: _Operation) -> bool:
        """Take an operation back; False when the thread has begun it."""
        with self._ready:
            operation.withdrawn = not operation.claimed
        return operation.withdrawn

    def _deliver(self, outcomes: list[_Outcome], *, changed: bool) -> None:
        for operation, result, error, certain in outcomes:
            if operation.future.done():
                continue
            if error is None:
                operation.future.set_result(result)
            else:
                operation.certain = certain
                operation.future.set_exception(error)
        if changed:
            self._written()

    # -- in the thread ---------------------------------------------------------------------------------------------

    def _work(self, opened: asyncio.Future[None], patience: float) -> None:
        try:
            failure = self._open(patience)
            self._post(partial(_resolve, opened, failure))
            while failure is None and self._wait():
                self._round()
        finally:
            self._close()
            self._post(partial(_resolve, self._ended, None))

    def _open(self, patience: float) -> Exception | None:
        """Open the database, and bury those who died since it was last looked at."""
        try:
            self._files.write_lock.acquire(patience, lambda: self._stopping)
            try:
                self._connection = open_for_writing(self._files.path, self._tables, self._durability)
                self._files.identify()
                self._clock.set(self._connection)
                self._transaction = Transaction(self._connection, self._tables)
                self._bury(self._transaction)
            finally:
                self._files.write_lock.release()
        except StoreError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever it is, who enters the store is told
            return meaning(error, self._files.path)
        return None

    def _bury(self, transaction: Transaction) -> None:
        graves = [grave for owner in self._files.owners() if (grave := self._files.dead(owner)) is not None]
        changed = False
        try:
            transaction.begin()
            transaction.expire(self._clock.now())
            transaction.end_sessions_of(grave.name for grave in graves)
            changed = transaction.commit()
            for grave in graves:
                grave.remove()
        except sqlite3.Error as error:
            # As on a full disk: what is there can still be read, and this is tried again later.
            transaction.roll_back()
            _log.debug("what dead owners had is still there: %s", error)
        finally:
            for grave in graves:
                grave.close()
        if changed:
            self._files.notify()

    def _wait(self) -> bool:
        """Wait for operations; False when the thread is to end."""
        with self._ready:
            while not self._queue and not self._stopping:
                self._ready.wait()
            return not self._stopping

    def _round(self) -> None:
        """Carry out what has gathered by the time that the write lock is there."""
        changed = False
        try:
            self._files.write_lock.acquire(_PATIENCE, lambda: self._stopping)
        except (StoreError, OSError) as error:
            outcomes = self._all_failed(self._claim(), error)
        else:
            try:
                outcomes, changed = self._commit(None)
            finally:
                self._files.write_lock.release()
        if changed:
            self._files.notify()
        self._post(partial(self._deliver, outcomes, changed=changed))

    def _claim(self) -> list[_Operation]:
        batch: list[_Operation] = []
        size = 0
        with self._ready:
            while self._queue and len(batch) < _BATCH_OPERATIONS and size < _BATCH_BYTES:
                operation = self._queue.popleft()
                if not operation.withdrawn:
                    operation.claimed = True
                    size += operation.size
                    batch.append(operation)
        return batch

    def _commit(self, batch: list[_Operation] | None) -> tuple[list[_Outcome], bool]:
        """Carry out operations in one transaction; when it fails, each in one of its own.

        Args:
            batch: None for what has gathered once the transaction has begun; until then it can be taken back.
        """
        transaction = self._transaction
        assert transaction is not None, "open"
        committing = False
        try:
            self._files.check_identity()
            transaction.begin()
            batch = self._claim() if batch is None else batch
            # The clock is read when all of them are there: who has seen a key expire, and then writes, finds it gone.
            transaction.expire(self._clock.now())
            outcomes = [_attempt(operation, transaction) for operation in batch]
            committing = True
            return outcomes, transaction.commit()
        except Exception as error:  # noqa: BLE001 - whatever it is, each caller is told
            with suppress(sqlite3.Error):
                transaction.roll_back()
            # A commit for which there was no room is known to have failed; after any other failure of a commit the
            # next recovery might find it complete.
            certain = not committing or primary_code(error) == sqlite3.SQLITE_FULL
            if batch is None or len(batch) == 1 or not certain or self._stopping:
                return self._all_failed(self._claim() if batch is None else batch, error, certain=certain), False
        singly = [self._commit([operation]) for operation in batch]
        return [outcome for part, _ in singly for outcome in part], any(changed for _, changed in singly)

    def _all_failed(self, batch: list[_Operation], error: Exception, *, certain: bool = True) -> list[_Outcome]:
        return [_Outcome(operation, None, self._failure(error, certain=certain), certain) for operation in batch]

    def _failure(self, error: Exception, *, certain: bool) -> StoreError:
        """Return an error of one's own for each caller: where it happened is written into it."""
        failure = type(error)(error.message) if isinstance(error, StoreError) else meaning(error, self._files.path)
        failure.maybe_applied = not certain
        return failure

    def _close(self) -> None:
        with self._ready:
            self._stopping = True
            left = [operation for operation in self._queue if not operation.withdrawn]
            self._queue.clear()
        self._post(partial(self._deliver, self._all_failed(left, StoreClosedError()), changed=False))
        locked = False
        with suppress(StoreError, OSError):
            self._files.write_lock.acquire(_CLOSING_PATIENCE, lambda: False)
            locked = True
        # Without the lock: who has it has the database open, so that no close of ours is the last, with its checkpoint.
        try:
            self._files.disown(remove=not self._owns_sessions())
            for connection in (*self._to_close, self._connection):
                if connection is not None:
                    with suppress(sqlite3.Error):
                        connection.close()
        finally:
            if locked:
                self._files.write_lock.release()
            self._files.close()

    def _owns_sessions(self) -> bool:
        if self._transaction is None or not self._files.owner_name:
            return False
        try:
            return self._transaction.has_sessions(self._files.owner_name)
        except sqlite3.Error:
            return True

    def _post(self, callback: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop was closed with the store open
            self._loop.call_soon_threadsafe(callback)


def _attempt(operation: _Operation, transaction: Transaction) -> _Outcome:
    try:
        return _Outcome(operation, operation.apply(transaction), None, certain=True)
    except (StoreError, LeaseLost) as refusal:
        return _Outcome(operation, None, refusal, certain=True)


def _resolve(future: asyncio.Future[None], failure: Exception | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)

"""The thread that writes: the operations of many tasks in one transaction.

The event loop collects operations and hands them over together; the thread takes what has gathered when it has the
write lock. Each operation is refused or carried out by itself, but they are made durable by one commit.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from aiolibkv.backends.sqlite.clock import Clock
from aiolibkv.backends.sqlite.failures import meaning, primary_code
from aiolibkv.backends.sqlite.files import Files, ReplacedError
from aiolibkv.backends.sqlite.schema import Tables, open_for_writing
from aiolibkv.backends.sqlite.shrinking import Shrinking
from aiolibkv.backends.sqlite.transaction import Transaction
from aiolibkv.errors import StoreClosedError, StoreError
from aiolibkv.store import Call, LeaseLostError

T = TypeVar("T")
_log = logging.getLogger("aiolibkv")

_BATCH_OPERATIONS = 500
_BATCH_BYTES = 8 * 1024 * 1024
_PATIENCE = 1.0
"""Seconds for the write lock. Then those who wait are told what is in the way; they try again until their time ends."""
_CLOSING_PATIENCE = 0.3


class _Operation:
    """One write of one task."""

    __slots__ = ("apply", "certain", "future", "is_taken", "size")

    def __init__(self, apply: Callable[[Transaction], Any], size: int, future: asyncio.Future[Any]) -> None:
        self.apply = apply
        self.size = size
        self.future = future
        self.is_taken = threading.Lock()
        self.certain = False

    def take(self) -> bool:
        """Have it carried out or, in the other thread, withdrawn; only one of both can be."""
        return self.is_taken.acquire(blocking=False)


class _Outcome(NamedTuple):
    operation: _Operation
    result: Any
    error: Exception | None
    certain: bool
    """Whether an error means that nothing was written."""


class Writer:
    """The writing side of one store."""

    def __init__(
        self,
        files: Files,
        tables: Tables,
        clock: Clock,
        durability: str,
        *,
        written: Callable[[], None],
        replaced: Callable[[ReplacedError], None],
    ) -> None:
        """Make a writer; ``start`` starts its thread.

        Args:
            files: the database and the files beside it.
            tables: those to write.
            clock: set when the database is opened.
            durability: what SQLite calls "synchronous".
            written: called in the loop after each commit that changed keys.
            replaced: called in the loop when the files are found to be others.
        """
        self._files = files
        self._tables = tables
        self._clock = clock
        self._durability = durability
        self._written = written
        self._replaced = replaced
        self._loop = asyncio.get_running_loop()
        self._collected: list[_Operation] = []
        self._queue: SimpleQueue[list[_Operation]] = SimpleQueue()
        self._left: list[_Operation] = []
        self._stopping: StoreError | None = None
        self._to_close: list[sqlite3.Connection] = []
        self._connection: sqlite3.Connection | None = None
        self._transaction: Transaction | None = None
        self._shrinking: Shrinking | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread: threading.Thread | None = None

    async def start(self, patience: float, former: str) -> None:
        """Open the database in the thread.

        Args:
            patience: seconds to wait for the write lock.
            former: the owner that this store was when it had other files open, "" when it had not.

        Raises:
            StoreError: see ``open_for_writing``.
            NotReachableError: others had the write lock all the time.
        """
        opened: asyncio.Future[None] = self._loop.create_future()
        # A daemon: an interpreter that ends with a store left open is not held up; what was not committed never was.
        self._thread = threading.Thread(
            target=self._work, args=(opened, patience, former), name=f"aiolibkv-{self._files.path.name}", daemon=True
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
        if self._stopping is not None:
            raise self._failure(self._stopping, certain=True)
        operation = _Operation(apply, size, self._loop.create_future())
        call.writing()
        if not self._collected:
            self._loop.call_soon(self._hand_over)
        self._collected.append(operation)
        try:
            result: T = await operation.future
        except asyncio.CancelledError:
            if operation.take() or operation.certain:
                call.settled()
            raise
        except (StoreError, LeaseLostError):
            if operation.certain:
                call.settled()
            raise
        return result

    def own(self) -> str:
        """Return the name of this store as an owner of sessions; called in the thread."""
        return self._files.own()

    async def stop(self, connections: Iterable[sqlite3.Connection], reason: StoreError) -> None:
        """End the thread, having closed the database; what is not begun is refused.

        Args:
            connections: further ones to close, used by nobody any more.
            reason: why what is not begun is refused.
        """
        if self._thread is None:
            for connection in connections:
                connection.close()
            return
        self._to_close.extend(connections)
        self._stopping = self._stopping or reason
        self._queue.put(self._collected)
        self._collected = []
        done, _ = await asyncio.wait({self._ended}, timeout=_CLOSING_PATIENCE)
        if not done and self._connection is not None:
            with suppress(sqlite3.ProgrammingError):
                self._connection.interrupt()
            await asyncio.wait({self._ended})
        self._thread.join()

    # -- in the loop -----------------------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        if self._collected:
            self._queue.put(self._collected)
            self._collected = []

    def _deliver(self, outcomes: list[_Outcome], *, changed: bool) -> None:
        for operation, result, error, _ in outcomes:
            if operation.future.done():
                continue
            if error is None:
                operation.future.set_result(result)
            else:
                operation.future.set_exception(error)
        if changed:
            self._written()

    # -- in the thread ---------------------------------------------------------------------------------------------

    def _work(self, opened: asyncio.Future[None], patience: float, former: str) -> None:
        try:
            failure = self._open(patience, former)
            self._post(partial(_resolve, opened, failure))
            while failure is None and self._wait():
                self._round()
        finally:
            self._close()
            self._post(partial(_resolve, self._ended, None))

    def _open(self, patience: float, former: str) -> Exception | None:
        """Open the database, and bury those who died since it was last looked at."""
        try:
            self._files.write_lock.acquire(patience, self._is_stopping)
            try:
                self._files.enter()
                self._connection = open_for_writing(self._files.path, self._tables, self._durability)
                self._files.identify()
                self._clock.set(self._connection)
                self._transaction = Transaction(self._connection, self._tables)
                self._shrinking = Shrinking(self._connection, self._files.gate)
                self._bury(self._transaction, former)
            finally:
                self._files.write_lock.release()
        except StoreError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever it is, who enters the store is told
            return meaning(error, self._files.path)
        return None

    def _bury(self, transaction: Transaction, former: str) -> None:
        graves = [grave for owner in self._files.owners() if (grave := self._files.dead(owner)) is not None]
        try:
            transaction.begin()
            transaction.look(self._clock.now(), self._files.lost_rev)
            transaction.end_sessions_of([former, *(grave.name for grave in graves)])
            self._files.intend(transaction.rev)
            transaction.commit()
            self._files.note(transaction.rev)
            for grave in graves:
                grave.remove()
        except sqlite3.Error as error:
            # As on a full disk: what is there can still be read, and this is tried again later.
            transaction.roll_back()
            _log.debug("what dead owners had is still there: %s", error)
        finally:
            for grave in graves:
                grave.close()

    def _is_stopping(self) -> bool:
        return self._stopping is not None

    def _wait(self) -> bool:
        """Wait for operations; False when the thread is to end."""
        assert self._shrinking is not None, "open"
        while not self._left and self._stopping is None:
            try:
                self._left = self._queue.get(timeout=self._shrinking.interval)
            except Empty:
                self._shrink(self._shrinking)
        return self._stopping is None

    def _shrink(self, shrinking: Shrinking) -> None:
        with suppress(StoreError, OSError):
            self._files.write_lock.acquire(_PATIENCE, self._is_stopping)
            try:
                self._files.check()
                shrinking.look(self._files.log_size())
            finally:
                self._files.write_lock.release()

    def _round(self) -> None:
        """Carry out what has gathered by the time that the write lock is there."""
        assert self._shrinking is not None, "open"
        changed = False
        try:
            self._files.write_lock.acquire(_PATIENCE, self._is_stopping)
        except (StoreError, OSError) as error:
            outcomes = self._all_failed(self._claim(), error)
        else:
            try:
                outcomes, changed = self._commit(None)
                self._shrinking.look(self._files.log_size())
            finally:
                self._files.write_lock.release()
        self._tell(outcomes, changed=changed)

    def _tell(self, outcomes: list[_Outcome], *, changed: bool) -> None:
        # Noted at once, for those whose time ends before the loop hears of it.
        for operation, _, error, certain in outcomes:
            operation.certain = error is not None and certain
        self._post(partial(self._deliver, outcomes, changed=changed))

    def _claim(self) -> list[_Operation]:
        gathered = self._left
        with suppress(Empty):
            while True:
                gathered += self._queue.get_nowait()
        batch: list[_Operation] = []
        size = taken = 0
        for operation in gathered:
            if len(batch) >= _BATCH_OPERATIONS or size >= _BATCH_BYTES:
                break
            taken += 1
            if operation.take():
                size += operation.size
                batch.append(operation)
        self._left = gathered[taken:]
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
            self._files.check()
            transaction.begin()
            batch = self._claim() if batch is None else batch
            # The clock is read when all of them are there: who has seen a key expire, and then writes, finds it gone.
            transaction.look(self._clock.now(), self._files.lost_rev)
            outcomes = [_attempt(operation, transaction) for operation in batch]
            changed = transaction.has_changed
            if changed:
                self._files.intend(transaction.rev)
            committing = True
            transaction.commit()
        except Exception as error:  # noqa: BLE001 - whatever it is, each caller is told
            with suppress(sqlite3.Error):
                transaction.roll_back()
            if isinstance(error, ReplacedError):
                self._post(partial(self._replaced, error))
            # A commit for which there was no room is known to have failed; after any other failure of a commit the
            # next recovery might find it complete.
            certain = not committing or primary_code(error) == sqlite3.SQLITE_FULL
            if batch is None or len(batch) == 1 or not certain or self._stopping is not None:
                return self._all_failed(self._claim() if batch is None else batch, error, certain=certain), False
            singly = [self._commit([operation]) for operation in batch]
            return [outcome for part, _ in singly for outcome in part], any(changed for _, changed in singly)
        if changed:
            self._files.note(transaction.rev)
        return outcomes, changed

    def _all_failed(self, batch: list[_Operation], error: Exception, *, certain: bool = True) -> list[_Outcome]:
        return [_Outcome(operation, None, self._failure(error, certain=certain), certain) for operation in batch]

    def _failure(self, error: Exception, *, certain: bool) -> StoreError:
        """Return an error of one's own for each caller: where it happened is written into it."""
        failure = type(error)(error.message) if isinstance(error, StoreError) else meaning(error, self._files.path)
        failure.maybe_applied = not certain
        return failure

    def _close(self) -> None:
        reason = self._stopping = self._stopping or StoreClosedError()
        left = []
        while self._left or not self._queue.empty():
            left += self._claim()
        self._tell(self._all_failed(left, reason), changed=False)
        locked = False
        if self._connection is not None:
            with suppress(StoreError, OSError):
                self._files.write_lock.acquire(_CLOSING_PATIENCE, lambda: False)
                locked = True
        try:
            self._files.disown(remove=not self._owns_sessions())
            for connection in self._to_close:
                with suppress(sqlite3.Error):
                    connection.close()
            # Without the lock: who has it has the database open, so that no close of ours is the last one. Nor may it
            # be when the files are others: the last close removes what is called -wal, whoever's it is.
            if locked and self._is_intact():
                self._files.leave()
            if self._connection is not None:
                with suppress(sqlite3.Error):
                    self._connection.close()
        finally:
            if locked:
                self._files.write_lock.release()
            self._files.close()

    def _is_intact(self) -> bool:
        """Tell whether the files are those that were opened; what was in a -wal that was removed is saved if it can."""
        try:
            self._files.check()
        except (ReplacedError, OSError):
            if self._connection is not None and self._files.is_log_lost():
                with suppress(sqlite3.Error):
                    self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            return False
        return True

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
    except (StoreError, LeaseLostError) as refusal:
        return _Outcome(operation, None, refusal, certain=True)


def _resolve(future: asyncio.Future[None], failure: Exception | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)

"""The lock of every backend: a key created under a session, and a line (a FIFO queue) of waiters.

A waiter has a *place* in the line: a key below the reserved subtree, under the waiter's session. It watches the place
before its own; the first in the line watches the lock's key. So a release wakes one waiter. The holder keeps its place:
when it dies, the server deletes the key and the place together; a release deletes both in one transaction and keeps the
session for the next acquisition. A lock that is free, and that no other task of the store waits for, is acquired in one
transaction, without a place.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from types import TracebackType
from typing import TypeVar
from uuid import uuid4
from weakref import WeakValueDictionary

from aiolibkv.errors import (
    AccessDeniedError,
    CannotLockError,
    KeyExistsError,
    LockLostError,
    NotReachableError,
    RequestTimeoutError,
    StoreClosedError,
    StoreError,
)
from aiolibkv.events import LockAcquired, LockLost
from aiolibkv.store.backoff import growing_pauses
from aiolibkv.store.calls import Call, Calls
from aiolibkv.store.driver import LeaseLostError
from aiolibkv.store.leases import SHORTEST_TTL, Session, Sessions, clock, retry
from aiolibkv.store.tasks import Tasks, wait_shielded
from aiolibkv.store.watches import Watches

T = TypeVar("T")

_RELEASING_TIME = 0.7
"""Seconds that a caller waits for a release; it goes on behind it."""
_TICK = 1.0
"""Seconds between two looks at the clock: timers stand still while the machine sleeps."""

_log = logging.getLogger("aiolibkv")


class Mutex:
    """A FIFO mutex among the tasks of one store: only its owner contends for the lock at the server.

    Attributes:
        is_taken: whether a task owns it.
        is_held: whether its owner holds the lock and has not begun to release it.
    """

    def __init__(self) -> None:
        self.is_held: bool = False
        self.is_taken: bool = False
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._observers: set[asyncio.Future[None]] = set()

    async def take(self) -> None:
        """Wait for it."""
        if not self.is_taken:
            self.is_taken = True
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self.release()
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def hold(self) -> None:
        """Note that its owner holds the lock."""
        self.is_held = True
        self._tell()

    def release(self) -> None:
        """Give it to the next waiter."""
        self.is_held = self.is_taken = False
        while self._waiters and not self.is_taken:
            waiter = self._waiters.popleft()
            # One that was cancelled a moment ago is still here until its task runs.
            if not waiter.done():
                waiter.set_result(None)
                self.is_taken = True
        self._tell()

    def _tell(self) -> None:
        for observer in self._observers:
            if not observer.done():
                observer.set_result(None)

    async def wait_changed(self) -> None:
        """Wait until its owner holds the lock, or releases the mutex."""
        observer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._observers.add(observer)
        try:
            await observer
        finally:
            self._observers.discard(observer)


class Locks:
    """What the locks of one store share."""

    def __init__(self, calls: Calls, sessions: Sessions, watches: Watches) -> None:
        self.calls = calls
        self.sessions = sessions
        self.watches = watches
        self.tasks: Tasks = calls.new_tasks()
        self._held: set[StoreHeldLock] = set()
        self._mutexes: WeakValueDictionary[str, Mutex] = WeakValueDictionary()
        self._ticking: asyncio.TimerHandle | None = None
        self._told_ttls: set[tuple[float, float]] = set()

    def mutex(self, path: str) -> Mutex:
        """Return the mutex of a key."""
        return self._mutexes.setdefault(path, Mutex())

    def add(self, held: StoreHeldLock) -> None:
        """Check a held lock at each tick."""
        self._held.add(held)
        if self._ticking is None:
            self._ticking = self.calls.call_later(_TICK, self._tick)

    def discard(self, held: StoreHeldLock) -> None:
        """Forget a lock that is not held any more."""
        self._held.discard(held)

    def tell_ttl(self, path: str, asked: float, agreed: float) -> None:
        """Log, once for each pair of times, that the server gives another ttl than was asked for."""
        if asked != agreed and (asked, agreed) not in self._told_ttls:
            self._told_ttls.add((asked, agreed))
            name = self.calls.driver.name
            _log.info(
                "%s: the server keeps locks of %g s, such as %r, for %g s",
                name,
                asked,
                self.calls.paths.name(path),
                agreed,
            )

    def lose_all(self) -> None:
        """Count every held lock as lost, because the store is closed."""
        for held in tuple(self._held):
            held.lose(None)

    async def close(self) -> None:
        """End the tasks and the timer of the held locks."""
        if self._ticking is not None:
            self._ticking.cancel()
        await self.tasks.close()

    def _tick(self) -> None:
        for held in tuple(self._held):
            held.check()
        self._ticking = self.calls.call_later(_TICK, self._tick) if self._held else None


class StoreHeldLock:
    """One acquisition; see ``aiolibkv.HeldLock``."""

    def __init__(
        self,
        locks: Locks,
        path: str,
        *,
        value: bytes,
        index: int,
        token: int,
        session: Session,
        ttl: float,
        place: str | None,
        mutex: Mutex,
    ) -> None:
        """Begin to watch a lock that was just acquired.

        Args:
            locks: of the store through which it was acquired.
            path: the lock's key.
            value: what was written there.
            index: the index of that, which is the fencing token.
            token: what the driver checks a guard against.
            session: the session that the key is under.
            ttl: of the session, as the caller gave it.
            place: the holder's place in the line, under the same session; None when it has none.
            mutex: the store's mutex for this key, released when the lock is not held any more.
        """
        self.calls: Calls = locks.calls
        self.path = path
        self.key: str = locks.calls.paths.name(path)
        self.value = value
        self.fencing_token = index
        self.token = token
        self.on_lost: Callable[[], None] | None = None
        self._locks = locks
        self._wanted_ttl = ttl
        self._session = session
        self._place = place
        self._mutex = mutex
        self._over = asyncio.Event()
        self._is_over = False
        mutex.hold()
        session.on_lost = lambda: self.lose("the server does not know its lease any more")
        session.on_agreed = self._restart_timer
        locks.add(self)
        self._timer = self._set_timer()
        self._watching = locks.tasks.start(self._watch())

    @property
    def ttl(self) -> float:
        """Seconds from a renewal to the lease's end, as agreed with the server last."""
        return self._session.lease.ttl

    @property
    def freed_within(self) -> float:
        """Seconds after the last renewal within which a dead holder's lock is free."""
        return self._session.lease.ttl + self._session.lease.overshoot

    def __repr__(self) -> str:
        return f"<HeldLock {self.key!r}, {'held' if self.is_held else 'not held'}, token {self.fencing_token}>"

    @property
    def is_held(self) -> bool:
        """Tell whether the lock is still held, by the holder's own clock; in any thread."""
        return not self._is_over and self._session.is_good

    async def wait_lost(self) -> None:
        """Return when the lock is not held any more."""
        self.calls.check_home()
        await self._over.wait()

    async def release(self) -> None:
        """Free the lock if it is held, also when the caller is cancelled; do not wait long for a slow server."""
        if not self._is_over:
            self._end()
            await wait_shielded(self._locks.tasks.start(self._free()), _RELEASING_TIME)

    def lose(self, reason: str | None) -> None:
        """Count the lock as lost; the log and the listener are told the reason, if there is one."""
        if self._is_over:
            return
        self._end()
        if reason is not None:
            _log.warning("%s: the lock %r is lost: %s", self.calls.driver.name, self.key, reason)
            self.calls.tell(LockLost, self.key, reason)
        self._mutex.release()
        self._locks.sessions.end(self._session)
        if self.on_lost is not None:
            self.on_lost()

    def check(self) -> None:
        """Count the lock as lost when its time is over."""
        if not self._is_over and not self._session.is_good:
            self.lose("it was not renewed in time")

    def _end(self) -> None:
        self._is_over = True
        self._over.set()
        self._locks.discard(self)
        self._timer.cancel()
        self._watching.cancel()
        self._mutex.is_held = False

    async def _free(self) -> None:
        """Delete the key and the place; if that fails, revoke the session, which deletes them too."""
        sessions, session = self._locks.sessions, self._session
        try:
            await self.calls.run(
                lambda call: self.calls.driver.release(call, self.path, self.fencing_token, self._place, session.lease),
                self.path,
            )
        except BaseException as error:
            if isinstance(error, StoreError | LeaseLostError):
                _log.debug("%s: a lock is freed with its session: %s", self.calls.driver.name, error)
                await sessions.end(session)
                return
            sessions.end(session)
            raise
        else:
            sessions.give_back(self._wanted_ttl, session)
        finally:
            self._mutex.release()

    def _set_timer(self) -> asyncio.TimerHandle:
        return self.calls.call_later(self._session.deadline - clock(), self._on_timer)

    def _restart_timer(self) -> None:
        if not self._is_over:
            self._timer.cancel()
            self._on_timer()

    def _on_timer(self) -> None:
        self.check()
        if not self._is_over:
            self._timer = self._set_timer()

    async def _watch(self) -> None:
        try:
            async with self._locks.watches.watch_under(self._session.lease, self.path)[1] as watch:
                async for pair in watch:
                    if pair is None or pair.last_index != self.fencing_token:
                        break
        except LeaseLostError as error:
            _log.debug("a lock goes with its lease: %s", error)
        except (AccessDeniedError, StoreClosedError) as error:
            _log.debug("a held lock is not watched any more: %s", error)
            return
        self.lose("its key was deleted or overwritten")


class StoreLock:
    """A lock on a key; see ``aiolibkv.Lock``."""

    def __init__(self, locks: Locks, path: str, value: bytes, ttl: float) -> None:
        """Make a lock; nothing is sent.

        Args:
            locks: of the store through which it is acquired.
            path: its key.
            value: what the key has while it is held.
            ttl: seconds after which a dead holder's lock is free; less than 1 is taken for 1.
        """
        self._locks = locks
        self._calls = locks.calls
        self._path = path
        self._value = value
        self._asked_ttl = ttl
        self._ttl = max(ttl, SHORTEST_TTL)
        name = blake2b(path.encode(), digest_size=16).hexdigest()
        self._line = f"{locks.calls.paths.hidden}/waiters/{name}"
        self._held: StoreHeldLock | None = None
        self._is_waiting = False
        self._was_held = False
        self._body: tuple[asyncio.Task[object], int] | None = None
        self._is_body_cancelled = False

    def __repr__(self) -> str:
        state = "not held" if self._held is None else "held" if self._held.is_held else "lost"
        return f"<Lock {self._calls.paths.name(self._path)!r}, {'waiting' if self._is_waiting else state}>"

    async def acquire(self) -> StoreHeldLock:
        """Wait until the lock is held, through outages and as long as the key exists; see ``aiolibkv.Lock``."""
        held = await self._using(self._acquire)
        assert held is not None, "waited"
        return held

    async def try_acquire(self) -> StoreHeldLock | None:
        """Acquire the lock if it is free, else return None; see ``aiolibkv.Lock``."""
        return await self._using(self._try_acquire)

    async def release(self) -> None:
        """Free the lock; see ``aiolibkv.Lock``. A body that holds it in another task is cancelled, as by a loss."""
        if self._held is None:
            raise self._calls.located(CannotLockError("the lock was not acquired"), self._path)
        self._calls.check_home()
        if self._held.is_held:
            held, self._held = self._held, None
            if self._body is not None and self._body[0] is not asyncio.current_task():
                self._cancel_body()
            await held.release()

    async def __aenter__(self) -> StoreHeldLock:
        """Acquire the lock, and have the body cancelled when it is lost."""
        held = await self.acquire()
        task = asyncio.current_task()
        assert task is not None, "async with runs in a task"
        self._body = (task, task.cancelling())
        self._is_body_cancelled = False
        held.on_lost = self._cancel_body
        return held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the lock; raise LockLostError when it was lost, unless the body failed by itself or was cancelled."""
        held, body = self._held, self._body
        assert body is not None, "entered"
        task, cancelling = body
        self._body = None
        lost = self._is_body_cancelled or (held is not None and not held.is_held)
        ours = self._is_body_cancelled and task.uncancel() <= cancelling and kind is asyncio.CancelledError
        if held is not None:
            held.on_lost = None
            await held.release()
            self._held = held if lost else None
        if ours or (lost and kind is None):
            raise self._calls.located(LockLostError(), self._path) from error

    def _cancel_body(self) -> None:
        body = self._body
        if body is not None and body[0] is asyncio.current_task():
            # The body's own call finds the loss, and is about to tell it. A cancellation would outlast the body.
            self._calls.call_later(0, self._cancel, body)
        elif body is not None:
            self._cancel(body)

    def _cancel(self, body: tuple[asyncio.Task[object], int]) -> None:
        if self._body is body:
            self._is_body_cancelled = True
            body[0].cancel("the lock was lost")

    async def _using(self, acquire: Callable[[], Awaitable[StoreHeldLock | None]]) -> StoreHeldLock | None:
        """Acquire, unless this Lock is in use; give up when the store is closed."""
        calls = self._calls
        calls.check_open()
        # A body whose lock was lost may still be ending: what it leaves in the end has to be its own.
        if self._is_waiting or self._body is not None or (self._held is not None and self._held.is_held):
            raise calls.located(
                CannotLockError("this Lock is held or waited for already; make another one with new_lock"), self._path
            )
        self._is_waiting = True
        began = clock()
        try:
            self._held = await calls.within(None, acquire)
        finally:
            self._is_waiting = False
        if self._held is not None:
            self._was_held = True
            calls.tell(LockAcquired, self._held.key, self._held.fencing_token, clock() - began)
        return self._held

    # -- without waiting -----------------------------------------------------------------------------------------

    async def _try_acquire(self) -> StoreHeldLock | None:
        """Take the lock if its key does not exist; wait for a task of this store that releases or acquires it."""
        deadline = asyncio.timeout(self._calls.config.request_timeout)
        mutex = self._locks.mutex(self._path)
        try:
            async with deadline:
                while mutex.is_taken:
                    if mutex.is_held or await self._key_exists():
                        return None
                    await mutex.wait_changed()
                await mutex.take()
                return await self._take_now(mutex)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            late = self._calls.timed_out()
            raise self._calls.located(late, self._path) from (late.__cause__ or error)

    async def _key_exists(self) -> bool:
        return await self._calls.run(
            lambda call: self._calls.driver.exists(call, self._path, consistent=True), self._path
        )

    async def _take_now(self, mutex: Mutex) -> StoreHeldLock | None:
        session: Session | None = None
        held: StoreHeldLock | None = None
        is_key_there = False
        try:
            while held is None and not is_key_there:
                session = session or await self._locks.sessions.take(self._ttl, self._path)
                try:
                    held, is_key_there = await self._take_or_wait_for_line(session, mutex)
                except LeaseLostError:
                    self._locks.sessions.end(session)
                    session = None
        finally:
            if held is None:
                mutex.release()
                if session is not None and is_key_there:
                    self._locks.sessions.give_back(self._ttl, session)
                elif session is not None:
                    self._locks.sessions.end(session)
        return held

    async def _take_or_wait_for_line(self, session: Session, mutex: Mutex) -> tuple[StoreHeldLock | None, bool]:
        """Take the lock, or tell that its key exists; while it is free but others are in the line, wait."""
        breaks = growing_pauses()
        while True:
            try:
                return await self._take(session, mutex, place=None, line=self._line), False
            except KeyExistsError as error:
                if error.key != self._calls.paths.name(self._line):
                    return None, True
            await asyncio.sleep(next(breaks))

    # -- waiting -------------------------------------------------------------------------------------------------

    async def _acquire(self) -> StoreHeldLock:
        mutex = self._locks.mutex(self._path)
        is_in_line = mutex.is_taken and not self._calls.driver.keeps_line
        await mutex.take()
        held = None
        try:
            held = await self._try_until_held(mutex, is_in_line=is_in_line)
        finally:
            if held is None:
                mutex.release()
        return held

    async def _try_until_held(self, mutex: Mutex, *, is_in_line: bool) -> StoreHeldLock:
        """Begin again, under a new session, whenever a session was lost or an answer is in doubt."""

        async def attempt() -> StoreHeldLock:
            nonlocal is_in_line
            session = await self._locks.sessions.take(self._ttl, self._path)
            try:
                return await self._wait(session, mutex, is_in_line=is_in_line or await self._is_behind_others())
            except LeaseLostError as error:
                is_in_line = True
                await self._locks.sessions.end_and_wait(session)
                raise NotReachableError("the session was lost while waiting") from error
            except BaseException as error:
                if isinstance(error, NotReachableError | RequestTimeoutError):
                    self._locks.sessions.end(session)
                else:
                    await self._locks.sessions.end_and_wait(session)
                raise

        return await retry(self._calls, attempt, waiter=self, only_outages=True)

    async def _is_behind_others(self) -> bool:
        """Tell whether waiters go first: this Lock was held before, and ``acquire`` does not look at the line."""
        calls, line = self._calls, self._line
        if not self._was_held or calls.driver.keeps_line:
            return False
        return await calls.run(lambda call: calls.driver.is_anybody_in(call, line), self._path)

    async def _wait(self, session: Session, mutex: Mutex, *, is_in_line: bool) -> StoreHeldLock:
        calls, line = self._calls, self._line
        if not is_in_line:
            try:
                return await self._take(session, mutex, place=None, line=line)
            except KeyExistsError:
                pass
        place = f"{line}/{uuid4().hex}"
        await calls.run(
            lambda call: calls.driver.put(call, place, b"", expected=0, lease=session.lease, guard=None), self._path
        )
        ahead = await self._place_ahead(place)
        while True:
            if ahead is not None:
                await self._wait_gone(ahead, session)
            # Mostly the one ahead has just released the lock; if it gave up waiting, there may be others ahead.
            try:
                return await self._take(session, mutex, place=place, line=None)
            except KeyExistsError:
                pass
            ahead = await self._place_ahead(place)
            if ahead is None:
                await self._wait_gone(self._path, session)

    async def _place_ahead(self, place: str) -> str | None:
        calls, line = self._calls, self._line
        return await retry(
            calls,
            lambda: calls.run(lambda call: calls.driver.place_ahead(call, line, place), self._path),
            only_outages=True,
        )

    async def _wait_gone(self, path: str, session: Session) -> None:
        feed, watching = self._locks.watches.watch_under(session.lease, path)
        session.on_lost = lambda: feed.fail(LeaseLostError())
        if session.is_over:
            raise LeaseLostError
        # From here on it is others who are waited for; the watch tells whether the server is heard.
        self._calls.outages.healed(self)
        async with watching as watch:
            async for pair in watch:
                if pair is None:
                    break
        self._calls.outages.waits(self)

    # -- both ----------------------------------------------------------------------------------------------------

    async def _take(self, session: Session, mutex: Mutex, *, place: str | None, line: str | None) -> StoreHeldLock:
        calls, path, value, lease = self._calls, self._path, self._value, session.lease

        async def take(call: Call) -> tuple[int, int]:
            return await calls.driver.acquire(call, path, value, lease, line=line)

        index, token = await calls.run(take, path)
        if not session.is_good:
            # So long without a renewal: it would be lost at once, though a new session may hold it.
            raise LeaseLostError
        self._locks.tell_ttl(path, self._asked_ttl, lease.ttl)
        return StoreHeldLock(
            self._locks,
            path,
            value=value,
            index=index,
            token=token,
            session=session,
            ttl=self._ttl,
            place=place,
            mutex=mutex,
        )

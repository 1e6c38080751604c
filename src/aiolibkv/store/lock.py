"""The lock of every backend: a key created under a session, and a line of waiters below the reserved subtree.

The holder's key and its place in the line are under one lease: releasing, closing and dying remove both at once. A
waiter watches the place before its own, the first in the line the lock's key itself: a release wakes one of them.
Whoever finds the lock free and nobody of its own store waiting takes it in one transaction, without a place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from hashlib import blake2b
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar
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
)
from aiolibkv.keys import RESERVED
from aiolibkv.store.driver import Call, LeaseLost
from aiolibkv.store.session import Session
from aiolibkv.store.tasks import Tasks
from aiolibkv.store.watch import Feed, StoreWatch
from aiolibkv.types import KVPair

if TYPE_CHECKING:
    from aiolibkv.store.base import BaseStore

T = TypeVar("T")

_SHORTEST_TTL = 1.0
_LEAST_MARGIN = 0.5
_MARGIN = 0.1

_log = logging.getLogger("aiolibkv")


class Turn:
    """What a task of a store must have to contend for a key, or to hold it; given in the order in which it is wanted.

    Attributes:
        wanted: by how many tasks, whoever has it included. One that was just given back may be somebody's already.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self.wanted = 0

    async def take(self) -> None:
        """Wait for it."""
        self.wanted += 1
        try:
            await self._lock.acquire()
        except BaseException:
            self.wanted -= 1
            raise

    def release(self) -> None:
        """Give it to the next one."""
        self.wanted -= 1
        self._lock.release()


class Locks:
    """What the locks of one store share.

    Attributes:
        held: the acquisitions that stand.
        tasks: those that watch over them.
    """

    def __init__(self) -> None:
        self._turns: WeakValueDictionary[str, Turn] = WeakValueDictionary()
        self.held: set[StoreHeldLock] = set()
        self.tasks = Tasks()

    def turn(self, path: str) -> Turn:
        """Return the turn of a key."""
        return self._turns.setdefault(path, Turn())

    def lose_all(self) -> None:
        """Count every held lock as lost, because the store is closed."""
        for held in tuple(self.held):
            held.lose()


class StoreHeldLock:
    """One acquisition; see ``aiolibkv.HeldLock``."""

    def __init__(
        self, store: BaseStore, path: str, *, value: bytes, index: int, token: int, session: Session, turn: Turn
    ) -> None:
        """Take note of a lock that was acquired, and begin to watch over it.

        Args:
            store: through which it was acquired.
            path: the lock's key.
            value: what was written there.
            index: the index of that, which is the fencing token.
            token: what the backend checks a guard against.
            session: under which it was written.
            turn: the store's turn for this key, released when the lock is not held any more.
        """
        self.store = store
        self.path = path
        self.key = store._name(path)
        self.value = value
        self.fencing_token = index
        self.token = token
        self.ttl = session.lease.ttl
        self.freed_within = session.lease.ttl + session.lease.overshoot
        self.on_lost: Callable[[], None] | None = None
        self._index = index
        self._session = session
        self._turn = turn
        self._over = asyncio.Event()
        session.on_lost = self.lose
        store._locks.held.add(self)
        self._timer = self._set_timer()
        self._watching = store._locks.tasks.start(self._watch())

    @property
    def is_held(self) -> bool:
        """Tell whether the lock is still held, by the holder's own clock."""
        in_time = asyncio.get_running_loop().time() < self._deadline
        return in_time and not self._over.is_set() and not self._session.is_over

    async def wait_lost(self) -> None:
        """Return when the lock is not held any more."""
        await self._over.wait()

    async def release(self) -> None:
        """Free the lock if it is held."""
        if not self._over.is_set():
            self._end()
            try:
                await self.store._lifetimes.end_session(self._session)
            finally:
                self._turn.release()

    @property
    def _deadline(self) -> float:
        return _deadline(self._session)

    def _set_timer(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_at(self._deadline, self._check)

    def _check(self) -> None:
        if self.is_held:
            self._timer = self._set_timer()
        else:
            self.lose()

    def lose(self) -> None:
        """Take note that the lock is not held any more; what it leaves at the server is removed."""
        if not self._over.is_set():
            _log.warning("%s: the lock %r is lost", self.store.name, self.key)
            self._end()
            self._turn.release()
            self.store._lifetimes.drop_session(self._session)
            if self.on_lost is not None:
                self.on_lost()

    def _end(self) -> None:
        self._over.set()
        self.store._locks.held.discard(self)
        self._timer.cancel()
        self._watching.cancel()

    async def _watch(self) -> None:
        try:
            async with _watch_path(self.store, self.path, self._session)[1] as watch:
                async for pair in watch:
                    if pair is None or pair.last_index != self._index:
                        break
        except LeaseLost as error:
            _log.debug("a lock goes with its lease: %s", error)
        except (AccessDeniedError, StoreClosedError) as error:
            _log.debug("a held lock is not watched any more: %s", error)
            return
        self.lose()


class StoreLock:
    """A lock on a key; see ``aiolibkv.Lock``."""

    def __init__(self, store: BaseStore, path: str, value: bytes, ttl: float) -> None:
        """Make a lock; nothing is sent.

        Args:
            store: through which it is acquired.
            path: its key.
            value: what the key has while it is held.
            ttl: seconds after which a dead holder's lock is free; less than 1 is taken for 1.
        """
        self._store = store
        self._path = path
        self._value = value
        self._ttl = ttl
        self._is_ttl_told = False
        name = blake2b(path.encode(), digest_size=16).hexdigest()
        self._line = f"{store._root}{RESERVED}/waiters/{name}"
        self._held: StoreHeldLock | None = None
        self._is_waiting = False
        self._was_held = False
        self._body: tuple[asyncio.Task[object], int] | None = None
        self._is_body_cancelled = False

    async def acquire(self) -> StoreHeldLock:
        """Wait until the lock is held, through outages and as long as the key exists; see ``aiolibkv.Lock``."""
        held = await self._contend(wait=True)
        assert held is not None, "waited"
        return held

    async def try_acquire(self) -> StoreHeldLock | None:
        """Acquire the lock if it is free, else return None; see ``aiolibkv.Lock``."""
        return await self._contend(wait=False)

    async def release(self) -> None:
        """Free the lock; see ``aiolibkv.Lock``. A body that holds it in another task is cancelled, as by a loss."""
        if self._held is None:
            raise self._store._located(CannotLockError("the lock was not acquired"), self._path)
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
            raise self._store._located(LockLostError(), self._path) from error

    def _cancel_body(self) -> None:
        if self._body is not None:
            self._is_body_cancelled = True
            self._body[0].cancel("the lock was lost")

    async def _contend(self, *, wait: bool) -> StoreHeldLock | None:
        store = self._store
        store._check_open()
        # A body whose lock was lost may still be ending: what it leaves in the end has to be its own.
        if self._is_waiting or self._body is not None or (self._held is not None and self._held.is_held):
            raise store._located(CannotLockError("the lock is held or waited for"), self._path)
        self._is_waiting = True
        until_close = asyncio.timeout(None)
        store._pending.add(until_close)
        try:
            async with until_close:
                self._held = await self._take_turn(wait=wait)
                self._was_held = self._was_held or self._held is not None
                return self._held
        except TimeoutError as error:
            if not until_close.expired():
                raise
            raise store._located(StoreClosedError(), self._path) from error
        finally:
            store._pending.discard(until_close)
            self._is_waiting = False

    async def _take_turn(self, *, wait: bool) -> StoreHeldLock | None:
        turn = self._store._locks.turn(self._path)
        if turn.wanted and not wait:
            return None
        # Who had the lock before stands in line again, so that it does not come before those who wait elsewhere.
        in_line = turn.wanted > 0 or self._was_held
        await turn.take()
        held = None
        try:
            held = await self._try_until_held(turn, wait=wait, in_line=in_line)
        finally:
            if held is None:
                turn.release()
        return held

    async def _try_until_held(self, turn: Turn, *, wait: bool, in_line: bool) -> StoreHeldLock | None:
        """Begin again, under a new session, whenever a session was lost or an answer is in doubt."""
        store = self._store
        while True:
            session: Session | None = None
            held = None
            try:
                session = await store._run(self._open_session, self._path)
                held = await self._try(session, turn, wait=wait, in_line=in_line)
                if held is not None or not wait:
                    return held
            except LeaseLost:
                in_line = True
            except (NotReachableError, RequestTimeoutError) as error:
                if not wait:
                    raise
                _log.debug("acquiring a lock begins again: %s", error)
            finally:
                if session is not None and held is None:
                    await store._lifetimes.end_session(session)

    async def _try(self, session: Session, turn: Turn, *, wait: bool, in_line: bool) -> StoreHeldLock | None:
        if not in_line or not wait:
            held = await self._take(session, turn)
            if held is not None or not wait:
                return held
        place = f"{self._line}/{uuid4().hex}"
        await self._store._run(
            lambda call: self._store._put(call, place, b"", expected=0, lease=session.lease, guard=None), self._path
        )
        ahead = await self._place_ahead(place)
        while True:
            if ahead is not None:
                await self._gone(ahead, session)
            # Mostly the one ahead has just released the lock; if it gave up waiting, there may be others ahead.
            held = await self._take(session, turn)
            if held is not None:
                return held
            ahead = await self._place_ahead(place)
            if ahead is None:
                await self._gone(self._path, session)

    async def _take(self, session: Session, turn: Turn) -> StoreHeldLock | None:
        store, path, value = self._store, self._path, self._value
        try:
            index, token = await store._run(lambda call: store._acquire(call, path, value, session.lease), path)
        except KeyExistsError:
            return None
        if session.is_over or asyncio.get_running_loop().time() >= _deadline(session):
            # So long without a renewal: it would be lost at once, though a new session may hold it.
            raise LeaseLost
        if session.lease.ttl != self._ttl and not self._is_ttl_told:
            self._is_ttl_told = True
            _log.info("%s: the lock %r has a ttl of %g s", store.name, store._name(path), session.lease.ttl)
        return StoreHeldLock(store, path, value=value, index=index, token=token, session=session, turn=turn)

    async def _open_session(self, call: Call) -> Session:
        return await self._store._lifetimes.open_session(call, max(self._ttl, _SHORTEST_TTL), _ignore)

    async def _place_ahead(self, place: str) -> str | None:
        listing = await self._patiently(lambda call: self._store._list(call, self._line, consistent=True))
        order = sorted(listing.pairs, key=lambda pair: pair.last_index)
        places = [pair.key for pair in order]
        if place not in places:
            raise LeaseLost
        own = places.index(place)
        return places[own - 1] if own else None

    async def _patiently(self, read: Callable[[Call], Awaitable[T]]) -> T:
        while True:
            try:
                return await self._store._run(read, self._path)
            except (NotReachableError, RequestTimeoutError) as error:
                _log.debug("a lock's line cannot be read yet: %s", error)

    async def _gone(self, path: str, session: Session) -> None:
        feed, watching = _watch_path(self._store, path, session)
        session.on_lost = lambda: feed.fail(LeaseLost())
        if session.is_over:
            raise LeaseLost
        async with watching as watch:
            async for pair in watch:
                if pair is None:
                    return


def _deadline(session: Session) -> float:
    """Return until when its owner counts on a session, by the loop's clock, if it is not renewed again."""
    ttl = session.lease.ttl
    return session.renewed + ttl - max(_LEAST_MARGIN, _MARGIN * ttl)


def _watch_path(store: BaseStore, path: str, session: Session) -> tuple[Feed, StoreWatch[KVPair | None]]:
    feed = Feed(path, tree=False, name=lambda name: name)
    start = partial(store._start_watch, lease=session.lease)
    return feed, StoreWatch(feed, start, lambda snapshot: snapshot.get(path))


def _ignore() -> None:
    """Leave a loss to be found by the next request."""

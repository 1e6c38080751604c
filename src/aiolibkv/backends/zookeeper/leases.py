"""Lifetimes: which keys live with which session, and the end of those that go before it.

Servers allow few connections, so the leases of one ttl share a session, and what was created under a lease is deleted
one by one when it ends. That is safe because a session's requests are carried out in order, and those of a connection
that broke never after the session has gone on with another one: a deletion that is sent later through the same session
finds what an earlier request may have created. A session that is lost takes everything with it. What cannot be deleted
goes with its session, which is used for no new lease then, and ended with its last one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import getrandbits, uniform
from typing import Any

from aiolibkv.backends.zookeeper.connection import Connection
from aiolibkv.backends.zookeeper.locking import Locker, delete_all
from aiolibkv.backends.zookeeper.operations import Stat, delete
from aiolibkv.backends.zookeeper.session import SessionLostError, ZooKeeperSession
from aiolibkv.backends.zookeeper.tree import ancestors, znode
from aiolibkv.backends.zookeeper.watching import LeaseWatching
from aiolibkv.backends.zookeeper.writing import Writer
from aiolibkv.errors import NotReachableError, StoreError
from aiolibkv.store import Call, Lease
from aiolibkv.store.tasks import Tasks

_PAUSE = 0.2
_FAREWELL = 0.3
"""Seconds at close for deleting, with their directories, the keys that would go with the session anyway."""
_FAREWELLS_AT_ONCE = 100
_IDLE = 3.0
"""Seconds that a session is kept for the next lease."""
_TIDYING_PAUSE = 0.5
"""Seconds before the directories that locks leave empty are pruned: the next one needs them again."""
_HOLDER_BITS = 63

_log = logging.getLogger("aiolibkv")


@dataclass(frozen=True, slots=True)
class _Key:
    """A key that lives with a session.

    Attributes:
        lease: under which it was written.
        session: that owns it.
        index: that this write gave to it.
        version: likewise.
    """

    lease: ZooKeeperLease
    session: int
    index: int
    version: int


class SharedSession:
    """A session of the leases of one ttl.

    Attributes:
        session: the session.
        watching: of single keys on it.
        leases: those that use it.
        is_retired: whether it is used for no new lease.
        idle: runs while it has no lease.
    """

    def __init__(self, make: Callable[[SharedSession], ZooKeeperSession]) -> None:
        """Make one that has not begun.

        Args:
            make: its session.
        """
        self.watching: LeaseWatching = LeaseWatching()
        self.leases: set[ZooKeeperLease] = set()
        self.is_retired: bool = False
        self.idle: asyncio.TimerHandle | None = None
        self.session: ZooKeeperSession = make(self)

    def agreed(self, timeout: float, sent: float) -> None:
        """Have the leases last as long as the server has agreed to; it may be less than before."""
        for lease in tuple(self.leases):
            lease.agree(timeout, sent)


@dataclass(eq=False, kw_only=True)
class ZooKeeperLease(Lease):
    """A lease.

    Attributes:
        lifetime: seconds, as wanted.
        is_plain: whether it is of a key in the store's session, out of which the key is deleted on time.
        shared: the session that it has been granted; None before that, and for a plain one.
        paths: the keys written under it.
        attempted: those that may have been, by a request whose answer was lost.
        acquisitions: those of locks under it, or that may have been, by their numbers: the key, and the token if it is
            known.
    """

    lifetime: float
    is_plain: bool = False
    shared: SharedSession | None = None
    paths: set[str] = field(default_factory=set)
    attempted: set[str] = field(default_factory=set)
    acquisitions: dict[int, tuple[str, int | None]] = field(default_factory=dict)

    def acquiring(self, path: str) -> int:
        """Choose the number of an acquisition that is to be tried."""
        holder = getrandbits(_HOLDER_BITS)
        self.acquisitions[holder] = path, None
        return holder


class Lifespans:
    """The ephemeral keys of one store."""

    def __init__(
        self,
        session: ZooKeeperSession,
        writer: Writer,
        locker: Locker,
        *,
        hidden: str,
        new_session: Callable[[SharedSession, float], ZooKeeperSession],
    ) -> None:
        """Begin without any.

        Args:
            session: the store's.
            writer: of deletions.
            locker: of releases.
            hidden: where the library keeps what is its own, with a slash at the end.
            new_session: makes one, of a timeout, for leases to share.
        """
        self._session = session
        self._writer = writer
        self._locker = locker
        self._hidden = hidden
        self._new_session = new_session
        self._keys: dict[str, _Key] = {}
        self._shared: dict[float, SharedSession] = {}
        self._sessions: set[SharedSession] = set()
        self._removals = Tasks()
        self._timers: set[asyncio.TimerHandle] = set()
        self._untidy: set[str] = set()
        self._tidying: asyncio.TimerHandle | None = None

    def lend(self, lease: ZooKeeperLease) -> ZooKeeperSession:
        """Give a lease the session of its ttl, which is begun when there is none."""
        shared = self._shared.get(lease.lifetime)
        if shared is None or shared.session.is_lost:
            shared = SharedSession(lambda shared: self._new_session(shared, lease.lifetime))
            self._shared[lease.lifetime] = shared
            self._sessions.add(shared)
            shared.session.begin()
        if lease.shared is not None and lease.shared is not shared:
            self._give_back(lease)
        if shared.idle is not None:
            shared.idle.cancel()
        lease.shared = shared
        lease.ttl = shared.session.timeout
        shared.leases.add(lease)
        return shared.session

    def version(self, path: str, session: int) -> int | None:
        """Return the version of a key that this store wrote for a session, None for others."""
        key = self._keys.get(path)
        return key.version if key is not None and key.session == session else None

    def note(self, path: str, lease: ZooKeeperLease, session: int, stat: Stat) -> None:
        """Take note of a key that was written under a lease."""
        known = self._keys.get(path)
        if known is None or known.index < stat.index:
            self.forget(path)
            self._keys[path] = _Key(lease, session, stat.index, stat.version)
            lease.paths.add(path)
        lease.attempted.discard(path)

    def forget(self, path: str) -> None:
        """Take note that a key is under no lease any more."""
        key = self._keys.pop(path, None)
        if key is not None:
            key.lease.paths.discard(path)

    @contextmanager
    def ending(self, path: str, *, below: bool = False) -> Iterator[None]:
        """Take note of a write that ends the lifetime of a key, or of all below; not of one that begins meanwhile."""
        start = f"{path}/" if path else ""
        names = [name for name in self._keys if name.startswith(start)] if below else [path]
        before = {name: self._keys[name] for name in names if name in self._keys}
        yield
        for name, key in before.items():
            if self._keys.get(name) is key:
                self.forget(name)

    @contextmanager
    def in_doubt(self, call: Call, path: str, lease: ZooKeeperLease) -> Iterator[None]:
        """See to it that a key goes on time though the answer to its put was lost."""
        lease.attempted.add(path)
        try:
            yield
        except BaseException:
            if not call.maybe_applied:
                lease.attempted.discard(path)
            elif lease.is_plain:
                self.forget(path)
                loop = asyncio.get_running_loop()
                self._timers = {timer for timer in self._timers if timer.when() > loop.time()}
                self._timers.add(loop.call_later(lease.lifetime, self._look_for, path))
            raise

    async def release(self, connection: Connection, path: str, place: str | None, lease: ZooKeeperLease) -> bool:
        """Delete a lock's key and its holder's place; tells whether the acquisition still stood."""
        places = [] if place is None else [place]
        stood = False
        for holder, (key, token) in tuple(lease.acquisitions.items()):
            if key == path:
                is_key = path in self._keys and self._keys[path].lease is not lease
                stood = await self._locker.release(connection, path, holder, token, places, is_key=is_key)
                del lease.acquisitions[holder]
        for name in {path, *places} & lease.paths:
            self.forget(name)
        self._tidy_later({path, *places})
        return stood

    async def end(self, lease: ZooKeeperLease) -> None:
        """Delete what is still there of a lease's keys.

        They have to go, however long no server can be reached and whoever gives up waiting for it.
        """
        await asyncio.shield(self._removals.start(self._end(lease)))

    async def _end(self, lease: ZooKeeperLease) -> None:
        keys = {path: self._keys[path] for path in lease.paths}
        for path in keys:
            self.forget(path)
        if lease.is_plain:
            for path, key in keys.items():
                await self._remove(path, key.index)
            return
        if lease.shared is None:
            return
        locks = {path for path, _ in lease.acquisitions.values()}
        gone = {*keys, *lease.attempted, *locks}
        try:
            await self._remove_all(lease.shared.session, lease, keys)
        except SessionLostError as error:
            _log.debug("zookeeper: a lease's keys went with its session: %s", error)
        except StoreError as error:
            _log.warning("zookeeper: keys could not be deleted, and go with their session a little later: %s", error)
            self._retire(lease.shared)
        self._give_back(lease)
        self._tidy_later(gone)

    async def _remove_all(self, session: ZooKeeperSession, lease: ZooKeeperLease, keys: dict[str, _Key]) -> None:
        locks = {path for path, _ in lease.acquisitions.values()}
        places = [path for path in {*keys, *lease.attempted} if path.startswith(self._hidden)]
        others = [(path, key.index) for path, key in keys.items() if path not in {*places, *locks}]
        doubtful = lease.attempted - set(places)
        while True:
            connection = await session.reconnected()
            left = places
            removals: list[Coroutine[Any, Any, object]] = []
            for holder, (path, token) in lease.acquisitions.items():
                removals.append(self._locker.release(connection, path, holder, token, left, is_key=path in self._keys))
                left = []
            if left:
                removals.append(delete_all(connection, [delete(znode(path)) for path in left]))
            removals += [self._writer.delete_exactly(connection, *each) for each in others]
            removals += [self._writer.delete_owned(connection, path) for path in doubtful if path not in self._keys]
            results = await asyncio.gather(*removals, return_exceptions=True)
            failures = [each for each in results if isinstance(each, BaseException)]
            if not failures:
                return
            for failure in failures:
                if not isinstance(failure, NotReachableError):
                    raise failure
            _log.debug("zookeeper: a lease's keys are to be deleted again: %s", failures[0])
            await asyncio.sleep(_PAUSE * uniform(0.5, 1.0))

    def _give_back(self, lease: ZooKeeperLease) -> None:
        shared = lease.shared
        if shared is None:
            return
        shared.leases.discard(lease)
        if not shared.leases and shared in self._sessions:
            if shared.is_retired or shared.session.is_lost:
                self._close(shared)
            else:
                shared.idle = asyncio.get_running_loop().call_later(_IDLE, self._close, shared)

    def _close(self, shared: SharedSession) -> None:
        self._retire(shared)
        self._removals.start(self._end_session(shared))

    async def _end_session(self, shared: SharedSession) -> None:
        await shared.session.close()
        self._sessions.discard(shared)

    def _retire(self, shared: SharedSession) -> None:
        shared.is_retired = True
        for ttl, other in tuple(self._shared.items()):
            if other is shared:
                del self._shared[ttl]

    async def close(self) -> None:
        """Delete the keys that live with the store's session, and end the sessions of leases."""
        for timer in self._timers:
            timer.cancel()
        if self._tidying is not None:
            self._tidying.cancel()
        await self._removals.close()
        keys = [(path, key.index) for path, key in self._keys.items() if key.lease.is_plain]
        for path, key in self._keys.items():
            if not key.lease.is_plain:
                self._untidy.update(ancestors(path)[:1])
        self._keys.clear()
        sessions, self._sessions = self._sessions, set()
        for each in sessions:
            if each.idle is not None:
                each.idle.cancel()
        try:
            await asyncio.gather(self._delete_in_time(keys), *(each.session.close_now() for each in sessions))
            async with asyncio.timeout(_FAREWELL):
                await self._tidy()
        except TimeoutError as error:
            _log.debug("zookeeper: empty directories are left: %s", error)
        finally:
            await asyncio.gather(*(each.session.drop() for each in sessions))

    async def _delete_in_time(self, keys: list[tuple[str, int]]) -> None:
        connection = self._session.connection_now
        if connection is None:
            return
        try:
            async with asyncio.timeout(_FAREWELL):
                # A few at a time: thousands at once would not let the time be noticed.
                for start in range(0, len(keys), _FAREWELLS_AT_ONCE):
                    part = keys[start : start + _FAREWELLS_AT_ONCE]
                    await asyncio.gather(*(self._writer.delete_exactly(connection, *each) for each in part))
        except (StoreError, TimeoutError) as error:
            _log.debug("zookeeper: keys are left to go with their session: %s", error)

    async def _remove(self, path: str, index: int) -> None:
        while True:
            try:
                await self._writer.delete_exactly(await self._session.connection(), path, index)
                return
            except NotReachableError as error:
                _log.debug("zookeeper: a key is to be deleted again: %s", error)
            await asyncio.sleep(_PAUSE * uniform(0.5, 1.0))

    def _look_for(self, path: str) -> None:
        self._removals.start(self._remove_if_written(path))

    async def _remove_if_written(self, path: str) -> None:
        while path not in self._keys:
            try:
                await self._writer.delete_owned(await self._session.connection(), path)
                return
            except NotReachableError as error:
                _log.debug("zookeeper: a key is to be looked for again: %s", error)
            await asyncio.sleep(_PAUSE * uniform(0.5, 1.0))

    def _tidy_later(self, paths: set[str]) -> None:
        self._untidy.update(above[0] for path in paths if (above := ancestors(path)))
        if self._untidy and self._tidying is None:
            self._tidying = asyncio.get_running_loop().call_later(_TIDYING_PAUSE, self._begin_to_tidy)

    def _begin_to_tidy(self) -> None:
        self._tidying = None
        self._removals.start(self._tidy())

    async def _tidy(self) -> None:
        connection = self._session.connection_now
        directories, self._untidy = sorted(self._untidy), set()
        if connection is None or not directories:
            return
        try:
            await self._writer.tidy(connection, directories)
        except StoreError as error:
            _log.debug("zookeeper: empty directories were left: %s", error)

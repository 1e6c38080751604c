"""Lifetimes: which keys live with which session, and the end of those that go before it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import uniform

from aiolibkv.backends.zookeeper.operations import Stat
from aiolibkv.backends.zookeeper.session import ZooKeeperSession
from aiolibkv.backends.zookeeper.tree import ancestors
from aiolibkv.backends.zookeeper.watching import LeaseWatching
from aiolibkv.backends.zookeeper.writing import Writer
from aiolibkv.errors import NotReachableError, StoreError
from aiolibkv.store import Call, Lease
from aiolibkv.store.tasks import Tasks

_PAUSE = 0.2
_FAREWELL = 0.3
"""Seconds at close for deleting, with their directories, the keys that would go with the session anyway."""
_FAREWELLS_AT_ONCE = 100

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


@dataclass(eq=False, kw_only=True)
class ZooKeeperLease(Lease):
    """A lease.

    Attributes:
        lifetime: seconds, as wanted.
        session: of this lease alone; None for the store's, out of which its key is deleted on time.
        watching: of a key on that session.
        paths: the keys written under it.
    """

    lifetime: float
    session: ZooKeeperSession | None = None
    watching: LeaseWatching = field(default_factory=LeaseWatching)
    paths: set[str] = field(default_factory=set)


class Lifespans:
    """The ephemeral keys of one store."""

    def __init__(self, session: ZooKeeperSession, writer: Writer) -> None:
        """Begin without any.

        Args:
            session: the store's.
            writer: of deletions.
        """
        self._session = session
        self._writer = writer
        self._keys: dict[str, _Key] = {}
        self._sessions: set[ZooKeeperSession] = set()
        self._removals = Tasks()
        self._timers: set[asyncio.TimerHandle] = set()

    def began(self, session: ZooKeeperSession) -> None:
        """Begin a lease's session."""
        self._sessions.add(session)
        session.begin()

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
        try:
            yield
        except BaseException:
            if call.maybe_applied and lease.session is None:
                self.forget(path)
                loop = asyncio.get_running_loop()
                self._timers = {timer for timer in self._timers if timer.when() > loop.time()}
                self._timers.add(loop.call_later(lease.lifetime, self._look_for, path))
            raise

    async def end(self, lease: ZooKeeperLease) -> None:
        """Delete what is still there of a lease's keys; for a session of its own by ending that."""
        keys = {path: self._keys[path] for path in lease.paths}
        for path in keys:
            self.forget(path)
        if lease.session is None:
            for path, key in keys.items():
                # The key has to go, however long no server can be reached and whoever gives up waiting for it.
                await asyncio.shield(self._removals.start(self._remove(path, key.index)))
            return
        self._sessions.discard(lease.session)
        await lease.session.close()
        await self._tidy(list(keys))

    async def close(self) -> None:
        """Delete the keys that live with the store's session, and drop the sessions of leases."""
        for timer in self._timers:
            timer.cancel()
        await self._removals.close()
        keys = [(path, key.index) for path, key in self._keys.items() if key.lease.session is None]
        self._keys.clear()
        try:
            await self._delete_in_time(keys)
        finally:
            await asyncio.gather(*(session.drop() for session in self._sessions))
            self._sessions.clear()

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

    async def _tidy(self, paths: list[str]) -> None:
        connection = self._session.connection_now
        directories = {above[0] for path in paths if (above := ancestors(path))}
        if connection is None or not directories:
            return
        try:
            await self._writer.tidy(connection, sorted(directories))
        except StoreError as error:
            _log.debug("zookeeper: empty directories were left: %s", error)

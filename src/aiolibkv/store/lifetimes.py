"""Keys that go by themselves: leases, deletion on time, and creation again after a loss.

A backend knows leases and nothing else of lifetimes. A plain ttl key has a lease of its own that is never renewed; it
is revoked on time where the server would keep the key longer, and when the key is overwritten. The keep_alive keys of
one ttl share a session; when the server lost it, they are created again under a new one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiolibkv.errors import KeyExistsError, KeyModifiedError, KeyNotFoundError, StoreClosedError, StoreError
from aiolibkv.store.driver import Call, Guard, Lease, LeaseLost, Lifetime
from aiolibkv.store.session import Session, outlast, revoke
from aiolibkv.store.tasks import Tasks, finish

if TYPE_CHECKING:
    from aiolibkv.store.base import BaseStore

_REVOKING_TIME = 0.7
"""Seconds for the revocations at close; what is not revoked by then expires by itself."""

_log = logging.getLogger("aiolibkv")


@dataclass(eq=False, slots=True)
class _Record:
    """A key with a lifetime that this store wrote."""

    value: bytes
    index: int
    lease: Lease
    lifetime: Lifetime
    session: Session | None
    timer: asyncio.TimerHandle | None = None
    in_doubt: bool = False
    """Whether it may have been created again by a request whose answer was lost."""


class Lifetimes:
    """The keys with a lifetime that one store has written."""

    def __init__(self, store: BaseStore) -> None:
        self._store = store
        self._tasks = Tasks()
        self._revocations = Tasks()
        self._records: dict[str, _Record] = {}
        self._shared: dict[float, asyncio.Task[Session]] = {}
        self._sessions: set[Session] = set()
        self._in_doubt: dict[Lease, asyncio.TimerHandle] = {}

    async def put(
        self, call: Call, path: str, value: bytes, *, expected: int | None, lifetime: Lifetime, guard: Guard | None
    ) -> int:
        """Write a key with a lifetime and return its index."""
        while True:
            before = self._records.get(path)
            session = await self._shared_session(lifetime.ttl) if lifetime.keep_alive else None
            lease = session.lease if session else await self._own_lease(call, lifetime)
            try:
                index = await self._store._put(call, path, value, expected=expected, lease=lease, guard=guard)
            except LeaseLost:
                if session:
                    session.lose()
            except BaseException:
                if call.maybe_applied:
                    self._drop(path, before, revoke=False)
                    if session is None and lease.ttl > lifetime.ttl and not self._store._closed:
                        self._end_on_time(lease, lifetime)
                elif session is None:
                    self._discard(lease)
                raise
            else:
                self._record(path, _Record(value, index, lease, lifetime, session))
                if session and session.is_over:
                    # It was lost between the write and its answer.
                    self._tasks.start(self._replace(lifetime.ttl, session))
                return index

    @contextmanager
    def ending(self, call: Call, paths: Iterable[str]) -> Iterator[None]:
        """Forget the lifetimes that the block's write ends, unless it certainly was not applied.

        To delete what is not there ends them as well: it may be gone with a lost lease, and is not to come back.
        """
        before = [(path, self._records[path]) for path in paths if path in self._records]
        certain = False
        try:
            yield
            certain = True
        except KeyNotFoundError:
            certain = True
            raise
        finally:
            if certain or call.maybe_applied:
                for path, record in before:
                    self._drop(path, record, revoke=certain)

    def below(self, directory: str) -> list[str]:
        """Return those keys below a directory that have a lifetime."""
        start = f"{directory}/" if directory else ""
        return [path for path in self._records if path.startswith(start)]

    async def open_session(self, call: Call, ttl: float, on_lost: Callable[[], None]) -> Session:
        """Begin a session; one that cannot be begun, or may have been, is ended."""
        session = Session(self._store, ttl, on_lost)
        self._sessions.add(session)
        try:
            await session.begin(call)
        except BaseException:
            await self.end_session(session)
            raise
        return session

    async def end_session(self, session: Session) -> None:
        """End a session, with the keys under it, though the caller is cancelled; a slow server is not waited for."""
        await finish(self.drop_session(session), _REVOKING_TIME)

    def drop_session(self, session: Session) -> asyncio.Task[None]:
        """Begin to end a session, with the keys under it."""
        self._sessions.discard(session)
        return self._revocations.adopt(session.end())

    async def close(self) -> None:
        """Stop renewing and remove the keys kept alive, as far as the servers answer in time."""
        for record in self._records.values():
            if record.timer is not None:
                record.timer.cancel()
        for timer in self._in_doubt.values():
            timer.cancel()
        self._records.clear()
        await self._tasks.close()
        for session in self._sessions:
            self._revocations.adopt(session.end())
        await self._revocations.settle(_REVOKING_TIME)
        await self._revocations.close()

    async def _own_lease(self, call: Call, lifetime: Lifetime) -> Lease:
        lease = self._store._lease(lifetime)
        try:
            await self._store._grant(call, lease)
        except BaseException:
            self._discard(lease)
            raise
        return lease

    async def _shared_session(self, ttl: float) -> Session:
        opening = self._shared.get(ttl)
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            opening = self._tasks.start(self._open_shared(ttl))
            self._shared[ttl] = opening
        return await asyncio.shield(opening)

    async def _open_shared(self, ttl: float) -> Session:
        session = await self._store._run(lambda call: self.open_session(call, ttl, lambda: self._lost(ttl, session)))
        return session

    def _lost(self, ttl: float, session: Session) -> None:
        _log.warning("%s: a lease was lost; its keys are created again", self._store.name)
        self._sessions.discard(session)
        del self._shared[ttl]
        self._tasks.start(self._replace(ttl, session))

    async def _replace(self, ttl: float, lost: Session) -> None:
        """Create the keys of a lost lease again, under its successor."""
        session = await outlast(lambda: self._shared_session(ttl), lost.interval)
        orphans = [(path, record) for path, record in self._records.items() if record.session is lost]
        for _, record in orphans:
            record.lease, record.session = session.lease, session
        while True:
            orphans = [
                (path, record)
                for path, record in orphans
                if record.session is session and self._is_current(path, record) and await self._refuses(path, record)
            ]
            if not orphans:
                return
            await asyncio.sleep(session.interval)

    async def _refuses(self, path: str, record: _Record) -> bool:
        """Create a key again; True when the server does not do it now."""
        try:
            await self._create(path, record)
        except LeaseLost:
            assert record.session is not None, "kept alive"
            record.session.lose()
        except KeyExistsError:
            self._drop(path, record, revoke=False)
        except StoreClosedError:
            raise
        except StoreError as error:
            _log.warning("a key kept alive is not created again yet: %s", error)
            record.in_doubt = record.in_doubt or error.maybe_applied
            return True
        return False

    async def _create(self, path: str, record: _Record) -> None:
        store, lease = self._store, record.lease
        try:
            record.index = await store._run(
                lambda call: store._put(call, path, record.value, expected=0, lease=lease, guard=None), path
            )
        except KeyExistsError:
            pair = await store._run(lambda call: store._get(call, path, consistent=True), path)
            if not record.in_doubt or pair is None or pair.value != record.value:
                raise
            record.index = pair.last_index
        if not self._is_current(path, record):
            await self._take_back(path, record)

    async def _take_back(self, path: str, record: _Record) -> None:
        """Delete what was created again while it was deleted or overwritten."""
        store = self._store

        async def delete() -> None:
            try:
                await store._run(lambda call: store._delete(call, path, expected=record.index, guard=None), path)
            except (KeyNotFoundError, KeyModifiedError) as error:
                _log.debug("nothing to take back: %s", error)

        await outlast(delete, record.lease.ttl)

    def _record(self, path: str, record: _Record) -> None:
        other = self._records.get(path)
        if other is not None and other.index > record.index:
            self._retire(record)
            return
        self._drop(path, other, revoke=True)
        self._records[path] = record
        if not record.lifetime.keep_alive:
            loop = asyncio.get_running_loop()
            record.timer = loop.call_later(record.lifetime.ttl, self._due, path, record)

    def _due(self, path: str, record: _Record) -> None:
        self._drop(path, record, revoke=record.lease.ttl > record.lifetime.ttl)

    def _drop(self, path: str, record: _Record | None, *, revoke: bool) -> None:
        if record is None or not self._is_current(path, record):
            return
        del self._records[path]
        if record.timer is not None:
            record.timer.cancel()
        if revoke:
            self._retire(record)

    def _is_current(self, path: str, record: _Record) -> bool:
        return self._records.get(path) is record

    def _retire(self, record: _Record) -> None:
        if record.session is None:
            self._discard(record.lease)

    def _end_on_time(self, lease: Lease, lifetime: Lifetime) -> None:
        """End the lease of a put that is in doubt: if it was applied, its key must go when any other would."""

        def end() -> None:
            del self._in_doubt[lease]
            self._discard(lease)

        self._in_doubt[lease] = asyncio.get_running_loop().call_later(lifetime.ttl, end)

    def _discard(self, lease: Lease) -> None:
        self._revocations.start(revoke(self._store, lease))

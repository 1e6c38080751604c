"""Keys that go by themselves: leases, their renewal, deletion on time, and creation again after a loss.

A backend knows leases and nothing else of lifetimes. A plain ttl key has a lease of its own that is never renewed; it
is revoked on time where the server would keep the key longer, and when the key is overwritten. The keep_alive keys of
one ttl share a lease that is renewed; when the server lost it, they are created again under a new one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiolibkv.errors import KeyExistsError, NotReachableError, RequestTimeoutError, StoreClosedError, StoreError
from aiolibkv.store.driver import Call, Guard, Lease, LeaseLost, Lifetime
from aiolibkv.store.tasks import Tasks

if TYPE_CHECKING:
    from aiolibkv.store.base import BaseStore

_RENEWALS_PER_TTL = 3
_REVOKING_TIME = 1.0
"""Seconds for the revocations at close; what is not revoked by then expires by itself."""

_log = logging.getLogger("aiolibkv")


@dataclass(eq=False, slots=True)
class _Record:
    """A key with a lifetime that this store wrote."""

    value: bytes
    index: int
    lease: Lease
    lifetime: Lifetime
    timer: asyncio.TimerHandle | None = None


class Lifetimes:
    """The keys with a lifetime that one store has written."""

    def __init__(self, store: BaseStore) -> None:
        self._store = store
        self._tasks = Tasks()
        self._revocations = Tasks()
        self._records: dict[str, _Record] = {}
        self._shared: dict[float, asyncio.Task[Lease]] = {}
        self._renewed: set[Lease] = set()

    async def put(
        self, call: Call, path: str, value: bytes, *, expected: int | None, lifetime: Lifetime, guard: Guard | None
    ) -> int:
        """Write a key with a lifetime and return its index."""
        while True:
            before = self._records.get(path)
            lease = await (self._shared_lease(lifetime) if lifetime.keep_alive else self._own_lease(call, lifetime))
            try:
                index = await self._store._put(call, path, value, expected=expected, lease=lease, guard=guard)
            except LeaseLost:
                self._lost(lifetime, lease)
            except BaseException:
                if call.maybe_applied:
                    self._drop(path, before, revoke=False)
                elif not lifetime.keep_alive:
                    self._discard(lease)
                raise
            else:
                self._record(path, _Record(value, index, lease, lifetime))
                return index

    @contextmanager
    def ending(self, call: Call, paths: Iterable[str]) -> Iterator[None]:
        """Forget the lifetimes that the block's write ends, unless it certainly was not applied."""
        before = [(path, self._records[path]) for path in paths if path in self._records]
        certain = False
        try:
            yield
            certain = True
        finally:
            if certain or call.maybe_applied:
                for path, record in before:
                    self._drop(path, record, revoke=certain)

    def below(self, directory: str) -> list[str]:
        """Return those keys below a directory that have a lifetime."""
        start = f"{directory}/" if directory else ""
        return [path for path in self._records if path.startswith(start)]

    async def close(self) -> None:
        """Stop renewing and remove the keys kept alive, as far as the servers answer in time."""
        for record in self._records.values():
            if record.timer is not None:
                record.timer.cancel()
        self._records.clear()
        await self._tasks.close()
        for lease in self._renewed:
            self._discard(lease)
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

    async def _shared_lease(self, lifetime: Lifetime) -> Lease:
        opening = self._shared.get(lifetime.ttl)
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            opening = self._tasks.start(self._open(lifetime))
            self._shared[lifetime.ttl] = opening
        return await asyncio.shield(opening)

    async def _open(self, lifetime: Lifetime) -> Lease:
        lease = self._store._lease(lifetime)
        self._renewed.add(lease)
        try:
            await self._store._run(lambda call: self._store._grant(call, lease))
        except BaseException:
            self._renewed.discard(lease)
            self._discard(lease)
            raise
        self._tasks.start(self._renew(lifetime, lease))
        return lease

    async def _renew(self, lifetime: Lifetime, lease: Lease) -> None:
        while lease in self._renewed:
            await asyncio.sleep(lease.ttl / _RENEWALS_PER_TTL)
            while True:
                try:
                    alive = await self._store._run(lambda call: self._store._renew(call, lease))
                    break
                except (NotReachableError, RequestTimeoutError) as error:
                    _log.debug("a lease could not be renewed yet: %s", error)
                except StoreClosedError:
                    return
                except StoreError as error:
                    _log.warning("a lease could not be renewed: %s", error)
                    await asyncio.sleep(lease.ttl / _RENEWALS_PER_TTL)
            if not alive:
                self._lost(lifetime, lease)

    def _lost(self, lifetime: Lifetime, lease: Lease) -> None:
        if lease in self._renewed:
            self._renewed.discard(lease)
            _log.warning("%s: a lease was lost; its keys are created again", self._store.name)
            self._shared[lifetime.ttl] = self._tasks.start(self._reopen(lifetime, lease))

    async def _reopen(self, lifetime: Lifetime, lost: Lease) -> Lease:
        while True:
            try:
                lease = await self._open(lifetime)
                break
            except (NotReachableError, RequestTimeoutError) as error:
                _log.debug("a lost lease could not be replaced yet: %s", error)
        orphans = [(path, record) for path, record in self._records.items() if record.lease is lost]
        for _, record in orphans:
            record.lease = lease
        self._tasks.start(self._create_again(orphans, lease))
        return lease

    async def _create_again(self, orphans: list[tuple[str, _Record]], lease: Lease) -> None:
        for path, record in orphans:
            if record.lease is lease and self._records.get(path) is record:
                try:
                    await self._create(path, record)
                except KeyExistsError:
                    self._drop(path, record, revoke=False)
                except LeaseLost:
                    self._lost(record.lifetime, lease)

    async def _create(self, path: str, record: _Record) -> None:
        store, lease = self._store, record.lease
        in_doubt = False
        while True:
            try:
                record.index = await store._run(
                    lambda call: store._put(call, path, record.value, expected=0, lease=lease, guard=None), path
                )
                break
            except KeyExistsError:
                pair = await store._run(lambda call: store._get(call, path, consistent=True), path)
                if not in_doubt or pair is None or pair.value != record.value:
                    raise
                record.index = pair.last_index
                break
            except (NotReachableError, RequestTimeoutError) as error:
                in_doubt = in_doubt or error.maybe_applied
        if self._records.get(path) is not record:
            await store._run(lambda call: store._delete(call, path, expected=record.index, guard=None), path)

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
        if record is None or self._records.get(path) is not record:
            return
        del self._records[path]
        if record.timer is not None:
            record.timer.cancel()
        if revoke:
            self._retire(record)

    def _retire(self, record: _Record) -> None:
        if not record.lifetime.keep_alive:
            self._discard(record.lease)

    def _discard(self, lease: Lease) -> None:
        self._revocations.start(self._revoke(lease))

    async def _revoke(self, lease: Lease) -> None:
        limit = self._store.config.request_timeout
        try:
            async with asyncio.timeout(limit) as deadline:
                await self._store._revoke(Call(deadline, limit), lease)
        except (StoreError, TimeoutError) as error:
            _log.debug("a lease was left to expire: %s", error)

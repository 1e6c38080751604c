"""Registrations: keys that live as long as the instances of services do, and no longer."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Self

from aiolibkv.coordination.attempts import Attempts
from aiolibkv.coordination.removal import remove
from aiolibkv.errors import (
    KeyExistsError,
    NotReachableError,
    RequestTimeoutError,
    StoreClosedError,
    StoreError,
)
from aiolibkv.protocol import AsyncStore
from aiolibkv.starting import start
from aiolibkv.types import KVPair

_LEAVING_TIME = 2.0
"""Seconds for which leaving a registration waits until it is removed."""

_log = logging.getLogger("aiolibkv")


@dataclass(eq=False)
class _Trace:
    """What registrations have left at a key, or may have.

    Attributes:
        values: what they wrote.
        pair: the last one that is known to have been there.
        is_in_doubt: whether a write may come to pass late.
        removal: what removes it, in the background.
    """

    values: set[bytes] = field(default_factory=set)
    pair: KVPair | None = None
    is_in_doubt: bool = False
    removal: asyncio.Task[None] | None = None


_leaving: dict[tuple[int, str], _Trace] = {}
"""What is being removed, by the store's identity and the key, for the next registration there to take over.

A store need not be hashable. Its identity is its own as long as an entry is here: what removes refers to it.
"""


@dataclass(frozen=True)
class Instance:
    """One instance of a service.

    Attributes:
        service: the service's name.
        id: what tells it from the service's other instances.
        address: where it is reached.
        metadata: whatever else others should know.
    """

    service: str
    id: str
    address: str
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)


class Registration:
    """An instance that is registered while its ``async with`` lasts.

    After an outage, an expiry or a deletion by somebody else the key comes back; it is removed on leaving. What a
    server refuses meanwhile is tried again, with a warning and growing pauses. Once left, it may be entered again.

    Cancellation: of entering, the instance is not registered; of leaving, it is removed all the same.
    Cost: a put with keep_alive on entering, a delete on leaving, and a watch of the key in between.

    Attributes:
        instance: what is registered.
        key: where.
    """

    def __init__(self, store: AsyncStore, key: str, instance: Instance, ttl: float) -> None:
        """Make a registration that does not stand yet."""
        self.instance = instance
        self.key = key
        self._store = store
        self._ttl = ttl
        self._place = (id(store), key)
        self._value = json.dumps(asdict(instance), ensure_ascii=False).encode()
        self._healing: asyncio.Task[None] | None = None
        self._trace = _Trace()
        self._attempts = Attempts(store, key, f"the registration {key!r}", ttl)
        self._is_entered = False

    def __repr__(self) -> str:
        return f"<Registration {self.key!r}, {'entered' if self._is_entered else 'not entered'}>"

    async def __aenter__(self) -> Self:
        """Register the instance; when that fails, and may have come to pass, it is removed as on leaving.

        Raises:
            RuntimeError: it is entered already.
        """
        if self._is_entered:
            raise RuntimeError(f"the registration {self.key!r} is entered already; make another one")
        self._is_entered = True
        try:
            self._trace = _leaving.get(self._place) or _Trace()
            if self._trace.removal is not None:
                self._trace.removal.cancel()
                await asyncio.wait({self._trace.removal})
            await self._put(self._store.put(self.key, self._value, ttl=self._ttl, keep_alive=True))
        except BaseException:
            self._is_entered = False
            if self._trace.values:
                self._start_leaving(self._leave(None))
            raise
        self._healing = start(self._heal())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the registration; when no server does it now, as soon as one does, while the store is open."""
        healing, self._healing = self._healing, None
        if healing is not None:
            healing.cancel()
        self._is_entered = False
        leaving = self._start_leaving(self._leave(healing))
        await asyncio.wait({leaving}, timeout=_LEAVING_TIME)
        if not leaving.done():
            _log.warning(
                "the registration %r could not be removed yet; it is removed as soon as a server answers", self.key
            )

    async def _put(self, put: Awaitable[KVPair]) -> None:
        """Await a put, and take note of what it leaves."""
        trace = self._trace
        try:
            trace.pair = await put
        except (StoreError, asyncio.CancelledError) as error:
            if not isinstance(error, StoreError) or error.maybe_applied:
                trace.values.add(self._value)
                trace.is_in_doubt = True
            raise
        trace.values.add(self._value)

    def _start_leaving(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        leaving = self._trace.removal = start(work)
        _leaving[self._place] = self._trace
        leaving.add_done_callback(self._left)
        return leaving

    def _left(self, leaving: asyncio.Task[None]) -> None:
        if self._trace.removal is leaving and _leaving.get(self._place) is self._trace:
            del _leaving[self._place]
        if not leaving.cancelled() and (error := leaving.exception()) is not None:
            _log.warning("the registration %r was not removed: %s", self.key, error)

    async def _leave(self, healing: asyncio.Task[None] | None) -> None:
        if healing is not None:
            await asyncio.wait({healing})
            if not healing.cancelled() and (failure := healing.exception()) is not None:
                _log.warning("the registration %r was no longer kept up: %s", self.key, failure)
        try:
            await self._remove()
        except StoreClosedError:
            return
        if self._trace.is_in_doubt:
            self._start_leaving(self._keep_removed())

    async def _remove(self) -> None:
        trace = self._trace
        await remove(self._store, self.key, trace.pair, trace.values, self._attempts)

    async def _keep_removed(self) -> None:
        """Remove what appears late: a server that was stopped may carry out a put when it goes on."""
        try:
            async with asyncio.timeout(self._ttl), self._store.watch(self.key) as watch:
                async for pair in watch:
                    if pair is not None:
                        await self._remove()
        except (TimeoutError, StoreClosedError):
            return

    async def _heal(self) -> None:
        """Look after the key, also when that was refused: a right that was taken away may be given back."""
        try:
            while True:
                try:
                    await self._look_after()
                except StoreError as error:
                    await self._attempts.failed(error)
        except StoreClosedError:
            return

    async def _look_after(self) -> None:
        is_there = True
        async with self._store.watch(self.key) as watch:
            while True:
                try:
                    # What came and went again between two items of the watch shows in neither: look again.
                    async with asyncio.timeout(None if is_there else self._ttl):
                        is_there = await anext(watch) is not None
                except TimeoutError:
                    _log.debug("a registration has not been seen again yet")
                if is_there:
                    self._attempts.succeeded()
                else:
                    await self._register_again()

    async def _register_again(self) -> None:
        while True:
            try:
                await self._put(self._store.atomic_put(self.key, self._value, None, ttl=self._ttl, keep_alive=True))
            except (NotReachableError, RequestTimeoutError) as error:
                await self._attempts.failed(error)
            except KeyExistsError:
                return
            else:
                return

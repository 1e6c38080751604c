"""Service discovery: instances register themselves under keys that live as long as they do."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from aiolibkv.coordination.view import View
from aiolibkv.errors import (
    InvalidKeyError,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    NotReachableError,
    RequestTimeoutError,
    StoreClosedError,
)
from aiolibkv.keys import normalize_key
from aiolibkv.protocol import AsyncStore, Watch
from aiolibkv.types import KVPair

DEFAULT_TTL = 20.0

_LEAVING_TIME = 2.0
"""Seconds for which leaving a registration waits until it is removed."""

_log = logging.getLogger("aiolibkv")

_leaving: dict[tuple[int, str], asyncio.Task[None]] = {}
"""What removes a store's key in the background; it ends with the store at the latest, which keeps the key alive."""


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
    metadata: Mapping[str, str] = field(default_factory=dict)


class Discovery:
    """The services below a directory; an instance is JSON at ``<path>/<service>/<id>``."""

    def __init__(self, store: AsyncStore, path: str) -> None:
        """Look at a directory of a store; nothing is sent.

        Args:
            store: where the services are.
            path: the directory.
        """
        self._store = store
        self._path = normalize_key(path)

    def register(
        self,
        service: str,
        address: str,
        *,
        id: str | None = None,  # noqa: A002 - the instance's id
        metadata: Mapping[str, str] | None = None,
        ttl: float = DEFAULT_TTL,
    ) -> Registration:
        """Make a registration; it stands for the time of its ``async with``.

        Args:
            service: the service's name, one segment of a key.
            address: where the instance is reached.
            id: a random one when not given; one segment of a key.
            metadata: whatever else others should know.
            ttl: seconds after which the instance is gone when this process died.
        """
        instance = Instance(service, uuid4().hex if id is None else id, address, dict(metadata or {}))
        key = f"{self._directory(service)}/{_segment(instance.id)}"
        return Registration(self._store, key, instance, ttl)

    async def instances(self, service: str) -> Sequence[Instance]:
        """Read the instances of a service, sorted by id; none is no error.

        Cancellation: harmless.
        Cost: one list.
        """
        try:
            return _instances(await self._store.list(self._directory(service)), self._directory(service))
        except KeyNotFoundError:
            return []

    async def services(self) -> Sequence[str]:
        """Read the names of the services that have instances, sorted; none is no error.

        Cancellation: harmless.
        Cost: one list of all instances.
        """
        try:
            pairs = await self._store.list(self._path)
        except KeyNotFoundError:
            return []
        below = (pair.key[len(self._path) + 1 :].partition("/") for pair in pairs)
        return sorted({service for service, _, name in below if name and "/" not in name})

    def watch(self, service: str) -> Watch[Sequence[Instance]]:
        """Watch the instances of a service: the present ones first, then each change.

        Cost: that of a watch.
        """
        directory = self._directory(service)
        return View(self._store.watch_tree(directory), lambda snapshot: _instances(snapshot, directory))

    def _directory(self, service: str) -> str:
        return f"{self._path}/{_segment(service)}"


class Registration:
    """An instance that is registered while its ``async with`` lasts.

    After an outage, an expiry or a deletion by somebody else the key comes back; it is removed on leaving.

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
        self._value = json.dumps(asdict(instance), ensure_ascii=False).encode()
        self._healing: asyncio.Task[None] | None = None
        self._pair: KVPair | None = None
        self._is_in_doubt = False

    async def __aenter__(self) -> Self:
        """Register the instance; when that fails, and may have come to pass, it is removed as on leaving."""
        if (leaving := _leaving.get(self._place)) is not None:
            leaving.cancel()
            await asyncio.wait({leaving})
        try:
            self._pair = await self._store.put(self.key, self._value, ttl=self._ttl, keep_alive=True)
        except (NotReachableError, RequestTimeoutError, asyncio.CancelledError):
            self._is_in_doubt = True
            self._start_leaving(self._leave())
            raise
        self._healing = asyncio.get_running_loop().create_task(self._heal())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the registration; when no server can be reached, as soon as one can, while the store is open."""
        leaving = self._start_leaving(self._leave())
        await asyncio.wait({leaving}, timeout=_LEAVING_TIME)
        if not leaving.done():
            _log.warning("the registration %r is removed later, no server can be reached", self.key)

    @property
    def _place(self) -> tuple[int, str]:
        return id(self._store), self.key

    def _start_leaving(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        leaving = asyncio.get_running_loop().create_task(work)
        _leaving[self._place] = leaving
        leaving.add_done_callback(self._left)
        return leaving

    def _left(self, leaving: asyncio.Task[None]) -> None:
        if _leaving.get(self._place) is leaving:
            del _leaving[self._place]
        if not leaving.cancelled() and (error := leaving.exception()) is not None:
            _log.warning("the registration %r was not removed: %s", self.key, error)

    async def _leave(self) -> None:
        if self._healing is not None:
            self._healing.cancel()
            await asyncio.wait({self._healing})
            if not self._healing.cancelled() and (failure := self._healing.exception()) is not None:
                _log.warning("a registration was not looked after any more: %s", failure)
        await self._remove()
        if self._is_in_doubt:
            self._start_leaving(self._keep_removed())

    async def _remove(self) -> None:
        """Delete the key, also when it is not there: else the store creates again what a lost lease took away."""
        pair = self._pair
        while True:
            try:
                pair = pair or await self._store.get(self.key)
                if pair.value == self._value:
                    await self._store.atomic_delete(self.key, pair)
                return
            except StoreClosedError:
                return
            except KeyNotFoundError:
                if pair is not None or self._pair is None:
                    return
                pair = self._pair
            except KeyModifiedError:
                pair = None
            except (NotReachableError, RequestTimeoutError) as error:
                _log.debug("a registration cannot be removed yet: %s", error)

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
        async with self._store.watch(self.key) as watch:
            async for pair in watch:
                if pair is None:
                    await self._register_again()

    async def _register_again(self) -> None:
        while True:
            try:
                self._pair = await self._store.atomic_put(self.key, self._value, None, ttl=self._ttl, keep_alive=True)
            except KeyExistsError:
                return
            except asyncio.CancelledError:
                self._is_in_doubt = True
                raise
            except (NotReachableError, RequestTimeoutError) as error:
                self._is_in_doubt = True
                _log.debug("a registration cannot be made again yet: %s", error)
            else:
                return


def _segment(name: str) -> str:
    if "/" in name:
        raise InvalidKeyError("a service's name and an id have no slash", key=name)
    return normalize_key(name)


def _instances(pairs: Iterable[KVPair], directory: str) -> list[Instance]:
    found = []
    for pair in pairs:
        if "/" in pair.key[len(directory) + 1 :]:
            continue
        try:
            found.append(_read(pair.value))
        except (ValueError, TypeError, KeyError) as error:
            _log.warning("the registration %r cannot be read: %s", pair.key, error)
    return found


def _read(value: bytes) -> Instance:
    fields: dict[str, Any] = json.loads(value)
    if not isinstance(fields, dict):
        raise TypeError("no JSON object")
    instance = Instance(fields["service"], fields["id"], fields["address"], fields.get("metadata", {}))
    if not all(isinstance(text, str) for text in (instance.service, instance.id, instance.address)):
        raise TypeError("service, id and address are texts")
    if not isinstance(instance.metadata, dict):
        raise TypeError("metadata is an object")
    return instance

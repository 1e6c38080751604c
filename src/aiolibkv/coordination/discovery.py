"""Service discovery: instances register themselves under keys that live as long as they do."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from aiolibkv.coordination.mirror import Mirror
from aiolibkv.coordination.registration import Instance, Registration
from aiolibkv.coordination.view import View
from aiolibkv.errors import InvalidKeyError, KeyNotFoundError
from aiolibkv.keys import normalize_key
from aiolibkv.protocol import AsyncStore, Watch
from aiolibkv.types import KVPair, Snapshot

DEFAULT_TTL = 20.0

_log = logging.getLogger("aiolibkv")


class Discovery:
    """The services below a directory; an instance is JSON at ``<path>/<service>/<id>``.

    While it is entered, by ``async with``, it keeps a mirror of the directory: ``instances`` and ``services`` then cost
    nothing, for those who ask at each request, and may be out of date as far as ``mirror.is_stale`` tells. Cancellation
    and cost of entering it are those of a Mirror.

    Attributes:
        mirror: what is read while it is entered, else None.
    """

    def __init__(self, store: AsyncStore, path: str) -> None:
        """Look at a directory of a store; nothing is sent.

        Args:
            store: where the services are.
            path: the directory.
        """
        self.mirror: Mirror | None = None
        self._store = store
        self._path = normalize_key(path)
        self._unreadable: set[str] = set()
        self._mirrored = _Instances(self._path, self._read)
        self._mirrored_at: Snapshot | None = None

    async def __aenter__(self) -> Self:
        """Start the mirror, and wait for its first state.

        Raises:
            RuntimeError: it is entered already.
        """
        if self.mirror is not None:
            raise RuntimeError(f"the discovery of {self._path!r} is entered already")
        self.mirror = Mirror(self._store, self._path)
        try:
            await self.mirror.__aenter__()
        except BaseException:
            self.mirror = None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the mirror."""
        mirror, self.mirror = self.mirror, None
        if mirror is not None:
            await mirror.__aexit__(kind, error, trace)

    def register(
        self,
        service: str,
        address: str,
        *,
        id: str | None = None,  # noqa: A002 - the instance's id
        metadata: Mapping[str, str] | None = None,
        ttl: float = DEFAULT_TTL,
    ) -> Registration:
        """Make a registration, which lasts as long as its ``async with``.

        Args:
            service: the service's name, one segment of a key.
            address: where the instance is reached.
            id: a random one when not given; one segment of a key.
            metadata: whatever else others should know.
            ttl: seconds after which the instance is gone when this process died.

        Returns:
            The registration, for ``async with``.

        Raises:
            TypeError: service, address or id is not a str, or metadata not a mapping of str to str.
            InvalidKeyError: the service or the id cannot be a segment of a key.
            ValueError: the ttl is not a finite number above 0.
        """
        chosen = uuid4().hex if id is None else id
        key = f"{self._directory(service)}/{_segment(chosen)}"
        if not isinstance(address, str):
            raise TypeError(f"an address is a str, not {type(address).__name__}")
        data = {} if metadata is None else metadata
        if not isinstance(data, Mapping) or not all(isinstance(text, str) for item in data.items() for text in item):
            raise TypeError("metadata is a mapping of str to str")
        # This Lock is not used: making it checks the ttl.
        self._store.new_lock(key, ttl=ttl)
        return Registration(self._store, key, Instance(service, chosen, address, dict(data)), ttl)

    async def instances(self, service: str) -> Sequence[Instance]:
        """Read the instances of a service, sorted by id; none is no error.

        Cancellation: harmless.
        Cost: one list; nothing while the discovery is entered.
        """
        directory = self._directory(service)
        if self.mirror is not None:
            snapshot = self.mirror.snapshot
            if snapshot is not self._mirrored_at:
                self._mirrored.update(snapshot)
                self._mirrored_at = snapshot
            return _copies(self._mirrored.of(service))
        found = _Instances(self._path, self._read)
        try:
            found.update(await self._store.list(directory))
        except KeyNotFoundError:
            return []
        return found.of(service)

    async def services(self) -> Sequence[str]:
        """Read the names of the services that have instances, sorted; none is no error.

        Cancellation: harmless.
        Cost: one call of children, which grows with the services; nothing while the discovery is entered.
        """
        if self.mirror is not None:
            names = [pair.key[len(self._path) + 1 :] for pair in self.mirror.snapshot]
            return sorted({service for service, slash, _ in (name.partition("/") for name in names) if slash})
        try:
            children = await self._store.children(self._path)
        except KeyNotFoundError:
            return []
        # Without its slash a name may have another place in the order.
        return sorted(name.removesuffix("/") for name in children if name.endswith("/"))

    def watch(self, service: str) -> Watch[Sequence[Instance]]:
        """Watch the instances of a service: the current ones first, then all of them after each change.

        Cost: that of a watch.
        """
        found = _Instances(self._path, self._read)

        def see(snapshot: Snapshot) -> Sequence[Instance]:
            found.update(snapshot)
            return found.of(service)

        return View(self._store.watch_tree(self._directory(service)), see, _copies)

    def _directory(self, service: str) -> str:
        return f"{self._path}/{_segment(service)}"

    def _read(self, pair: KVPair) -> Instance | None:
        """Read an instance; the first time that one cannot be read, it is told."""
        try:
            instance = _parse(pair.value)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if pair.key not in self._unreadable:
                self._unreadable.add(pair.key)
                _log.warning("the registration %r cannot be read: %s", pair.key, error)
            return None
        self._unreadable.discard(pair.key)
        return instance


class _Instances:
    """The instances that were read from the last pairs given; a pair that stays is read once."""

    def __init__(self, path: str, read: Callable[[KVPair], Instance | None]) -> None:
        self._path = path
        self._read = read
        self._known: dict[str, tuple[KVPair, Instance | None]] = {}
        self._services: dict[str, list[Instance]] = {}

    def update(self, pairs: Iterable[KVPair]) -> None:
        """Take other pairs."""
        before, self._known, self._services = self._known, {}, {}
        for pair in pairs:
            place = _place(self._path, pair.key)
            if place is None:
                continue
            known = before.get(pair.key)
            instance = known[1] if known is not None and known[0] == pair else self._read(pair)
            self._known[pair.key] = pair, instance
            if instance is not None:
                self._services.setdefault(place[0], []).append(instance)

    def of(self, service: str) -> Sequence[Instance]:
        """Return the instances of a service."""
        return self._services.get(service, [])


def _copies(instances: Sequence[Instance]) -> Sequence[Instance]:
    """Return instances whose metadata the caller may change."""
    return [replace(instance, metadata=dict(instance.metadata)) for instance in instances]


def _place(path: str, key: str) -> tuple[str, str] | None:
    """Return the service and the id that a key is for, None when it is for no instance."""
    service, _, name = key[len(path) + 1 :].partition("/")
    return (service, name) if name and "/" not in name else None


def _segment(name: str) -> str:
    if isinstance(name, str) and "/" in name:
        raise InvalidKeyError("a service's name and an id have no slash", key=name)
    return normalize_key(name)


def _parse(value: bytes) -> Instance:
    fields: dict[str, Any] = json.loads(value)
    if not isinstance(fields, dict):
        raise TypeError("no JSON object")
    instance = Instance(fields["service"], fields["id"], fields["address"], fields.get("metadata", {}))
    if not all(isinstance(text, str) for text in (instance.service, instance.id, instance.address)):
        raise TypeError("service, id and address are texts")
    if not isinstance(instance.metadata, dict):
        raise TypeError("metadata is an object")
    return instance

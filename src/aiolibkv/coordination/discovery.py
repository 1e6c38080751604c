"""Service discovery: instances register themselves under keys that live as long as they do."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from aiolibkv.coordination.registration import Instance, Registration
from aiolibkv.coordination.view import View
from aiolibkv.errors import InvalidKeyError, KeyNotFoundError
from aiolibkv.keys import normalize_key
from aiolibkv.protocol import AsyncStore, Watch
from aiolibkv.types import KVPair

DEFAULT_TTL = 20.0

_log = logging.getLogger("aiolibkv")


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
        except (ValueError, TypeError, KeyError, RecursionError) as error:
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

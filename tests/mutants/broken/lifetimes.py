"""ttl and keep_alive, broken."""

# ruff: noqa: ARG001, ARG005 - what is patched keeps its signature

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import pytest

from aiolibkv import (
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    KVPair,
    StoreClosedError,
)
from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.backends.memory.space import Space
from aiolibkv.store import Lease, Store
from aiolibkv.store.leases import Sessions
from aiolibkv.testing.conformance.lifetimes import KeepingAlive, Lifetimes
from mutants.broken.registry import mutant, space_of


@mutant(Lifetimes)
def ttl_never_ends(patch: pytest.MonkeyPatch) -> None:
    """A key with a ttl stays."""
    patch.setattr(Space, "_expire", lambda self: None)


@mutant(Lifetimes)
def ttl_ends_early(patch: pytest.MonkeyPatch) -> None:
    """A key goes before its time."""
    lease = MemoryDriver.new_lease
    patch.setattr(
        MemoryDriver, "new_lease", lambda self, lifetime: lease(self, lifetime._replace(ttl=lifetime.ttl * 0.3))
    )


@mutant(Lifetimes)
def ttl_outlives_the_next_put(patch: pytest.MonkeyPatch) -> None:
    """A put without ttl leaves the key under its old lease."""
    put = Space.put

    def keep(self: Space, path: str, value: bytes, expected: Any, lease: Any, guard: Any) -> int:
        old = self._lease_of.get(path)
        return put(self, path, value, expected, old if lease is None and old in self._ends else lease, guard)

    patch.setattr(Space, "put", keep)
    patch.setattr(MemoryDriver, "revoke", _revoke_nothing)


async def _revoke_nothing(self: MemoryDriver, call: Any, lease: Lease) -> None:
    if asyncio.current_task() is None:
        space_of(self).revoke(lease)


@mutant(Lifetimes)
def ttl_is_not_refreshed(patch: pytest.MonkeyPatch) -> None:
    """A put again leaves the key to the end of its first ttl."""
    put = Space.put

    def first(self: Space, path: str, value: bytes, expected: Any, lease: Any, guard: Any) -> int:
        old = self._lease_of.get(path)
        return put(self, path, value, expected, old if lease is not None and old in self._ends else lease, guard)

    patch.setattr(Space, "put", first)
    patch.setattr(MemoryDriver, "revoke", _revoke_nothing)


@mutant(Lifetimes)
def ttl_ends_what_others_wrote(patch: pytest.MonkeyPatch) -> None:
    """At the end of the ttl the client deletes the key, whoever wrote it last."""
    put = Store.put

    async def deleting(self: Store[Any], key: str, value: bytes, *, ttl: Any = None, **settings: Any) -> KVPair:
        pair = await put(self, key, value, ttl=ttl, **settings)
        if ttl is not None and not settings.get("keep_alive"):
            asyncio.get_running_loop().call_later(ttl, delete, self.driver, self._path(key))
        return pair

    def delete(self: MemoryDriver, path: str) -> None:
        with suppress(KeyNotFoundError):
            if self.space is not None:
                self.space.delete(path, None, None)

    patch.setattr(Store, "put", deleting)


@mutant(Lifetimes)
def ttl_of_a_refused_write_counts(patch: pytest.MonkeyPatch) -> None:
    """A refused write gives its ttl to the key."""
    put = Space.put

    def attach(self: Space, path: str, value: bytes, expected: Any, lease: Any, guard: Any) -> int:
        try:
            return put(self, path, value, expected, lease, guard)
        except (KeyExistsError, KeyModifiedError):
            if lease is not None and path in self._pairs:
                self._release(path)
                self._lease_of[path] = lease
                self._paths_of[lease].add(path)
            raise

    patch.setattr(Space, "put", attach)


@mutant(Lifetimes)
def ttl_of_an_atomic_put_is_ignored(patch: pytest.MonkeyPatch) -> None:
    """atomic_put does not know ttl."""
    put = Space.put

    def ignore(self: Space, path: str, value: bytes, expected: Any, lease: Any, guard: Any) -> int:
        return put(self, path, value, expected, lease if expected is None else None, guard)

    patch.setattr(Space, "put", ignore)


@mutant(Lifetimes)
def ttl_may_be_anything(patch: pytest.MonkeyPatch) -> None:
    """A ttl that cannot be means none."""
    put = Store.put

    async def lenient(self: Store[Any], key: str, value: bytes, *, ttl: Any = None, **settings: Any) -> KVPair:
        return await put(self, key, value, ttl=None if ttl == 0 else ttl, **settings)

    patch.setattr(Store, "put", lenient)


@mutant(KeepingAlive)
def keep_alive_stays_after_close(patch: pytest.MonkeyPatch) -> None:
    """close leaves what was kept alive to its ttl."""
    revoke, close, closed = MemoryDriver.revoke, Sessions.close, WeakSet[Any]()

    async def lazy(self: MemoryDriver, call: Any, lease: Lease) -> None:
        if self not in closed:
            await revoke(self, call, lease)

    async def leave(self: Sessions) -> None:
        closed.add(self._calls.driver)
        await close(self)

    patch.setattr(MemoryDriver, "revoke", lazy)
    patch.setattr(Sessions, "close", leave)


@mutant(KeepingAlive)
def keep_alive_takes_others_with_it(patch: pytest.MonkeyPatch) -> None:
    """close deletes every key that was once kept alive."""
    put, close = Store.put, Store.close
    alive: defaultdict[Any, set[str]] = defaultdict(set)

    async def remember(self: Store[Any], key: str, value: bytes, **settings: Any) -> KVPair:
        pair = await put(self, key, value, **settings)
        if settings.get("keep_alive"):
            alive[self].add(key)
        return pair

    async def delete(self: Store[Any]) -> None:
        for key in alive.pop(self, set()):
            with suppress(KeyNotFoundError, StoreClosedError):
                await self.delete(key)
        await close(self)

    patch.setattr(Store, "put", remember)
    patch.setattr(Store, "close", delete)


@mutant(KeepingAlive)
def keep_alive_is_not_renewed(patch: pytest.MonkeyPatch) -> None:
    """A renewal does nothing."""

    async def renew(self: MemoryDriver, call: Any, lease: Lease) -> bool:
        return True

    patch.setattr(MemoryDriver, "renew", renew)


@mutant(KeepingAlive)
def a_lease_without_keys_is_taken_for_lost(patch: pytest.MonkeyPatch) -> None:
    """A key kept alive that somebody else deleted comes back, as by a driver that counts what it renews."""
    renew = Space.renew
    patch.setattr(Space, "renew", lambda self, lease: bool(self._paths_of.get(lease)) and renew(self, lease))

"""A backend without leases, as the author's page has it: the server keeps a lifetime, and an owner, with each key."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest

from aiolibkv import registry
from aiolibkv.store import Call, Guard, Lifetime, Removal, Step, Write
from aiolibkv.testing.conformance import StoreFactory, factory_of
from aiolibkv.testing.conformance.lifetimes import KeepingAlive, Lifetimes
from testing.test_third_party import Distant, Server, Session


class KeyServer(Server):
    """A server whose lifetimes are those of keys: ``ends`` is by path."""

    def now(self) -> float:
        now = asyncio.get_running_loop().time()
        self.remove([path for path, end in self.ends.items() if end <= now])
        return now

    def remove(self, paths: Sequence[str]) -> None:
        for path in paths:
            self.ends.pop(path, None)
        super().remove(paths)

    def write(self, steps: Sequence[Step], owner: Owner | None, guard: Guard | None) -> list[int]:
        indexes = self.commit(steps, None, guard)
        for step in steps:
            if isinstance(step, Write | Removal):
                self.ends.pop(step.path, None)
            if isinstance(step, Write) and owner is not None:
                self.pairs[step.path] = self.pairs[step.path][0], owner.id
                self.ends[step.path] = self.now() + owner.ttl
        return indexes

    def owned(self, owner: Owner) -> list[str]:
        self.now()
        return [path for path in owner.paths if path in self.pairs and self.pairs[path][1] == owner.id]

    def prolong(self, owner: Owner) -> bool:
        owned = self.owned(owner)
        self.ends.update(dict.fromkeys(owned, self.now() + owner.ttl))
        return bool(owned)


class Owner(Session):
    """A lease of this driver's own making: whose keys they are, and which."""

    def __init__(self, ttl: float) -> None:
        super().__init__(ttl, overshoot=0.5)
        self.paths: set[str] = set()
        self.renewed = 0.0


class Keyed(Distant):
    """The driver of such a server."""

    name = "keyed"
    make_server = KeyServer

    async def commit(
        self, call: Call, steps: Sequence[Step], *, lease: Any = None, guard: Guard | None = None
    ) -> Sequence[int]:
        if lease is not None:
            lease.paths |= {step.path for step in steps if isinstance(step, Write)}
        return await self._write(call, lambda server: _keys(server).write(steps, lease, guard))

    def new_lease(self, lifetime: Lifetime) -> Session:
        return Owner(lifetime.ttl)

    async def grant(self, call: Call, lease: Any) -> None:
        lease.renewed = asyncio.get_running_loop().time()

    async def renew(self, call: Call, lease: Any) -> bool:
        sent = asyncio.get_running_loop().time()
        if not await self._ask(lambda server: _keys(server).prolong(lease)) and sent > lease.renewed + lease.ttl:
            return False
        lease.renewed = sent
        return True

    async def revoke(self, call: Call, lease: Any) -> None:
        await self._ask(lambda server: server.remove(_keys(server).owned(lease)))


def _keys(server: Server) -> KeyServer:
    assert isinstance(server, KeyServer)
    return server


class TestKeyed(KeepingAlive, Lifetimes):
    """The parts of the suite in which lifetimes matter."""

    @pytest.fixture
    def store_factory(self, monkeypatch: pytest.MonkeyPatch) -> StoreFactory:
        monkeypatch.setattr(registry, "_registered", {"keyed": Keyed})
        return factory_of("keyed", [uuid4().hex])

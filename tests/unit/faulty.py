"""A memory store whose calls fail as a script says."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiolibkv.backends.memory import MemoryStore
from aiolibkv.errors import NotReachableError
from aiolibkv.store import Call, Feed, Guard, Lease, LeaseLost, Lifetime
from aiolibkv.types import KVPair

T = TypeVar("T")


class FaultyStore(MemoryStore):
    """Fails the next calls of an operation with what ``faults[operation]`` holds.

    "unsent": fails before anything is sent. "lost request": sent, not applied, no answer. "lost answer": applied,
    no answer. "mute": applied, and silent until cancelled. "lease lost": refused. An exception: raised.
    """

    lease_excess = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.faults: dict[str, deque[str | Exception]] = defaultdict(deque)
        self.calls: list[str] = []
        self.leases: list[Lease] = []

    async def _faulty(self, name: str, call: Call, work: Callable[[], Awaitable[T]], *, writes: bool = False) -> T:
        self.calls.append(name)
        fault = self.faults[name].popleft() if self.faults[name] else ""
        if isinstance(fault, Exception):
            raise fault
        if fault == "unsent":
            raise NotReachableError
        if fault == "lease lost":
            raise LeaseLost
        if writes:
            call.writing()
        if fault == "lost request":
            raise NotReachableError
        try:
            result = await work()
        except Exception:
            call.settled()
            raise
        if fault == "lost answer":
            raise NotReachableError
        if fault == "mute":
            await asyncio.get_running_loop().create_future()
        return result

    async def _get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
        get = super()._get
        return await self._faulty("get", call, lambda: get(call, path, consistent=consistent))

    async def _put(
        self, call: Call, path: str, value: bytes, *, expected: int | None, lease: Lease | None, guard: Guard | None
    ) -> int:
        put = super()._put
        return await self._faulty(
            "put", call, lambda: put(call, path, value, expected=expected, lease=lease, guard=guard), writes=True
        )

    async def _delete(self, call: Call, path: str, *, expected: int | None, guard: Guard | None) -> None:
        delete = super()._delete
        await self._faulty("delete", call, lambda: delete(call, path, expected=expected, guard=guard), writes=True)

    async def _follow(self, feed: Feed) -> None:
        self.calls.append("follow")
        fault = self.faults["follow"].popleft() if self.faults["follow"] else ""
        if isinstance(fault, Exception):
            raise fault
        await super()._follow(feed)

    def _lease(self, lifetime: Lifetime) -> Lease:
        lease = Lease(lifetime.ttl + (0 if lifetime.keep_alive else self.lease_excess))
        self.leases.append(lease)
        return lease

    async def _grant(self, call: Call, lease: Lease) -> None:
        grant = super()._grant
        await self._faulty("grant", call, lambda: grant(call, lease))

    async def _renew(self, call: Call, lease: Lease) -> bool:
        renew = super()._renew
        return await self._faulty("renew", call, lambda: renew(call, lease))

    async def _revoke(self, call: Call, lease: Lease) -> None:
        revoke = super()._revoke
        await self._faulty("revoke", call, lambda: revoke(call, lease))

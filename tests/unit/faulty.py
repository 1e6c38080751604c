"""A memory driver whose calls fail as a script says."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.backends.memory.space import Space
from aiolibkv.config import Config
from aiolibkv.errors import NotReachableError
from aiolibkv.store import UNSEEN, Acquired, Call, Feed, Guard, Lease, LeaseLostError, Lifetime, Store, Unseen
from aiolibkv.types import KVPair

T = TypeVar("T")


class FaultyDriver(MemoryDriver):
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
            raise LeaseLostError
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

    def read_at_once(self, path: str) -> KVPair | Unseen | None:
        return UNSEEN

    async def get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
        get = super().get
        return await self._faulty("get", call, lambda: get(call, path, consistent=consistent))

    async def put(
        self, call: Call, path: str, value: bytes, *, expected: int | None, lease: Lease | None, guard: Guard | None
    ) -> int:
        put = super().put
        return await self._faulty(
            "put", call, lambda: put(call, path, value, expected=expected, lease=lease, guard=guard), writes=True
        )

    async def delete(self, call: Call, path: str, *, expected: int | None, guard: Guard | None) -> None:
        delete = super().delete
        await self._faulty("delete", call, lambda: delete(call, path, expected=expected, guard=guard), writes=True)

    async def acquire(self, call: Call, path: str, value: bytes, lease: Lease, *, line: str | None) -> Acquired:
        acquire = super().acquire
        return await self._faulty("put", call, lambda: acquire(call, path, value, lease, line=line), writes=True)

    async def release(self, call: Call, path: str, index: int, place: str | None, lease: Lease) -> None:
        release = super().release
        await self._faulty("release", call, lambda: release(call, path, index, place, lease), writes=True)

    async def follow(self, feed: Feed) -> None:
        self.calls.append("follow")
        fault = self.faults["follow"].popleft() if self.faults["follow"] else ""
        if isinstance(fault, Exception):
            raise fault
        await super().follow(feed)

    def new_lease(self, lifetime: Lifetime) -> Lease:
        lease = Lease(lifetime.ttl + (0 if lifetime.keep_alive else self.lease_excess))
        self.leases.append(lease)
        return lease

    async def grant(self, call: Call, lease: Lease) -> None:
        grant = super().grant
        await self._faulty("grant", call, lambda: grant(call, lease))

    async def renew(self, call: Call, lease: Lease) -> bool:
        renew = super().renew
        return await self._faulty("renew", call, lambda: renew(call, lease))

    async def revoke(self, call: Call, lease: Lease) -> None:
        revoke = super().revoke
        await self._faulty("revoke", call, lambda: revoke(call, lease))


class FaultyStore(Store[FaultyDriver]):
    """A store on a faulty driver, whose script and notes are at hand."""

    def __init__(
        self,
        endpoints: Sequence[str] = (),
        config: Config | None = None,
        *,
        driver: type[FaultyDriver] = FaultyDriver,
    ) -> None:
        super().__init__(driver(endpoints, config))
        self.faults = self.driver.faults
        self.calls = self.driver.calls
        self.leases = self.driver.leases

    @property
    def space(self) -> Space:
        """What it keeps its data in."""
        assert self.driver.space is not None
        return self.driver.space

    @property
    def idle_leases(self) -> int:
        """How many leases are kept for the next lock."""
        return self._sessions.idle

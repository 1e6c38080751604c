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
from aiolibkv.store import Call, Feed, Lease, LeaseLostError, Lifetime, Store, WrappedDriver

T = TypeVar("T")

_READS = ("get", "grant", "renew", "revoke")
WRITES = ("put", "delete", "release")
_SAME_AS = {**{name: name for name in (*_READS, *WRITES)}, "exists": "get", "acquire": "put"}


class FaultyDriver(WrappedDriver):
    """Fails the next calls of an operation with what ``faults[operation]`` holds.

    "unsent": fails before anything is sent. "lost request": sent, not applied, no answer. "lost answer": applied,
    no answer. "mute": applied, and silent until cancelled. "lease lost": refused. An exception: raised.
    """

    lease_excess = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.memory = MemoryDriver(*args, **kwargs)
        super().__init__(self.memory)
        self.faults: dict[str, deque[str | Exception]] = defaultdict(deque)
        self.calls: list[str] = []
        self.leases: list[Lease] = []

    async def request(self, name: str, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        if name not in _SAME_AS:
            return await work()
        fault = self._next_fault(name := _SAME_AS[name])
        if fault == "unsent":
            raise NotReachableError
        if fault == "lease lost":
            raise LeaseLostError
        if name in WRITES:
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

    async def following(self, feed: Feed, follow: Callable[[], Awaitable[None]]) -> None:
        self._next_fault("follow")
        await follow()

    def new_lease(self, lifetime: Lifetime) -> Lease:
        lease = Lease(lifetime.ttl + (0 if lifetime.keep_alive else self.lease_excess))
        self.leases.append(lease)
        return lease

    def _next_fault(self, name: str) -> str:
        self.calls.append(name)
        fault = self.faults[name].popleft() if self.faults[name] else ""
        if isinstance(fault, Exception):
            raise fault
        return fault


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
        assert self.driver.memory.space is not None
        return self.driver.memory.space

    @property
    def idle_leases(self) -> int:
        """How many leases are kept for the next lock."""
        return self._sessions.idle

"""The memory driver: each call is one step of the space; other tasks run before it, but for most gets."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Generator, Sequence
from itertools import islice
from typing import ClassVar

from aiolibkv.backends.memory.space import Space, close_space, open_space
from aiolibkv.config import Config
from aiolibkv.errors import KeyExistsError
from aiolibkv.store import (
    UNSEEN,
    Acquired,
    Call,
    Driver,
    Feed,
    Guard,
    Lease,
    Lifetime,
    Listing,
    Names,
    Page,
    Removed,
    Step,
    Unseen,
)
from aiolibkv.types import Capabilities, KVPair

_MAX_VALUE_BYTES = 1024 * 1024
_MAX_OPERATIONS = 1000
_READS_AT_ONCE = 64
"""How many reads are made without waiting before one lets other tasks run."""


@types.coroutine
def _give_way() -> Generator[None]:
    """Let other tasks run once, as ``asyncio.sleep(0)`` does at a higher cost."""
    yield


class MemoryDriver(Driver[Lease]):
    """A store in memory: private, or shared by name between the stores of one event loop.

    Every write lets other tasks run before it takes effect, as with a server. One that is cancelled meanwhile was not
    applied.
    """

    name: ClassVar[str] = "memory"
    keeps_line: ClassVar[bool] = True
    capabilities: Capabilities = Capabilities(
        distributed=False,
        durable=False,
        survives_failover=False,
        ttl_survives_client=False,
        min_ttl=0,
        max_value_bytes=_MAX_VALUE_BYTES,
        max_operations=_MAX_OPERATIONS,
        max_commit_bytes=16 * _MAX_VALUE_BYTES,
        ttl_overshoot=lambda _: 0.0,
    )

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        """Make a driver.

        Args:
            endpoints: the name of the space to share; private when there is none.
            config: settings.

        Raises:
            ValueError: more than one name.
        """
        super().__init__(endpoints, config)
        if len(self.endpoints) > 1:
            raise ValueError("memory: at most one endpoint, the name to share")
        self._space_name = self.endpoints[0] if self.endpoints else None
        self.space: Space | None = None
        self._reads = 0

    async def connect(self) -> None:
        self.space = open_space(self._space_name)

    async def disconnect(self) -> None:
        if self.space is not None:
            close_space(self._space_name, self.space)
            self.space = None

    def read_at_once(self, path: str) -> KVPair | Unseen | None:
        self._reads += 1
        if self._reads % _READS_AT_ONCE == 0 or self.space is None:
            return UNSEEN
        return self.space.get(path)

    async def get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
        return (await self._reach()).get(path)

    async def get_many(self, call: Call, paths: Sequence[str], *, consistent: bool) -> Sequence[KVPair | None]:
        space = await self._reach()
        return [space.get(path) for path in paths]

    async def list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
        space = await self._reach()
        return Listing(list(space.below(directory)), space.get(directory) is not None)

    async def keys(self, call: Call, directory: str, *, consistent: bool) -> Names:
        space = await self._reach()
        return Names(list(space.paths_below(directory)), space.get(directory) is not None)

    async def children(self, call: Call, directory: str, *, consistent: bool) -> Names:
        space = await self._reach()
        return Names(space.children(directory), space.get(directory) is not None)

    async def page(self, call: Call, directory: str, after: str, limit: int) -> Page:
        space = await self._reach()
        pairs = list(islice(space.below(directory, after), limit + 1))
        return Page(pairs[:limit], len(pairs) > limit, space.get(directory) is not None)

    async def commit(
        self, call: Call, steps: Sequence[Step], *, lease: Lease | None = None, guard: Guard | None = None
    ) -> Sequence[int]:
        return (await self._reach()).commit(steps, lease, guard)

    async def put(
        self, call: Call, path: str, value: bytes, *, expected: int | None, lease: Lease | None, guard: Guard | None
    ) -> int:
        return (await self._reach()).put(path, value, expected, lease, guard)

    async def delete(self, call: Call, path: str, *, expected: int | None, guard: Guard | None) -> None:
        (await self._reach()).delete(path, expected, guard)

    async def acquire(self, call: Call, path: str, value: bytes, lease: Lease, *, line: str | None) -> Acquired:
        space = await self._reach()
        if line is not None and next(space.paths_below(line), None) is not None:
            raise KeyExistsError(key=line)
        index = space.put(path, value, 0, lease, None)
        return Acquired(index, index)

    async def delete_tree(self, call: Call, directory: str, *, guard: Guard | None) -> Removed:
        space = await self._reach()
        return Removed(space.delete_tree(directory, self.hidden, guard), space.get(directory) is not None)

    async def follow(self, feed: Feed) -> None:
        space = await self._reach()
        space.attach(feed)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            space.detach(feed)

    def new_lease(self, lifetime: Lifetime) -> Lease:
        return Lease(lifetime.ttl)

    async def grant(self, call: Call, lease: Lease) -> None:
        (await self._reach()).grant(lease)

    async def renew(self, call: Call, lease: Lease) -> bool:
        return (await self._reach()).renew(lease)

    async def revoke(self, call: Call, lease: Lease) -> None:
        (await self._reach()).revoke(lease)

    async def _reach(self) -> Space:
        await _give_way()
        assert self.space is not None, "open"
        return self.space

"""The memory store: every call is one step of the space, after giving way to other tasks once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from aiolibkv.backends.memory.space import Space, close_space, open_space
from aiolibkv.config import Config
from aiolibkv.errors import KeyNotFoundError
from aiolibkv.store import BaseStore, Call, Feed, Guard, Lease, Lifetime, Listing
from aiolibkv.types import Capabilities, KVPair

_MAX_VALUE_BYTES = 1024 * 1024


class MemoryStore(BaseStore):
    """A store in memory: private, or shared by name between the stores of one event loop.

    Every call gives way to other tasks before it takes effect, as a server would make it wait; a cancelled call has
    therefore not been applied.
    """

    name: ClassVar[str] = "memory"
    capabilities = Capabilities(
        distributed=False,
        durable=False,
        linearizable_reads=True,
        exact_compare=True,
        atomic_list=True,
        atomic_delete_tree=True,
        every_change=True,
        lifetime_with_children=True,
        ttl_survives_client=False,
        min_ttl=0,
        max_value_bytes=_MAX_VALUE_BYTES,
        ttl_overshoot=lambda _: 0.0,
    )

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        """Make a store.

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
        self._space: Space | None = None

    async def _connect(self) -> None:
        self._space = open_space(self._space_name)

    async def _disconnect(self) -> None:
        if self._space is not None:
            close_space(self._space_name, self._space)
            self._space = None

    async def _reach(self) -> Space:
        await asyncio.sleep(0)
        assert self._space is not None, "open"
        return self._space

    async def _get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
        return (await self._reach()).get(path)

    async def _list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
        space = await self._reach()
        return Listing(space.below(directory), space.get(directory) is not None)

    async def _put(
        self, call: Call, path: str, value: bytes, *, expected: int | None, lease: Lease | None, guard: Guard | None
    ) -> int:
        return (await self._reach()).put(path, value, expected, lease, guard)

    async def _delete(self, call: Call, path: str, *, expected: int | None, guard: Guard | None) -> None:
        (await self._reach()).delete(path, expected, guard)

    async def _delete_tree(self, call: Call, directory: str, *, guard: Guard | None) -> int:
        space = await self._reach()
        deleted = space.delete_tree(directory, self._hidden, guard)
        if not deleted and directory != self.config.prefix and space.get(directory) is None:
            raise KeyNotFoundError
        return deleted

    async def _follow(self, feed: Feed) -> None:
        space = await self._reach()
        space.attach(feed)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            space.detach(feed)

    def _lease(self, lifetime: Lifetime) -> Lease:
        return Lease(lifetime.ttl)

    async def _grant(self, call: Call, lease: Lease) -> None:
        (await self._reach()).grant(lease)

    async def _renew(self, call: Call, lease: Lease) -> bool:
        return (await self._reach()).renew(lease)

    async def _revoke(self, call: Call, lease: Lease) -> None:
        (await self._reach()).revoke(lease)

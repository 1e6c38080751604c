"""This library."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from subjects.base import Subject, Tell


class Aiolibkv(Subject):
    """This library; what is measured are its public calls."""

    name = "aiolibkv"
    package = "aiolibkv"

    async def connect(self) -> None:
        from aiolibkv import open_store

        self._store = await self.stack.enter_async_context(open_store(self.url))

    @property
    def store(self) -> Any:
        return self._store

    async def put(self, key: str, value: bytes) -> None:
        await self._store.put(key, value)

    async def get(self, key: str) -> None:
        await self._store.get(key)

    async def exists(self, key: str) -> None:
        await self._store.exists(key)

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        return await self._store.atomic_put(key, value, previous)

    async def delete(self, key: str) -> None:
        await self._store.delete(key)

    async def list(self, directory: str) -> int:
        return len([(pair.key, pair.value) for pair in await self._store.list(directory)])

    def lock(self, key: str) -> AbstractAsyncContextManager[object]:
        lock: AbstractAsyncContextManager[object] = self._store.new_lock(key)
        return lock

    async def watch(self, key: str, tell: Tell) -> None:
        async with self._store.watch(key) as pairs:
            async for pair in pairs:
                tell(pair.value if pair else b"")


class InMemory(Aiolibkv):
    """This library's memory store, which another process does not see."""

    is_shared = False

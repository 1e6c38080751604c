"""aiozk."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import urlsplit

from subjects.base import Subject, Tell


class Aiozk(Subject):
    """The client aiozk."""

    name = "aiozk"
    package = "aiozk"
    note = "Reads without sync, so they may be old; its lock tells no loss."

    async def connect(self) -> None:
        import aiozk

        self._no_node = aiozk.exc.NoNode
        self._client = aiozk.ZKClient(urlsplit(self.url).netloc)
        await self._client.start()
        self.stack.push_async_callback(self._client.close)

    async def put(self, key: str, value: bytes) -> None:
        try:
            await self._client.set(f"/{key}", value, -1)
        except self._no_node:
            await self._client.ensure_path(f"/{key}")
            await self._client.set(f"/{key}", value, -1)

    async def get(self, key: str) -> None:
        assert (await self._client.get(f"/{key}"))[0]

    async def exists(self, key: str) -> None:
        await self._client.exists(f"/{key}")

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        if previous is None:
            await self.put(key, value)
            return (await self._client.get(f"/{key}"))[1].version
        return (await self._client.set(f"/{key}", value, previous)).version

    async def delete(self, key: str) -> None:
        await self._client.delete(f"/{key}", force=True)

    async def list(self, directory: str) -> int:
        names = await self._client.get_children(f"/{directory}")
        return len(await asyncio.gather(*(self._client.get(f"/{directory}/{name}") for name in names)))

    def lock(self, key: str) -> AbstractAsyncContextManager[object]:
        lock: AbstractAsyncContextManager[object] = self._client.recipes.Lock(f"/{key}")
        return lock

    async def watch(self, key: str, tell: Tell) -> None:
        watcher = self._client.recipes.DataWatcher()
        watcher.add_callback(f"/{key}", tell)
        try:
            await asyncio.Event().wait()
        finally:
            watcher.remove_callback(f"/{key}", tell)

"""aetcd."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from subjects.base import Subject, Tell


class Aetcd(Subject):
    """The client aetcd."""

    name = "aetcd"
    package = "aetcd"
    note = "Its compare-and-swap compares values, not modifications. Its lock is not renewed, and wakes all who wait."

    async def connect(self) -> None:
        from aetcd import Client

        server = urlsplit(self.url)
        self._client = await self.stack.enter_async_context(Client(server.hostname, server.port))

    async def put(self, key: str, value: bytes) -> None:
        await self._client.put(key.encode(), value)

    async def get(self, key: str) -> None:
        assert (await self._client.get(key.encode())).value

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        if previous is None:
            await self.put(key, value)
        else:
            assert await self._client.replace(key.encode(), previous, value)
        return value

    async def delete(self, key: str) -> None:
        await self._client.delete(key.encode())

    async def list(self, directory: str) -> int:
        pairs = await self._client.get_prefix(f"{directory}/".encode())
        return len([(pair.key.decode(), pair.value) for pair in pairs])

    @asynccontextmanager
    async def lock(self, key: str) -> AsyncIterator[object]:
        lock = self._client.lock(key.encode(), ttl=60)
        assert await lock.acquire(timeout=None)
        yield lock
        await lock.release()

    async def watch(self, key: str, tell: Tell) -> None:
        events = await self._client.watch(key.encode())
        tell(b"")
        async for event in events:
            tell(event.kv.value)

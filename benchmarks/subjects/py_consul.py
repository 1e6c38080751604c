"""py-consul."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from subjects.base import Subject, Tell


class PyConsul(Subject):
    """The asyncio client of py-consul."""

    name = "py-consul"
    package = "py-consul"
    note = "Its compare-and-swap reads the new index."
    most_watches = 50

    async def connect(self) -> None:
        from consul.aio import Consul

        server = urlsplit(self.url)
        client = Consul(server.hostname, server.port, verify=False, consistency="consistent")
        self.stack.push_async_callback(client.close)
        self._kv = client.kv

    async def put(self, key: str, value: bytes) -> None:
        assert await self._kv.put(key, value)

    async def get(self, key: str) -> None:
        assert (await self._kv.get(key))[1]["Value"]

    async def exists(self, key: str) -> None:
        await self._kv.get(key, keys=True)

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        assert await self._kv.put(key, value, cas=previous or 0)
        return (await self._kv.get(key))[1]["ModifyIndex"]

    async def delete(self, key: str) -> None:
        await self._kv.delete(key)

    async def list(self, directory: str) -> int:
        pairs = (await self._kv.get(f"{directory}/", recurse=True))[1]
        return len([(pair["Key"], pair["Value"]) for pair in pairs])

    async def watch(self, key: str, tell: Tell) -> None:
        index = None
        while True:
            index, pair = await self._kv.get(key, index=index)
            tell(pair["Value"])

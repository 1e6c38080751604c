"""The memory store of py-key-value-aio."""

from __future__ import annotations

from subjects.base import Subject


class PyKeyValue(Subject):
    """The memory store of py-key-value-aio."""

    name = "py-key-value"
    package = "py-key-value-aio"
    note = "Its memory store; its values are dicts and end as JSON, so the bytes are written in hexadecimal."
    is_shared = False

    async def connect(self) -> None:
        from key_value.aio.stores.memory import MemoryStore

        self._store = MemoryStore()

    async def put(self, key: str, value: bytes) -> None:
        await self._store.put(key, {"value": value.hex()})

    async def get(self, key: str) -> None:
        pair = await self._store.get(key)
        assert pair is not None
        bytes.fromhex(pair["value"])

    async def delete(self, key: str) -> None:
        await self._store.delete(key)

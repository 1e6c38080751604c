"""Plain asyncpg."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from subjects.base import Subject, Tell

_PUT = """
INSERT INTO pairs VALUES ($1, $2, 1) ON CONFLICT (key) DO UPDATE SET value = $2, version = pairs.version + 1
"""
_CHANGE = (
    f"WITH written AS ({_PUT} RETURNING key, value) SELECT pg_notify(key, convert_from(value, 'UTF8')) FROM written"
)


class Asyncpg(Subject):
    """A table of pairs on asyncpg."""

    name = "asyncpg"
    package = "asyncpg"
    note = "A pool of ten connections, a statement for each call; NOTIFY with the value for watches; advisory locks."

    async def connect(self) -> None:
        import asyncpg

        self._pool = await self.stack.enter_async_context(asyncpg.create_pool(self.url))
        self._listener: Any = None
        self._one_at_a_time = asyncio.Lock()
        table = 'CREATE TABLE IF NOT EXISTS pairs (key text COLLATE "C" PRIMARY KEY, value bytea, version bigint)'
        await self._pool.execute(table)

    async def put(self, key: str, value: bytes) -> None:
        await self._pool.execute(_PUT, key, value)

    async def get(self, key: str) -> None:
        assert await self._pool.fetchrow("SELECT value, version FROM pairs WHERE key = $1", key)

    async def exists(self, key: str) -> None:
        await self._pool.fetchval("SELECT 1 FROM pairs WHERE key = $1", key)

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        if previous is None:
            await self.put(key, value)
            return await self._pool.fetchval("SELECT version FROM pairs WHERE key = $1", key)
        statement = (
            "UPDATE pairs SET value = $2, version = version + 1 WHERE key = $1 AND version = $3 RETURNING version"
        )
        version = await self._pool.fetchval(statement, key, value, previous)
        assert version == previous + 1
        return version

    async def delete(self, key: str) -> None:
        await self._pool.execute("DELETE FROM pairs WHERE key = $1", key)

    async def list(self, directory: str) -> int:
        statement = "SELECT key, value, version FROM pairs WHERE key > $1 AND key < $2 ORDER BY key"
        return len(await self._pool.fetch(statement, f"{directory}/", f"{directory}0"))

    @asynccontextmanager
    async def lock(self, key: str) -> AsyncIterator[object]:
        async with self._pool.acquire() as connection:
            await connection.execute("SELECT pg_advisory_lock(hashtext($1))", key)
            yield connection
            await connection.execute("SELECT pg_advisory_unlock(hashtext($1))", key)

    async def watch(self, key: str, tell: Tell) -> None:
        def told(connection: object, pid: int, channel: str, value: str) -> None:
            tell(value.encode())

        async with self._one_at_a_time:
            if self._listener is None:
                self._listener = await self.stack.enter_async_context(self._pool.acquire())
            await self._listener.add_listener(key, told)
        tell(b"")
        try:
            await asyncio.Event().wait()
        finally:
            async with self._one_at_a_time:
                await self._listener.remove_listener(key, told)

    async def change(self, key: str, value: bytes) -> None:
        await self._pool.execute(_CHANGE, key, value)

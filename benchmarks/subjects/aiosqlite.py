"""aiosqlite."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from subjects.base import Subject


class Aiosqlite(Subject):
    """A table of pairs on aiosqlite."""

    name = "aiosqlite"
    package = "aiosqlite"
    note = (
        "A transaction for each put, with the same durability (synchronous = FULL); no log for watches, no lifetimes."
    )

    async def connect(self) -> None:
        import aiosqlite

        path = urlsplit(self.url).path.removeprefix("/") + ".aiosqlite"
        self._database = await self.stack.enter_async_context(aiosqlite.connect(path, isolation_level=None))
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "CREATE TABLE IF NOT EXISTS pairs (key TEXT PRIMARY KEY, value BLOB, version INTEGER) WITHOUT ROWID",
        ):
            await self._database.execute(statement)

    async def put(self, key: str, value: bytes) -> None:
        statement = "INSERT INTO pairs VALUES (?1, ?2, 1) ON CONFLICT DO UPDATE SET value = ?2, version = version + 1"
        await self._database.execute(statement, (key, value))

    async def get(self, key: str) -> None:
        assert await self._database.execute_fetchall("SELECT value, version FROM pairs WHERE key = ?", (key,))

    async def exists(self, key: str) -> None:
        await self._database.execute_fetchall("SELECT 1 FROM pairs WHERE key = ?", (key,))

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        if previous is None:
            await self.put(key, value)
            rows = await self._database.execute_fetchall("SELECT version FROM pairs WHERE key = ?", (key,))
            return next(iter(rows))[0]
        statement = "UPDATE pairs SET value = ?, version = version + 1 WHERE key = ? AND version = ?"
        cursor = await self._database.execute(statement, (value, key, previous))
        assert cursor.rowcount == 1
        return previous + 1

    async def delete(self, key: str) -> None:
        await self._database.execute("DELETE FROM pairs WHERE key = ?", (key,))

    async def list(self, directory: str) -> int:
        bounds = (f"{directory}/", f"{directory}0")
        statement = "SELECT key, value, version FROM pairs WHERE key > ? AND key < ? ORDER BY key"
        return len(list(await self._database.execute_fetchall(statement, bounds)))

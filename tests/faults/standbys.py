"""A PostgreSQL server with a standby that each commit waits for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiolibkv.testing.servers import PostgresServer


@asynccontextmanager
async def replicated() -> AsyncIterator[tuple[PostgresServer, PostgresServer]]:
    """Run a primary and its standby; when the standby is promoted, it waits for none itself."""
    async with PostgresServer() as primary, PostgresServer(standby_of=primary) as standby:
        await primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        await primary.sql("SELECT pg_reload_conf()")
        await standby.sql("ALTER SYSTEM SET synchronous_standby_names = ''", database="postgres")
        await standby.sql("SELECT pg_reload_conf()", database="postgres")
        yield primary, standby

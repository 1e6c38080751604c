import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from aiolibkv.testing.scale import eventually
from aiolibkv.testing.servers import PgBouncer, PostgresServer, ServerCommandError
from aiolibkv.testing.servers.process import run_program


async def psql(endpoint: str, statement: str, *, password: str = "app-password") -> str:
    """Run a statement as a user does, not as superuser."""
    url = f"postgresql://app@{endpoint}/app"
    return await run_program(["psql", url, "-Atc", statement], {**os.environ, "PGPASSWORD": password})


@pytest.mark.parametrize("version", [None, "18"])
@pytest.mark.asyncio
async def test_a_standby_is_promoted(version: str | None) -> None:
    async with PostgresServer(version=version) as primary:
        await psql(primary.endpoint, "CREATE TABLE kept AS SELECT 1 AS value")
        async with PostgresServer(version=version, standby_of=primary) as standby:
            assert [await primary.is_leader(), await standby.is_leader()] == [True, False]
            await psql(primary.endpoint, "INSERT INTO kept VALUES (2)")

            async def has_followed() -> bool:
                return await psql(standby.endpoint, "SELECT count(*) FROM kept") == "2\n"

            await eventually(has_followed, within=10, message="nothing is streamed")
            with pytest.raises(ServerCommandError, match="read-only"):
                await psql(standby.endpoint, "INSERT INTO kept VALUES (3)")
            await primary.kill()
            await standby.promote()
            await psql(standby.endpoint, "INSERT INTO kept VALUES (3)")
            await standby.restart()
            assert await standby.is_leader()
            assert await psql(standby.endpoint, "SELECT count(*) FROM kept") == "3\n"


@pytest.mark.asyncio
async def test_pgbouncer() -> None:
    settings = {"max_connections": "7"}
    async with (
        PostgresServer(settings=settings) as server,
        PgBouncer(server, settings={"max_client_conn": "9"}) as proxy,
    ):

        async def hands_on() -> None:
            assert await psql(proxy.endpoint, "SHOW max_connections") == "7\n"

        await hands_on()
        await proxy.kill()
        with pytest.raises(ServerCommandError, match="refused"):
            await hands_on()
        await proxy.start()
        await hands_on()
        for endpoint in (server.endpoint, proxy.endpoint):
            with pytest.raises(ServerCommandError, match=r"authentication failed"):
                await psql(endpoint, "SELECT 1", password="wrong")
            assert await psql(endpoint, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == "f\n"


@pytest.mark.asyncio
async def test_all_processes_of_postgresql_are_paused_and_killed() -> None:
    async with PostgresServer() as server:
        busy = asyncio.create_task(psql(server.endpoint, "SELECT pg_sleep(600)"))

        async def serving() -> bool:
            return await server.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%(600)'") == "1\n"

        await eventually(serving, within=10, message="it does not serve")
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()  # noqa: ASYNC240 -- no disk

        def states() -> set[str]:
            found = set()
            for pid in children:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    found.add(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
            # A session that had just ended cannot be reaped by a server that is frozen.
            return found - {"Z"}

        server.pause()
        await eventually(lambda: states() == {"T"}, within=10, message="some go on")
        server.resume()
        await eventually(lambda: "T" not in states(), within=10, message="some stayed frozen")
        await server.kill()
        assert not states()
        with pytest.raises(ServerCommandError, match="server closed the connection"):
            await busy
        await server.start()

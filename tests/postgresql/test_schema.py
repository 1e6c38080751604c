"""Where a store is in a database, and who may create it."""

import asyncio
import subprocess
import sys

import pytest

from aiolibkv import AccessDeniedError, Config, StoreError, open_store
from aiolibkv.backends.postgresql import schema
from aiolibkv.testing.servers import PostgresServer
from postgresql.conftest import Make
from stores import PostgresStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


async def test_a_url(server: PostgresServer) -> None:
    user = ":".join(server.user)
    async with open_store(
        f"postgresql://{user}@{server.endpoint}/{server.database}?prefix=app&schema=other&table=store"
    ) as store:
        pair = await store.put("key", b"value")
        async with open_store(f"postgres://{user}@{server.endpoint}?schema=other&table=store") as same:
            assert (await same.get("app/key")).last_index == pair.last_index
    assert await server.sql("SELECT key, value FROM other.store") == "app/key|\\x76616c7565\n"
    with pytest.raises(StoreError, match="no such database"):
        await open_store(f"postgresql://{user}@{server.endpoint}/nowhere").open()


async def test_a_role_that_may_not_create_is_told_what_to_run(server: PostgresServer, make: Make) -> None:
    await server.sql("CREATE ROLE guest LOGIN PASSWORD 'guest-password'; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    settings = {"username": "guest", "password": "guest-password", "options": {"database": "app", "table": "told"}}
    with pytest.raises(AccessDeniedError, match="aiolibkv postgresql-schema") as caught:
        await make(**settings).open()
    assert "guest-password" not in str(caught.value)
    program = [sys.executable, "-m", "aiolibkv", "postgresql-schema", "--table", "told", "--role", "guest"]
    printed = subprocess.run(program, capture_output=True, text=True, check=True).stdout  # noqa: ASYNC221 - it is short
    await server.sql(printed)
    async with make(**settings) as store:
        pair = await store.put("key", b"value", keep_alive=True)
        assert await store.get("key") == pair
        assert await store.delete_tree("") == 1
    # Again, and over what is there already.
    await server.sql(schema(table="told", role="guest"))


async def test_a_wrong_password(make: Make) -> None:
    with pytest.raises(AccessDeniedError):
        await make(password="wrong").open()


async def test_stores_that_begin_at_once_create_one_schema(make: Make) -> None:
    stores: list[PostgresStore] = [make(options={"table": "at_once"}) for _ in range(5)]
    await asyncio.gather(*(store.open() for store in stores))
    try:
        indexes = {(await store.put("key", b"")).last_index for store in stores}
        assert len(indexes) == 5
    finally:
        await asyncio.gather(*(store.close() for store in stores))


async def test_a_newer_format_is_refused(server: PostgresServer, make: Make) -> None:
    settings = {"options": {"table": "newer"}}
    async with make(**settings):
        pass
    await server.sql("UPDATE newer_state SET version = 99")
    with pytest.raises(StoreError, match="format 99"):
        await make(**settings).open()


@pytest.mark.parametrize("options", [{"table": "a b"}, {"schema": 'x"'}, {"table": "t" * 49}, {"database": ""}])
async def test_names_that_cannot_be(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="postgresql"):
        PostgresStore(["localhost"], Config(options=options))

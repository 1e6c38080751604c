"""Where a store is in a database, and who may create it."""

import asyncio
import subprocess
import sys

import pytest

from aiolibkv import AccessDeniedError, Config, StoreError, open_store
from aiolibkv.backends.postgresql import schema
from aiolibkv.backends.postgresql.schema import Identifiers
from aiolibkv.testing.conformance.suite import follow
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
    await server.sql(
        "CREATE ROLE guest LOGIN PASSWORD 'guest-password'; REVOKE CREATE ON SCHEMA public FROM PUBLIC;"
        " ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;"
        " REVOKE SELECT ON pg_database FROM PUBLIC"
    )
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


async def test_names_of_other_tables(server: PostgresServer, make: Make) -> None:
    """Those of another store, or of an application; they are left as they are."""
    await server.sql("CREATE TABLE orders AS SELECT 1 AS id, 'value' AS value")
    with pytest.raises(StoreError, match=r'table "public"\."orders" is there and not what the store wants'):
        await make(options={"table": "orders"}).open()
    assert await server.sql("SELECT * FROM orders") == "1|value\n"
    async with make(options={"table": "first"}) as store:
        await store.put("key", b"")
        with pytest.raises(StoreError, match=r'table "public"\."first_log" is there'):
            await make(options={"table": "first_log"}).open()
        async with make(options={"table": "first_logs"}) as other:
            assert not await other.exists("key")
            await other.put("key", b"")
            assert await store.delete_tree("") == 1
            assert await other.delete_tree("") == 1


async def test_another_version_has_functions_of_its_own(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of both work on the same tables."""
    options = {"table": "both"}
    async with make(options=options) as old:
        monkeypatch.setattr(sys.modules[Identifiers.__module__], "_FUNCTIONS", 2)
        async with make(options=options) as new, old.watch_tree("") as tree:
            await follow(tree, lambda snapshot: not snapshot)
            first = await old.put("key", b"1")
            async with new.new_lock("lock") as held:
                second = await new.atomic_put("key", b"2", first, guard=held)
                assert await old.new_lock("lock").try_acquire() is None
            third = await old.atomic_put("key", b"3", second)
            assert third.last_index == second.last_index + 2
            await follow(tree, lambda snapshot: list(snapshot) == [third])


@pytest.mark.parametrize("options", [{"table": "a b"}, {"schema": 'x"'}, {"table": "t" * 49}, {"database": ""}])
async def test_names_that_cannot_be(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="postgresql"):
        PostgresStore(["localhost"], Config(options=options))

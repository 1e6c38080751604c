"""PgBouncer, another version, and a standby that takes over."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import pytest_asyncio

from aiolibkv import (
    AccessDeniedError,
    AsyncStore,
    KeyModifiedError,
    LockLostError,
    NotReachableError,
    RequestTimeoutError,
    StoreError,
    update,
)
from aiolibkv.testing.conformance.suite import follow, next_of
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import PgBouncer, PostgresServer, ServerMissingError
from aiolibkv.testing.servers.process import installation
from postgresql.conftest import Make

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


@pytest_asyncio.fixture
async def primary() -> AsyncIterator[PostgresServer]:
    async with PostgresServer() as running:
        yield running


async def test_through_a_pooler_in_transaction_mode(server: PostgresServer, make: Make) -> None:
    """More stores than connections of the pooler to the server, so that these change from one call to the next."""
    settings = {"default_pool_size": "2", "max_client_conn": "100"}
    async with PgBouncer(server, settings=settings) as pooler:
        stores = [make(pooler.endpoint) for _ in range(6)]
        await asyncio.gather(*(store.open() for store in stores))
        try:
            value = bytes(range(256))
            odd = "a'b\"c\\d{e},$1"
            async with stores[0].watch_tree("") as watch:
                await next_of(watch)
                pairs = await asyncio.gather(
                    *(store.put(f"{odd}/{number}", value) for number in range(20) for store in stores)
                )
                assert len({pair.last_index for pair in pairs}) == 120
                last = max(pairs, key=lambda pair: pair.last_index)
                await follow(watch, lambda snapshot: last in snapshot)
            for store in stores:
                assert [pair.value for pair in await store.list(odd)] == [value] * 20
                assert await store.children("") == [f"{odd}/"]
            held = await stores[0].new_lock("lock", ttl=5).acquire()
            assert await stores[1].new_lock("lock", ttl=5).try_acquire() is None
            await stores[2].put("guarded", b"", guard=None)
            waiting = asyncio.ensure_future(stores[3].new_lock("lock", ttl=5).acquire())
            await stores[0].delete("lock")
            taken = await asyncio.wait_for(waiting, 20)
            assert taken.fencing_token > held.fencing_token
            with pytest.raises(LockLostError):
                await stores[0].put("guarded", b"", guard=held)
        finally:
            await asyncio.gather(*(store.close() for store in stores))


async def test_a_password_that_a_pooler_refuses(server: PostgresServer, make: Make) -> None:
    async with PgBouncer(server) as pooler:
        for account in ({"password": "wrong"}, {"username": "nobody"}):
            with pytest.raises(AccessDeniedError, match="the pooler refuses the user or the password"):
                await make(pooler.endpoint, **account).open()


async def test_a_pooler_in_statement_mode(server: PostgresServer, make: Make) -> None:
    async with PgBouncer(server, settings={"pool_mode": "statement"}) as pooler:
        with pytest.raises(StoreError, match="needs pool_mode = transaction"):
            await make(pooler.endpoint).open()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_a_database_of_another_encoding(server: PostgresServer, make: Make, encoding: str) -> None:
    name = encoding.lower()
    await server.sql(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0", database="postgres")
    with pytest.raises(StoreError, match=f"encoding is {encoding}; a store needs UTF8"):
        await make(options={"database": name}).open()


async def test_a_role_that_is_serializable(make: Make) -> None:
    """Its stores see what was written while they waited for each other, and need not begin again."""
    async with PostgresServer() as server, PgBouncer(server) as pooler:
        await server.sql("ALTER ROLE app SET default_transaction_isolation = 'serializable'")
        for endpoint in (server.endpoint, pooler.endpoint):
            async with AsyncExitStack() as stack:
                stores = [await stack.enter_async_context(make(endpoint)) for _ in range(4)]
                await asyncio.gather(*(update(store, "sum", _more) for store in stores for _ in range(5)))
                assert (await stores[0].get("sum")).value == b"x" * 20
                pairs = await asyncio.gather(*(store.put(f"{n}", b"") for n in range(20) for store in stores))
                assert len({pair.last_index for pair in pairs}) == 80
                await stores[0].delete("sum")
        # The statistics are complete when the connections are closed.
        rollbacks = "SELECT xact_rollback FROM pg_stat_database WHERE datname = 'app'"
        await pooler.kill()
        assert await server.sql(rollbacks, database="postgres") == "0\n"


def _more(value: bytes | None) -> bytes:
    return (value or b"") + b"x"


async def test_a_standby_takes_over(primary: PostgresServer, make: Make) -> None:
    """What it lost is not mistaken for what comes after, though others write all the time: neither by a watch, nor by a
    guard, nor by a comparison, and the lock that it does not know is lost.
    """
    username, password = primary.user
    async with (
        PostgresServer(standby_of=primary) as standby,
        make(standby.endpoint, primary.endpoint, username=username, password=password) as store,
        make(primary.endpoint, standby.endpoint, username=username, password=password) as other,
    ):
        assert not store.capabilities.survives_failover
        kept = await store.put("kept", b"1")
        early = await store.new_lock("early", ttl=30).acquire()
        await eventually(lambda: _has(standby, early.fencing_token), within=20, message="the standby follows")
        # From here on it hears nothing.
        await standby.sql("ALTER SYSTEM SET primary_conninfo = ''; ", database="postgres")
        await standby.sql("SELECT pg_reload_conf()", database="postgres")
        await eventually(lambda: _is_alone(primary), within=20, message="the standby hears nothing")
        async with store.watch_tree("") as watch:
            async with _load(other) as written:
                await eventually(lambda: bool(written), within=10, message="something is written")
                late = await store.new_lock("late", ttl=30).acquire()
                lost = await store.put("lost", b"1")
                await follow(watch, lambda snapshot: "lost" in snapshot)
                await primary.kill()
                await standby.promote()
                await eventually(lambda: _works(store), within=30, message="the store goes on")
                with pytest.raises(LockLostError):
                    await store.put("guarded", b"", guard=late)
                async with asyncio.timeout(scaled(20)):
                    await late.wait_lost()
                await store.put("guarded", b"", guard=early)
                with pytest.raises(KeyModifiedError):
                    await store.atomic_put("lost", b"2", lost)
                assert (await store.put("lost", b"2")).last_index > late.fencing_token + 100_000
                assert await store.get("kept") == kept
                await eventually(lambda: written[-1] > lost.last_index, within=20, message="the others go on")
            assert len(set(written)) == len(written)
            await store.put("last", b"")
            pairs = await store.list("")
            await follow(watch, lambda snapshot: list(snapshot) == list(pairs))


@asynccontextmanager
async def _load(store: AsyncStore) -> AsyncIterator[Sequence[int]]:
    """Write all the time; gives the indexes of what was acknowledged."""
    indexes: list[int] = []
    enough = asyncio.Event()

    async def write(number: int) -> None:
        while not enough.is_set():
            with contextlib.suppress(NotReachableError, RequestTimeoutError):
                indexes.append((await store.put(f"load/{number}", b"")).last_index)

    writing = [asyncio.ensure_future(write(number)) for number in range(4)]
    try:
        yield indexes
    finally:
        # A write that is cancelled may be carried out later.
        enough.set()
        await asyncio.wait(writing)


async def _has(server: PostgresServer, index: int) -> bool:
    try:
        return int(await server.sql("SELECT max(rev) FROM aiolibkv_log")) >= index
    except Exception:  # noqa: BLE001 - the table is not there yet
        return False


async def _is_alone(server: PostgresServer) -> bool:
    return await server.sql("SELECT count(*) FROM pg_stat_replication") == "0\n"


async def _works(store: object) -> bool:
    try:
        await store.put("works", b"")  # type: ignore[attr-defined]
    except StoreError:
        return False
    return True


async def test_a_commit_that_waits_for_a_standby_survives(make: Make) -> None:
    settings = {"synchronous_standby_names": "*", "synchronous_commit": "local"}
    async with PostgresServer(settings=settings) as server:
        async with make(server.endpoint) as store:
            assert not store.capabilities.survives_failover
        await server.sql("ALTER ROLE app SET synchronous_commit = 'on'")
        async with PostgresServer(standby_of=server), make(server.endpoint) as store:
            assert store.capabilities.survives_failover
            await store.put("key", b"")


def _is_installed(version: str) -> bool:
    try:
        installation("postgresql", version)
    except ServerMissingError:
        return False
    return True


@pytest.mark.parametrize(
    "version",
    [
        pytest.param("13", marks=pytest.mark.skipif(not _is_installed("13"), reason="it is not to be had everywhere")),
        "18",
    ],
)
async def test_another_version(make: Make, version: str) -> None:
    async with PostgresServer(version=version) as server, make(server.endpoint) as store:
        async with store.watch_tree("") as watch:
            await next_of(watch)
            await store.put("dir/key", b"", ttl=0.5)
            await follow(watch, lambda snapshot: "dir/key" in snapshot)
            await follow(watch, lambda snapshot: "dir/key" not in snapshot)
        async with store.new_lock("lock", ttl=2) as held:
            await store.put("key", b"", guard=held)
        assert await store.delete_tree("") == 1

"""Round trips, what has gathered is one transaction, and answers that are lost."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from aiolibkv import Delete, KeyExistsError, KVPair, NotReachableError, Put, RequestTimeoutError, StoreError
from aiolibkv.testing.conformance.suite import next_of
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import PostgresServer, ServerCommandError
from postgresql.conftest import Make
from stores import PostgresStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


async def _cost(proxy: FaultProxy, call: Callable[[], Awaitable[Any]]) -> int:
    with proxy.counting() as counts:
        await call()
    return counts.round_trips


async def test_round_trips(proxied: PostgresStore, proxy: FaultProxy) -> None:
    store = proxied
    reads: list[Callable[[], Awaitable[Any]]] = [
        lambda: store.list(""),
        lambda: store.keys(""),
        lambda: store.children(""),
        lambda: anext(store.scan("")),
        lambda: store.get_many(f"key{number}" for number in range(100)),
        lambda: store.delete_tree("dir"),
    ]
    await store.put("key", b"")
    await store.put("dir/key", b"")
    for read in reads:
        # A statement is prepared when it is first used.
        await read()
        await store.put("dir/key", b"")
        assert await _cost(proxy, read) == 1
    pair = await store.put("key", b"")
    for call in (
        lambda: store.put("key", b""),
        lambda: store.put("other", b"", ttl=60),
        lambda: store.get("key"),
        lambda: store.exists("key"),
        lambda: store.atomic_put("new", b"", None),
        lambda: store.commit(Put("a", b""), Put("b", b""), Delete("new")),
        lambda: store.delete("key"),
    ):
        assert await _cost(proxy, call) == 1
    with pytest.raises(StoreError):
        await store.atomic_delete("key", pair)
    assert await _cost(proxy, lambda: store.put("alive", b"", keep_alive=True)) == 2
    assert await _cost(proxy, lambda: store.put("alive", b"", keep_alive=True)) == 1


async def test_a_statement_is_sent_once_on_each_connection(direct: PostgresStore) -> None:
    """Later calls name it, so that the server has a plan at hand."""
    await direct.put("dir/key", b"")
    for _ in range(20):
        await direct.list("dir")
    uses = "SELECT max(generic_plans + custom_plans) FROM pg_prepared_statements WHERE statement LIKE '%LIMIT $4%'"
    assert direct.driver._connections is not None
    async with direct.driver._connections.borrow() as link:
        assert await link.connection.fetchval(uses) >= 10


async def test_what_has_gathered_is_one_transaction(direct: PostgresStore, server: PostgresServer) -> None:
    """One of them being refused, or cancelled, is nothing to the others."""

    async def transactions() -> int:
        return int(await server.sql("SELECT batch FROM aiolibkv_writers ORDER BY at DESC LIMIT 1"))

    there = await direct.put("there", b"")
    before = await transactions()
    puts = [asyncio.ensure_future(direct.put(f"{number:03}", b"v")) for number in range(300)]
    refused = asyncio.ensure_future(direct.atomic_put("there", b"x", None))
    cancelled = asyncio.ensure_future(direct.put("cancelled", b""))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(KeyExistsError):
        await refused
    indexes = {pair.last_index for pair in await asyncio.gather(*puts)}
    assert await transactions() - before <= 2
    assert len(indexes) == 300
    assert await direct.get("there") == there
    assert not await direct.exists("cancelled")


async def test_a_lost_answer_is_found_out(proxied: PostgresStore, proxy: FaultProxy, direct: PostgresStore) -> None:
    """The write is done and told as done, though the same value was there before."""
    previous = await direct.put("swapped", b"same")
    writes: list[Callable[[], Awaitable[Any]]] = [
        lambda: proxied.put("put", b"same"),
        lambda: proxied.atomic_put("created", b"", None),
        lambda: proxied.atomic_put("swapped", b"same", previous),
        lambda: proxied.put("short", b"", ttl=60),
        lambda: proxied.put("alive", b"", keep_alive=True),
    ]
    for write in writes:
        await proxied.exists("warm")
        proxy.cut_answers(1, matching=lambda sent: b"warm" not in sent)
        pair = await write()
        assert isinstance(pair, KVPair)
        assert await direct.get(pair.key) == pair
    proxy.cut_answers(1)
    assert await proxied.delete_tree("") == 5
    assert await direct.list("") == []


async def test_a_lost_answer_is_found_out_after_a_sweep(
    proxied: PostgresStore, proxy: FaultProxy, direct: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store itself has deleted what has expired before it asks."""
    writer = proxied.driver._writer
    find_out = writer._find_out
    asked: list[bool] = []

    async def sweep_and_find_out(*arguments: Any) -> Any:
        await direct.put("short", b"", ttl=0.05)
        await eventually(lambda: _is_over(direct, "short"), within=5, message="it has expired")
        await writer.sweep()
        asked.append(True)
        return await find_out(*arguments)

    monkeypatch.setattr(writer, "_find_out", sweep_and_find_out)
    previous = await direct.put("key", b"1")
    await proxied.exists("key")
    proxy.cut_answers(1)
    pair = await proxied.atomic_put("key", b"2", previous)
    assert asked == [True]
    assert await direct.get("key") == pair


async def _is_over(store: PostgresStore, key: str) -> bool:
    return not await store.exists(key)


async def test_a_request_that_arrives_late_does_nothing(proxied: PostgresStore, direct: PostgresStore) -> None:
    """What was found not to be written is repeated, and the first request never takes effect."""
    writer = proxied.driver._writer
    await proxied.put("key", b"1")
    async with proxied.driver._connections.borrow() as link:  # type: ignore[union-attr]
        late = writer._batch + 1
        assert (await link.rows(writer._resolve, writer._id, late))[0][0] is None
        arguments = [[1], [7], ["key"], [b"late"], [None], [None]]
        assert (await link.rows(writer._apply, writer._id, late, *arguments))[0][0] is None
    assert (await direct.get("key")).value == b"1"
    writer._batch = late
    assert (await proxied.put("key", b"2")).value == b"2"


async def test_a_write_in_doubt_is_told_when_the_server_stays_away(
    make: Make, proxy: FaultProxy, direct: PostgresStore
) -> None:
    async with make(proxy.endpoint, request_timeout=scaled(1.5)) as store:
        await store.put("key", b"1")
        proxy.cut_answers(1)
        proxy.refuse()
        with pytest.raises(StoreError) as caught:
            await store.put("key", b"2")
        assert isinstance(caught.value, NotReachableError | RequestTimeoutError)
        assert caught.value.maybe_applied
        proxy.accept()
        await eventually(lambda: _is_back(store), within=10, message="the store is back")
    assert (await direct.get("key")).value == b"2"


async def _is_back(store: PostgresStore) -> bool:
    try:
        return await store.exists("key")
    except StoreError:
        return False


async def test_a_statement_that_the_server_cancels_was_not_applied(
    direct: PostgresStore, server: PostgresServer
) -> None:
    """A transaction of somebody else that holds the store up is waited for; what waits can be cancelled there."""
    await direct.put("key", b"1")
    holding = asyncio.ensure_future(server.sql("BEGIN; SELECT * FROM aiolibkv_state FOR UPDATE; SELECT pg_sleep(3)"))
    waiting = "FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%apply%'"
    await eventually(lambda: _is_sleeping(server), within=5, message="the lock is held")
    writing = asyncio.ensure_future(direct.put("key", b"2"))
    await eventually(lambda: _is_true(server, f"SELECT count(*) > 0 {waiting}"), within=5, message="it waits")
    # Reads do not wait.
    assert (await direct.get("key")).value == b"1"
    await server.sql(f"SELECT pg_cancel_backend(pid) {waiting}")
    pair = await writing
    assert pair.value == b"2"
    await holding


async def test_reads_go_on_while_all_writes_wait(make: Make, server: PostgresServer) -> None:
    """A write, a sweep and a renewal wait for somebody who has locked what they need."""
    async with make(options={"table": "locked"}, request_timeout=scaled(20)) as store:
        pair = await store.put("key", b"1", keep_alive=True, ttl=300)
        lease = int(await server.sql("SELECT id FROM locked_leases"))
        holding = asyncio.ensure_future(
            server.sql("BEGIN; SELECT * FROM locked_state, locked_leases FOR UPDATE; SELECT pg_sleep(600)")
        )
        await eventually(lambda: _is_sleeping(server), within=5, message="the locks are held")
        writer = store.driver._writer
        waiting: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(store.put("other", b"")),
            asyncio.ensure_future(writer.sweep()),
            asyncio.ensure_future(writer.renew(lease)),
        ]
        stuck = "SELECT count(*) >= 2 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        try:
            await eventually(lambda: _is_true(server, stuck), within=5, message="they wait")
            async with asyncio.timeout(scaled(5)):
                assert await store.get("key") == pair
        finally:
            await server.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
            await asyncio.gather(holding, return_exceptions=True)
            await asyncio.gather(*waiting)


async def _is_sleeping(server: PostgresServer) -> bool:
    return await _is_true(server, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'")


async def _is_true(server: PostgresServer, statement: str) -> bool:
    return await server.sql(statement) == "t\n"


async def test_a_transaction_that_stays_open(make: Make, server: PostgresServer) -> None:
    """What writes have to read does not grow with the versions that it keeps, as a backup's does for hours."""
    async with make(options={"table": "growing"}) as store:
        await store.put("key", b"")
        username, password = server.user
        other = await asyncpg.connect(host=server.host, port=server.port, user=username, password=password)
        try:
            await other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM growing")
            for number in range(500):
                await store.put(f"key{number}", b"")
        finally:
            other.terminate()
    # A version for each write would be five times as many.
    assert int(await server.sql("SELECT pg_relation_size('growing_state') / 8192")) <= 2


async def test_renewals_leave_the_table_as_large_as_it_is(make: Make, server: PostgresServer) -> None:
    async with make(options={"table": "renewed"}) as store:
        await store.put("alive", b"", keep_alive=True)
        async with store.driver._connections.borrow() as link:  # type: ignore[union-attr]
            (lease,) = [int(row) for row in (await server.sql("SELECT id FROM renewed_leases")).split()]
            for _ in range(2000):
                assert await link.rows(store.driver._writer._renew, [lease])
    size, hot = (await server.sql(_BLOAT)).strip().split("|")
    assert int(size) <= 4 * 8192
    assert float(hot) > 0.9


_BLOAT = """SELECT pg_relation_size(relid), n_tup_hot_upd::float8 / greatest(n_tup_upd, 1)
    FROM pg_stat_user_tables WHERE relname = 'renewed_leases'"""


async def test_notifications_that_have_no_room(make: Make) -> None:
    """A session that listens and stays in its transaction fills the queue of all: writes go on, watches poll."""
    async with (
        PostgresServer(version="18", settings={"max_notify_queue_pages": "64"}) as server,
        make(server.endpoint) as store,
        store.watch("key") as watch,
    ):
        assert await next_of(watch) is None
        username, password = server.user
        hog = await asyncpg.connect(host=server.host, port=server.port, user=username, password=password)
        try:
            await hog.execute("LISTEN something")
            await hog.execute("BEGIN; SELECT 1")
            with pytest.raises(ServerCommandError, match="too many notifications"):
                for number in range(200):
                    await server.sql(f"SELECT pg_notify('something', repeat('x', 7900) || {number})")
            pair = await store.put("key", b"")
            assert await next_of(watch) == pair
        finally:
            hog.terminate()


async def test_what_was_told_as_not_written_is_not_written_later(
    proxy: FaultProxy, make: Make, direct: PostgresStore
) -> None:
    """A write whose time is over while it waits for a connection."""
    async with make(proxy.endpoint, request_timeout=scaled(0.5)) as store:
        await store.put("before", b"")
        proxy.blackhole()
        with pytest.raises((NotReachableError, RequestTimeoutError)):
            await store.put("in doubt", b"")
        proxy.reset()
        with pytest.raises((NotReachableError, RequestTimeoutError)) as late:
            await store.put("late", b"")
        assert not late.value.maybe_applied
        proxy.heal()

        async def is_written() -> bool:
            with contextlib.suppress(NotReachableError, RequestTimeoutError):
                return bool(await store.put("after", b""))
            return False

        await eventually(is_written, within=20, message="writes go on")
        assert not await direct.exists("late")

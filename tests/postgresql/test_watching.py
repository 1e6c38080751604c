"""Watches: one connection for all of them, and nothing lost when it breaks or the log is trimmed."""

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from aiolibkv.testing.conformance.suite import follow, next_of
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import PostgresServer
from stores import PostgresStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


async def test_many_watches_are_one_connection(
    proxied: PostgresStore, proxy: FaultProxy, direct: PostgresStore
) -> None:
    async with AsyncExitStack() as stack:
        watches = [await stack.enter_async_context(proxied.watch(f"key/{number}")) for number in range(1000)]
        assert await asyncio.gather(*(next_of(watch) for watch in watches)) == [None] * 1000
        assert proxy.connections_open <= 4
        with proxy.counting() as counts:
            await asyncio.sleep(3)
        # The poll, and nothing else.
        assert 1 <= counts.round_trips <= 3
        for number in (0, 500, 999):
            began = time.monotonic()
            pair = await direct.put(f"key/{number}", b"")
            assert await next_of(watches[number]) == pair
            # Notified, not polled.
            assert time.monotonic() - began < scaled(0.5)


async def test_a_watch_that_the_log_does_not_reach_lists_again(
    proxied: PostgresStore, proxy: FaultProxy, direct: PostgresStore, server: PostgresServer
) -> None:
    await direct.put("dir/a", b"1")
    async with proxied.watch_tree("dir") as watch:
        assert [pair.key for pair in await next_of(watch)] == ["dir/a"]
        proxy.refuse()
        proxy.reset()
        await eventually(lambda: watch.is_stale, within=10, message="the watch is stale")
        await direct.put("dir/b", b"2")
        await direct.delete("dir/a")
        await server.sql(
            "BEGIN; DELETE FROM aiolibkv_log WHERE rev < (SELECT max(rev) FROM aiolibkv_log); UPDATE aiolibkv_state"
            " SET floor = (SELECT max(rev) - 1 FROM aiolibkv_log), bytes = 0, xid = txid_current(); COMMIT"
        )
        proxy.accept()
        snapshots = await follow(watch, lambda snapshot: "dir/b" in snapshot)
        assert [(change.key, change.pair is None) for change in snapshots[-1].changes] == [
            ("dir/a", True),
            ("dir/b", False),
        ]
        assert not watch.is_stale


async def test_the_changes_of_an_outage_are_seen_each(
    proxied: PostgresStore, proxy: FaultProxy, direct: PostgresStore
) -> None:
    async with proxied.watch("key") as watch:
        assert await next_of(watch) is None
        proxy.refuse()
        proxy.reset()
        await eventually(lambda: watch.is_stale, within=10, message="the watch is stale")
        pairs = [await direct.put("key", b"%d" % number) for number in range(5)]
        proxy.accept()
        assert [await next_of(watch) for _ in pairs] == pairs


async def test_a_connection_that_the_server_ends(direct: PostgresStore, server: PostgresServer) -> None:
    await direct.put("key", b"1")
    async with direct.watch("key") as watch:
        await next_of(watch)
        await server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'aiolibkv'")
        pair = await direct.put("key", b"2")
        assert await next_of(watch) == pair
        assert await direct.get("key") == pair


async def test_the_log_is_trimmed_by_age(direct: PostgresStore, server: PostgresServer) -> None:
    """Its last row stays, which has the revision."""
    for number in range(5):
        await direct.put(f"key{number}", b"v")
    await server.sql("UPDATE aiolibkv_log SET at = now() - interval '1 hour'")
    await direct.driver._writer.sweep()
    trimmed = await server.sql("SELECT floor = l.rev - 1, bytes, value FROM aiolibkv_state, aiolibkv_log AS l")
    assert trimmed == "t|1|\\x76\n"


async def test_the_log_is_trimmed_by_size(direct: PostgresStore, server: PostgresServer) -> None:
    """Its newest revisions stay."""
    large = await direct.put("key", b"v")
    size = 64 * 1024 * 1024
    await server.sql(
        "UPDATE aiolibkv_state SET rev = 0, bytes = 0, xid = txid_current();"
        f" UPDATE aiolibkv_log SET value = convert_to(repeat('x', {size}), 'UTF8') WHERE rev = {large.last_index}"
    )
    last = await direct.put("key", b"last")
    await direct.driver._writer.sweep()
    kept = [int(rev) for rev in (await server.sql("SELECT rev FROM aiolibkv_log ORDER BY rev")).split()]
    assert last.last_index in kept
    assert large.last_index not in kept

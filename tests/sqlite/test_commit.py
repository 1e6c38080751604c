"""Commits, names and lines of locks, as only this backend carries them out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aiolibkv import Check, Delete, KeyExistsError, KeyNotFoundError, Put
from aiolibkv.store import LeaseLostError, Lifetime, OwnCall
from sqlite.workers import open_sqlite

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


async def test_a_commit_is_one_change_of_a_watch_in_another_store(database: Path) -> None:
    async with open_sqlite(database) as store, open_sqlite(database) as other, other.watch_tree("dir") as watch:
        old = await store.put("dir/old", b"")
        while list(await anext(watch)) != [old]:
            pass
        pairs = await store.commit(
            *(Put(f"dir/{number}", b"") for number in range(600)), Delete("dir/old"), Check("dir/none", previous=None)
        )
        snapshot = await anext(watch)
        assert sorted(change.key for change in snapshot.changes) == sorted(
            ["dir/old", *(f"dir/{number}" for number in range(600))]
        )
        assert {pair.key: pair for pair in snapshot} == {pair.key: pair for pair in pairs if pair is not None}


async def test_a_refused_commit_leaves_those_committed_with_it_alone(database: Path) -> None:
    """They share one transaction of SQLite."""
    async with open_sqlite(database) as store:
        results = await asyncio.gather(
            store.put("before", b""),
            store.commit(Put("one", b""), Put("two", b"", previous=None), Check("three")),
            store.put("after", b""),
            return_exceptions=True,
        )
        assert isinstance(results[1], KeyNotFoundError)
        assert (results[1].key, results[1].maybe_applied) == ("three", False)
        assert list(await store.list("")) == [results[2], results[0]]


async def test_a_line_is_looked_at_with_the_acquisition(database: Path) -> None:
    async with open_sqlite(database) as store:
        driver, call = store.driver, OwnCall()
        lease = driver.new_lease(Lifetime(15, keep_alive=True))
        await driver.grant(call, lease)
        for place in ("line/c", "line/a", "line/b"):
            await driver.put(call, place, b"", expected=0, lease=lease, guard=None)
        with pytest.raises(KeyExistsError) as caught:
            await driver.acquire(call, "lock", b"", lease, line="line")
        assert caught.value.key == "line"
        assert [await driver.place_ahead(call, "line", f"line/{name}") for name in "cab"] == [None, "line/c", "line/a"]
        with pytest.raises(LeaseLostError):
            await driver.place_ahead(call, "line", "line/d")
        acquired = await driver.acquire(call, "lock", b"", lease, line=None)
        with pytest.raises(KeyNotFoundError):
            await driver.release(call, "lock", acquired.last_index, "line/d", lease)
        assert await store.exists("lock")
        await driver.release(call, "lock", acquired.last_index, "line/c", lease)
        assert not await store.exists("lock")
        await driver.revoke(call, lease)


async def test_the_children_of_a_directory_cost_no_more_than_they_are(database: Path) -> None:
    async with open_sqlite(database) as store:
        await store.commit(*(Put(f"dir/wide/{number}", b"") for number in range(900)), Put("dir/wide", b""))
        await store.put("dir/wide-", b"")
        assert await store.children("dir") == ["wide", "wide-", "wide/"]
        statements: list[str] = []
        for connection in store.driver._current.reader._opened:
            connection.set_trace_callback(statements.append)
        assert await store.children("dir") == ["wide", "wide-", "wide/"]
        assert 0 < len(statements) < 10

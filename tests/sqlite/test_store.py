"""What is particular to the SQLite backend, in one process."""

# ruff: noqa: ASYNC240 - files are looked at while nothing else runs

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from aiolibkv import KeyExistsError, KeyModifiedError, KeyNotFoundError, LockLostError, NotReachableError
from aiolibkv.backends.sqlite import inotify, reading, signals, transaction
from aiolibkv.backends.sqlite.files import Files
from aiolibkv.backends.sqlite.transaction import Transaction, token
from aiolibkv.store import Call, Guard
from aiolibkv.testing.scale import eventually, scaled
from counting import indexes_of_writes
from sqlite.workers import open_sqlite

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


def rows(database: Path, statement: str) -> list[Any]:
    connection = sqlite3.connect(database)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


async def test_values_are_readable_by_sqlite(database: Path) -> None:
    async with open_sqlite(database, bucket="settings", prefix="app") as store:
        pair = await store.put("key", b"value")
        assert rows(database, "SELECT key, value, rev FROM settings") == [("app/key", b"value", pair.last_index)]


async def test_values_that_are_written_by_sqlite_are_bytes(database: Path) -> None:
    async with open_sqlite(database) as store:
        await asyncio.gather(*(store.put(key, b"") for key in ("number", "text", "long text")))
        with closing(sqlite3.connect(database)) as connection, connection:
            for key, value in (("number", 5), ("text", "ä"), ("long text", "ä" * 100_000)):
                connection.execute("UPDATE aiolibkv SET value = ? WHERE key = ?", (value, key))
        written = [b"5", "ä".encode(), ("ä" * 100_000).encode()]
        keys = ["number", "text", "long text"]
        assert [(await store.get(key)).value for key in keys] == written
        assert [pair.value for pair in (await store.get_many(keys)).values()] == written
        assert [pair.value async for pair in store.scan("")] == [written[2], written[0], written[1]]
        await store.delete("long text")
        assert [pair.value for pair in await store.list("")] == written[:2]


async def test_buckets_are_apart(database: Path) -> None:
    async with open_sqlite(database) as one, open_sqlite(database, bucket="two") as two:
        await one.put("key", b"one")
        with pytest.raises(KeyNotFoundError):
            await two.get("key")
        async with two.watch_tree("") as watch:
            assert not await anext(watch)
            await one.put("other", b"")
            pair = await two.put("key", b"two")
            assert list(await anext(watch)) == [pair]
        assert await two.delete_tree("") == 1
        assert len(await one.list("")) == 2


async def test_nothing_is_left_beside_a_closed_database(database: Path) -> None:
    async with open_sqlite(database) as store, open_sqlite(database) as other:
        await store.put("alive", b"", keep_alive=True)
        await other.put("alive too", b"", keep_alive=True)
        async with store.watch_tree("") as watch:
            await anext(watch)
        assert len(list(database.with_name("store.db-shared").glob("owner-*"))) == 2
    assert {file.name for file in database.parent.iterdir()} == {"store.db", "store.db-shared"}
    shared = {file.name for file in Path(f"{database}-shared").iterdir()}
    assert shared == {"commits-aiolibkv", "intended-aiolibkv", "gate", "lock", "next", "users"}
    assert rows(database, "SELECT * FROM aiolibkv") == []


async def test_a_path_through_a_link_is_the_same_database(database: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(database)
    async with open_sqlite(database) as store, open_sqlite(link) as other, other.watch("key") as watch:
        assert await anext(watch) is None
        pair = await store.put("key", b"")
        assert await anext(watch) == pair
    assert not Path(f"{link}-shared").exists()


@pytest.mark.parametrize(("durability", "level"), [(None, 2), ("full", 2), ("normal", 1)])
async def test_durability(database: Path, durability: str | None, level: int) -> None:
    async with open_sqlite(database, options={"durability": durability} if durability else {}) as store:
        await store.put("key", b"")
        connection = store.driver._current.writer._connection
        assert connection is not None
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == level


async def test_many_writes_are_committed_at_once(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = 0
    commit = Transaction.commit

    def counted(self: Transaction) -> None:
        nonlocal commits
        commits += 1
        commit(self)

    monkeypatch.setattr(Transaction, "commit", counted)
    async with open_sqlite(database) as store:
        commits = 0
        pairs = await asyncio.gather(*(store.put(f"key/{n:03}", b"") for n in range(200)))
        assert commits < 20
        assert list(await store.list("key")) == pairs


async def test_a_refused_write_leaves_those_committed_with_it_alone(database: Path) -> None:
    async with open_sqlite(database) as store:
        pair = await store.put("key", b"")
        results = await asyncio.gather(
            store.put("before", b""),
            store.atomic_put("key", b"refused", None),
            store.delete("missing"),
            store.delete_tree("missing"),
            store.atomic_delete("before", pair.__class__("before", b"", 1)),
            store.put("after", b""),
            return_exceptions=True,
        )
        kinds = [type(result) for result in results]
        refused = [KeyExistsError, KeyNotFoundError, KeyNotFoundError, KeyModifiedError]
        assert kinds[1:5] == refused
        assert not any(getattr(result, "maybe_applied", False) for result in results)
        assert [stored.key for stored in await store.list("")] == ["after", "before", "key"]


async def test_a_step_that_fails_leaves_those_committed_with_it_alone(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlike a refusal, a failure rolls the transaction back; the others are carried out again."""
    put = Transaction.put

    def failing(self: Transaction, path: str, *arguments: Any, **conditions: Any) -> int:
        index = put(self, path, *arguments, **conditions)
        if path == "bad":
            raise sqlite3.OperationalError("made to fail")
        return index

    monkeypatch.setattr(Transaction, "put", failing)
    async with open_sqlite(database) as store:
        results = await asyncio.gather(*(store.put(key, b"") for key in ("a", "bad", "b")), return_exceptions=True)
        assert "made to fail" in str(results[1])
        assert list(await store.list("")) == [results[0], results[2]]


async def test_a_guard_is_checked_with_the_write(database: Path) -> None:
    """Without the client's own knowledge of a loss, which would come first."""
    async with open_sqlite(database) as store, open_sqlite(database) as other:
        holds = Guard("lock", token((await other.put("lock", b"")).last_index, None))
        kept = await store.put("kept", b"1")

        def writes(guard: Guard) -> list[Callable[[Call], Awaitable[object]]]:
            return [
                lambda call: store.driver.put(call, "new", b"2", expected=None, lease=None, guard=guard),
                lambda call: store.driver.put(call, "created", b"2", expected=0, lease=None, guard=guard),
                lambda call: store.driver.delete(call, "kept", expected=None, guard=guard),
                lambda call: store.driver.delete_tree(call, "tree", guard=guard),
            ]

        await store.put("tree/key", b"")
        await other.put("lock", b"foreign")
        for write in writes(holds):
            with pytest.raises(LockLostError) as caught:
                await store._calls.run(write)
            assert caught.value.maybe_applied is False
        await other.delete("lock")
        for write in writes(holds):
            with pytest.raises(LockLostError):
                await store._calls.run(write)
        assert [pair.key for pair in await store.list("")] == ["kept", "tree/key"]
        assert await store.get("kept") == kept
        for write in writes(Guard("lock", token((await other.put("lock", b"")).last_index, None))):
            await store._calls.run(write)
        assert [pair.key for pair in await store.list("")] == ["created", "lock", "new"]


async def test_a_deleted_tree_is_one_change(database: Path) -> None:
    async with open_sqlite(database) as store, open_sqlite(database) as other:
        await asyncio.gather(*(store.put(f"tree/{n}", b"") for n in range(1500)))
        async with other.watch_tree("") as watch, other.watch("tree/7") as single:
            assert len(await anext(watch)) == 1500
            assert await anext(single) is not None
            assert await store.delete_tree("tree") == 1500
            snapshot = await anext(watch)
            assert not snapshot
            assert len(snapshot.changes) == 1500
            assert await anext(single) is None


async def test_a_watch_that_the_log_does_not_reach_back_to_lists_again(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "KEPT_ROWS", 100)
    async with open_sqlite(database) as store, open_sqlite(database) as other:
        await store.put("dir/gone", b"")
        await store.put("dir/stays", b"")
        async with other.watch_tree("dir") as watch, other.watch("dir/gone") as single:
            assert len(await anext(watch)) == 2
            assert await anext(single) is not None
            with monkeypatch.context() as patch:
                patch.setattr(other.driver._current.reader, "log", _unreachable)
                await store.delete("dir/gone")
                await eventually(lambda: watch.is_stale, within=5, message="the watch is cut off")
                for number in range(500):
                    await store.put("dir/new", b"%d" % number)
                assert 100 <= rows(database, 'SELECT count(*) FROM "aiolibkv.log"')[0][0] < 200
            snapshot = await anext(watch)
            assert [(pair.key, pair.value) for pair in snapshot] == [("dir/new", b"499"), ("dir/stays", b"")]
            assert sorted(change.key for change in snapshot.changes) == ["dir/gone", "dir/new"]
            assert not watch.is_stale
            assert await anext(single) is None
            later = await store.put("dir/later", b"")
            assert (await anext(watch)).get("dir/later") == later


async def test_a_watch_that_begins_while_the_log_is_read_for_one_that_ended(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written between its list and where the reading of the log has come to is not passed over."""
    async with open_sqlite(database) as store, open_sqlite(database) as other:
        reading = other.driver._current.reader
        state, blob = reading.state, reading._blob
        listed, may_attach, is_reading, may_read = (asyncio.Event() for _ in range(4))

        async def slow_state(path: str, **how: Any) -> Any:
            found = await state(path, **how)
            if path == "dir":
                listed.set()
                await may_attach.wait()
            return found

        async def slow_blob(*of: Any) -> bytes:
            if not is_reading.is_set():
                is_reading.set()
                await may_read.wait()
            return await blob(*of)

        first = other.watch("first")
        assert await anext(first) is None
        monkeypatch.setattr(reading, "state", slow_state)
        async with other.watch_tree("dir") as watch:
            await listed.wait()
            pair = await store.put("dir/key", b"")
            small = await store.put("first", b"")
            assert await anext(first) == small
            monkeypatch.setattr(reading, "_blob", slow_blob)
            await store.put("first", bytes(100_000))
            await is_reading.wait()
            await first.aclose()
            may_attach.set()
            assert list(await anext(watch)) == []
            tail = other.driver._current._tail
            await eventually(lambda: tail._attached, within=5, message="the watch is fed")
            may_read.set()
            async with asyncio.timeout(scaled(5)):
                assert list(await anext(watch)) == [pair]


async def test_watches_of_the_same_tree_that_begin_together_share_their_reading(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_sqlite(database) as store, AsyncExitStack() as watching:
        state, reads = reading.Reader.state, 0

        async def counted(self: reading.Reader, path: str, **how: Any) -> Any:
            nonlocal reads
            reads += 1
            return await state(self, path, **how)

        monkeypatch.setattr(reading.Reader, "state", counted)
        watches = [store.watch_tree("dir") for _ in range(100)]
        for watch in watches:
            watching.push_async_callback(watch.aclose)
        assert not any(await asyncio.gather(*(anext(watch) for watch in watches)))
        assert reads == 1
        pair = await store.put("dir/key", b"")
        later = store.watch_tree("dir")
        watching.push_async_callback(later.aclose)
        for watch in (*watches, later):
            assert list(await anext(watch)) == [pair]
        assert reads == 2


async def test_a_watch_goes_on_while_the_log_is_compacted(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "KEPT_ROWS", 20)
    async with open_sqlite(database) as store, open_sqlite(database) as other:
        async with other.watch_tree("") as watch:
            assert not await anext(watch)
            writing = asyncio.gather(*(_put_many(store, f"key{n}", 100) for n in range(5)))
            seen = 0
            while True:
                snapshot = await anext(watch)
                assert snapshot.last_index > seen
                seen = snapshot.last_index
                if [pair.value for pair in snapshot] == [b"99"] * 5:
                    break
            await writing
        count, oldest, newest = rows(database, 'SELECT count(*), min(rev), max(rev) FROM "aiolibkv.log"')[0]
        assert count == newest - oldest + 1 < 100


async def test_large_values_do_not_fill_the_log(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "KEPT_BYTES", 1_000_000)
    async with open_sqlite(database) as store:
        for _ in range(30):
            await store.put("key", bytes(200_000))
        assert rows(database, 'SELECT sum(length(value)) FROM "aiolibkv.log"')[0][0] <= 1_600_000


async def test_the_index_counts_what_is_written_to_any_key(database: Path) -> None:
    async with open_sqlite(database, prefix="a") as one, open_sqlite(database, prefix="b") as two:
        first, *others = await indexes_of_writes(one, two)
        assert [index - first for index in others] == [1, 2, 4, 5, 6, 10]


async def test_the_index_goes_on_after_everything_was_deleted(database: Path) -> None:
    async with open_sqlite(database) as store:
        first = await store.put("key", b"")
        await store.delete_tree("")
    async with open_sqlite(database) as store:
        assert (await store.put("key", b"")).last_index > first.last_index + 1


@pytest.mark.parametrize("exhausted", [False, True])
async def test_without_inotify_changes_are_looked_for(
    database: Path, monkeypatch: pytest.MonkeyPatch, *, exhausted: bool
) -> None:
    def none() -> None:
        raise OSError("no inotify here")

    def no_more(*_: object) -> int:
        raise OSError("too many watches")

    if exhausted:
        monkeypatch.setattr(inotify.Inotify, "add", no_more)
    else:
        monkeypatch.setattr(signals, "Inotify", none)
    async with open_sqlite(database) as store, open_sqlite(database) as other:
        theirs, own = other.watch("key"), store.watch("key")
        assert await anext(theirs) is await anext(own) is None
        for value in (b"1", b"2"):
            pair = await store.put("key", value)
            before = time.monotonic()
            assert await anext(own) == await anext(theirs) == pair
            assert time.monotonic() - before < scaled(1)
        await store.put("key", b"", ttl=0.2)
        while await anext(theirs) is not None:
            pass


async def test_a_commit_that_nobody_told_of_is_found(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer may die between its commit and its signal."""
    async with open_sqlite(database) as store, open_sqlite(database) as other, other.watch("key") as watch:
        assert await anext(watch) is None
        with monkeypatch.context() as patch:
            patch.setattr(Files, "note", lambda *_: None)
            pair = await store.put("key", b"")
            async with asyncio.timeout(scaled(5)):
                assert await anext(watch) == pair


async def test_a_long_list_leaves_the_loop_to_others(database: Path) -> None:
    async with open_sqlite(database) as store:
        await asyncio.gather(*(store.put(f"key/{n}", bytes(200)) for n in range(6000)))
        await store.put("large", bytes(16_000_000))
        clock = time.thread_time  # what others use does not count
        for reading in (store.list("key"), store.get("large"), anext(store.watch_tree(""))):
            task = asyncio.ensure_future(reading)
            steps, longest, last = 0, 0.0, clock()
            while not task.done():
                await asyncio.sleep(0)
                steps, longest, last = steps + 1, max(longest, clock() - last), clock()
            assert steps > 10
            assert longest < scaled(0.2)
            await task


async def test_a_list_is_one_snapshot_though_it_is_read_in_pages(database: Path) -> None:
    async with open_sqlite(database) as store, open_sqlite(database) as other:
        await asyncio.gather(*(store.put(f"key/{n:04}", b"old") for n in range(2000)))
        listing = asyncio.ensure_future(other.list("key"))
        await asyncio.sleep(0)
        await store.put("key/1999", b"new")
        await store.delete("key/1998")
        assert {pair.value for pair in await listing} == {b"old"}
        assert len(await listing) == 2000


async def test_a_list_that_had_to_wait_shows_what_has_expired_no_more(database: Path) -> None:
    async with open_sqlite(database) as store, AsyncExitStack() as others:
        for _ in range(reading._SNAPSHOTS):
            await others.enter_async_context(store.driver._current.reader._snapshot())
        large = await store.put("dir/large", bytes(10_000))
        await store.put("dir/short", b"", ttl=0.1)
        listing = asyncio.ensure_future(store.list("dir"))
        await asyncio.sleep(0)
        later = await store.put("dir/later", b"")
        await eventually(lambda: _gone(store, "dir/short"), within=5, message="the key has expired")
        await others.aclose()
        assert list(await listing) == [large, later]


async def test_a_task_that_only_reads_lets_others_run(database: Path) -> None:
    async with open_sqlite(database) as store:
        await store.put("key", b"")
        steps = 0

        async def read() -> None:
            nonlocal steps
            while True:
                await store.get("key")
                steps += 1

        reading = asyncio.ensure_future(read())
        for _ in range(10):
            await asyncio.sleep(0)
        assert 10 <= steps < 1000
        reading.cancel()
        await asyncio.wait({reading})


@pytest.mark.parametrize("key", ["key", "missing"])
async def test_a_read_leaves_no_snapshot_behind(database: Path, key: str) -> None:
    async with open_sqlite(database) as store:
        await store.put("key", b"")
        for _ in range(3):
            with suppress(KeyNotFoundError):
                await store.get(key)
            await store.put("key", b"")
            # It reports whether a reader kept it from emptying the write-ahead log.
            assert rows(database, "PRAGMA wal_checkpoint(TRUNCATE)") == [(0, 0, 0)]


async def test_a_key_whose_ttl_runs_is_read_at_a_glance(database: Path) -> None:
    async with open_sqlite(database) as store:
        pair = await store.put("key", b"", ttl=1000)
        assert store.driver.read_at_once("key") == pair


async def test_stores_of_two_event_loops_share_a_database(database: Path) -> None:
    async with open_sqlite(database) as store, store.watch("key") as watch:
        assert await anext(watch) is None

        async def elsewhere() -> None:
            async with open_sqlite(database) as other:
                await other.put("key", b"", keep_alive=True)
                assert await store_has(other)

        async def store_has(other: Any) -> bool:
            return bool(await other.exists("key"))

        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
        while await anext(watch) is not None:
            pass
        assert not await store.exists("key")


async def test_a_key_that_expired_is_deleted_by_who_comes_by(database: Path) -> None:
    async with open_sqlite(database) as store:
        await store.put("key", b"", ttl=0.05)
        await eventually(lambda: _gone(store, "key"), within=5, message="the key has expired")
        created = await store.atomic_put("key", b"", None, ttl=0.05)
        await eventually(lambda: _gone(store, "key"), within=5, message="the key has expired again")
        with pytest.raises(KeyModifiedError):
            await store.atomic_put("key", b"", created)
        with pytest.raises(KeyNotFoundError):
            await store.delete("key")
        with pytest.raises(KeyNotFoundError):
            await store.delete_tree("key")
        assert rows(database, "SELECT * FROM aiolibkv") == []


async def test_who_saw_a_key_expire_finds_it_gone(database: Path) -> None:
    """Also when its write joins others that had to wait since before."""
    connection = sqlite3.connect(database, isolation_level=None)
    try:
        async with open_sqlite(database) as store:
            await store.put("key", b"", ttl=0.1)
            connection.execute("BEGIN IMMEDIATE")
            waiting = asyncio.ensure_future(store.put("other", b""))
            await eventually(lambda: _gone(store, "key"), within=5, message="the key has expired")
            creating = asyncio.ensure_future(store.atomic_put("key", b"new", None))
            await asyncio.sleep(0.01)
            connection.execute("ROLLBACK")
            await waiting
            assert await store.get("key") == await creating
    finally:
        connection.close()


async def _put_many(store: Any, key: str, times: int) -> None:
    for number in range(times):
        await store.put(key, b"%d" % number)


async def _gone(store: Any, key: str) -> bool:
    return not await store.exists(key)


async def _unreachable(_: int) -> Any:
    raise NotReachableError("made to fail")

"""Files that cannot be used, full disks, and locks of others: typed errors, and nothing lost."""

# ruff: noqa: ASYNC240 - files are looked at while nothing else runs

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from aiolibkv import AccessDeniedError, Config, KeyNotFoundError, KVPair, NotReachableError, StoreError
from aiolibkv.backends.sqlite import reading
from aiolibkv.backends.sqlite.locks import LockFile
from aiolibkv.backends.sqlite.log import Log
from aiolibkv.testing.scale import eventually, scaled
from disks import enlarge, small_disk
from sqlite.workers import (
    enter_as_nobody,
    enter_without_descriptors,
    fork_and_use,
    open_sqlite,
    worker,
    write_beyond_a_limit,
)
from stores import SqliteStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", 3) as mounted:
        yield mounted


async def fails_to_open(database: Path, text: str, kind: type[StoreError] = StoreError) -> None:
    before = threading.active_count()
    with pytest.raises(kind, match=text) as caught:
        async with open_sqlite(database):
            pass
    assert type(caught.value) is kind
    assert str(database) in str(caught.value)
    assert threading.active_count() == before


async def test_a_full_disk(disk: Path) -> None:
    ballast = disk / "ballast"
    value = bytes(20_000)
    async with open_sqlite(disk / "store.db") as store, open_sqlite(disk / "store.db") as other:
        async with other.watch_tree("") as watch:
            assert not await anext(watch)
            written: list[KVPair] = []
            with pytest.raises(StoreError, match="the disk is full") as caught:
                while len(written) < 1000:
                    written.append(await store.put(f"key{len(written)}", value))
            assert type(caught.value) is StoreError
            assert caught.value.maybe_applied is False
            assert len(written) > 5
            results = await asyncio.gather(
                *(store.put(f"many/{number}", value) for number in range(50)), return_exceptions=True
            )
            failed = [result for result in results if isinstance(result, BaseException)]
            assert failed
            assert all(type(error) is StoreError for error in failed)
            pairs = {pair.key: pair for pair in await store.list("")}
            assert {pair.key: pairs[pair.key] for pair in written} == {pair.key: pair for pair in written}
            for number, result in enumerate(results):
                assert (f"many/{number}" in pairs) is not isinstance(result, BaseException)
        with pytest.raises(KeyNotFoundError):
            await other.get("key1000")
        assert not ballast.exists()
        enlarge(disk, 30)
        again = [await store.put(f"again{number}", value) for number in range(20)]
        assert await other.get("again19") == again[-1]
        assert await other.get("key0") == written[0]
    async with open_sqlite(disk / "store.db") as store:
        assert await store.get("key0") == written[0]
        assert await store.get("again0") == again[0]


async def test_a_commit_that_fails_is_in_doubt(database: Path) -> None:
    """What reached the disk of it might be found by a recovery."""
    with worker(write_beyond_a_limit, database) as other:
        kind, text, maybe_applied = await other.receive()
        assert kind is StoreError
        assert "writing the database failed" in text
        assert maybe_applied
        pair = await other.receive()
    async with open_sqlite(database) as store:
        assert await store.get("key") == pair


async def test_a_file_of_a_newer_format(database: Path) -> None:
    async with open_sqlite(database) as store:
        await store.put("key", b"")
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    content = database.read_bytes()
    await fails_to_open(database, "has format 99")
    assert database.read_bytes() == content


async def test_a_file_that_is_no_database(database: Path) -> None:
    content = b"a text that somebody wrote\n" * 100
    database.write_bytes(content)
    await fails_to_open(database, "is not an SQLite database")
    assert database.read_bytes() == content


async def test_a_database_of_another_application(database: Path) -> None:
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE aiolibkv (key, value)")
    connection.close()
    content = database.read_bytes()
    await fails_to_open(database, "belongs to another application")
    assert database.read_bytes() == content


async def test_a_path_that_cannot_be_a_database(database: Path) -> None:
    missing = database.parent / "none"
    await fails_to_open(missing / "below" / "store.db", f"the directory {missing} does not exist")
    await fails_to_open(database / "below.db", f"the directory {database} does not exist")
    database.mkdir()
    await fails_to_open(database, "is a directory")


@pytest.mark.parametrize("mode", [0o755, 0o700])
async def test_a_directory_that_may_not_be_written(tmp_path: Path, mode: int) -> None:
    """Not even searched, in the second case."""
    if os.geteuid() != 0:
        pytest.skip("becoming a user without rights needs root")
    with TemporaryDirectory() as directory:
        database = Path(directory) / "store.db"
        async with open_sqlite(database) as store:
            await store.put("key", b"")
        Path(directory).chmod(mode)
        with worker(enter_as_nobody, tmp_path / "unused.db", str(database)) as other:
            kind, text = await other.receive()
        assert kind is AccessDeniedError
        assert "may not be written" in text
        async with open_sqlite(database) as store:
            assert await store.exists("key")


async def test_a_damaged_file(database: Path) -> None:
    async with open_sqlite(database) as store:
        for number in range(200):
            await store.put(f"key{number}", bytes(1000))
    with database.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (database.stat().st_size - 4096))
    with pytest.raises(StoreError, match="the database is damaged"):
        async with open_sqlite(database) as store:
            await store.list("")


async def test_a_database_locked_by_another_program(database: Path) -> None:
    async with open_sqlite(database, request_timeout=scaled(0.5)) as store:
        await store.put("key", b"before")
        connection = sqlite3.connect(database, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            with pytest.raises(NotReachableError, match="locked by another program") as caught:
                await store.put("key", b"refused")
            assert caught.value.maybe_applied is False
            assert (await store.get("key")).value == b"before"
        finally:
            connection.close()
        await store.put("key", b"after")
        assert (await store.get("key")).value == b"after"


async def test_a_process_that_keeps_the_write_lock(database: Path) -> None:
    lock = None
    try:
        async with open_sqlite(database, request_timeout=scaled(0.3), connection_timeout=scaled(0.3)) as store:
            pair = await store.put("key", b"before")
            lock = LockFile(Path(f"{database}-shared/lock"), database.stat())
            assert lock.try_lock()
            results = await asyncio.gather(
                store.put("key", b"late"), store.put("other", b"late"), return_exceptions=True
            )
            assert all(isinstance(error, StoreError) and error.maybe_applied is False for error in results)
            assert await store.get("key") == pair
            with pytest.raises(NotReachableError, match="write lock"):
                async with open_sqlite(database, connection_timeout=scaled(0.6)):
                    pass
            pending = asyncio.create_task(store.put("key", b"never"))
            await asyncio.sleep(0.05)
            before = asyncio.get_running_loop().time()
            await store.close()
            assert asyncio.get_running_loop().time() - before < scaled(2)
            with pytest.raises(StoreError):
                await pending
        assert not [thread for thread in threading.enumerate() if "store.db" in thread.name]
    finally:
        if lock is not None:
            lock.close()
    async with open_sqlite(database) as store:
        assert list(await store.list("")) == [pair]


async def test_who_enters_behind_the_write_lock_is_told_of_it(database: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_sqlite(database) as first:
        pair = await first.put("key", b"")
    lock = LockFile(Path(f"{database}-shared/lock"), database.stat())
    store = open_sqlite(database, connection_timeout=60)
    try:
        assert lock.try_lock()
        entering = asyncio.create_task(store.open())
        await eventually(lambda: "write lock" in caplog.text, within=10, message="a warning names it")
        lock.close()
        await entering
        assert await store.get("key") == pair
    finally:
        lock.close()
        await store.close()


async def test_a_cancelled_write_that_waited_for_its_turn_is_not_applied(database: Path) -> None:
    lock = None
    async with open_sqlite(database) as store:
        pair = await store.put("key", b"before")
        lock = LockFile(Path(f"{database}-shared/lock"), database.stat())
        try:
            assert lock.try_lock()
            pending = asyncio.create_task(store.put("key", b"cancelled"))
            await asyncio.sleep(0.05)
            pending.cancel()
            await asyncio.wait({pending})
            assert pending.cancelled()
        finally:
            lock.close()
        await store.put("other", b"")
        assert await store.get("key") == pair


async def test_a_log_that_cannot_be_read(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that fails: it is opened again, and no foreign exception is raised."""
    failing = [OSError(errno.EIO, "Input/output error")]
    is_intact = Log.is_intact

    def fail_once(log: Log) -> bool:
        if failing:
            raise failing.pop()
        return is_intact(log)

    async with open_sqlite(database) as store:
        pair = await store.put("key", b"")
        monkeypatch.setattr(reading, "_TRUSTED_TIME", -1)
        monkeypatch.setattr(Log, "is_intact", fail_once)
        assert await store.get("key") == pair
        assert not failing


async def test_a_database_that_was_removed(database: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is not made again by who had it open, but used again when there is one."""
    async with open_sqlite(database, request_timeout=scaled(0.5)) as store, store.watch("key") as watch:
        pair = await store.put("key", b"")
        while await anext(watch) != pair:
            pass
        for file in (database, Path(f"{database}-wal"), Path(f"{database}-shm")):
            file.unlink()
        with pytest.raises(NotReachableError, match=r"store\.db was removed") as caught:
            await store.put("key", b"nowhere")
        assert caught.value.maybe_applied is False
        await eventually(lambda: watch.is_stale, within=5, message="the watch knows that it is cut off")
        with pytest.raises(NotReachableError, match=r"store\.db was removed"):
            await store.get("key")
        assert not database.exists()
        async with open_sqlite(database) as other:
            assert await anext(watch) is None
            pair = await other.put("key", b"")
            assert await anext(watch) == pair
        assert await store.get("key") == pair
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "store.db was removed" in warnings[0]


async def test_entering_without_descriptors(database: Path) -> None:
    with worker(enter_without_descriptors, database, str(database.with_name("other.db"))) as other:
        failures, before, after, last = await other.receive()
    kinds = [kind for kind, _ in failures]
    assert kinds[0] is StoreError
    assert "Too many open files" in failures[0][1]
    assert kinds[-1] is None
    assert set(kinds) == {StoreError, None}
    assert after == before
    assert last == (None, "it was entered")


async def test_a_fork_with_an_open_database(database: Path) -> None:
    """SQLite would believe to have its parent's locks in a child; both stores say so there, and the parent goes on."""
    with worker(fork_and_use, database) as other:
        for expected in ("before a fork", "was forked"):
            kind, text = await other.receive()
            assert kind is StoreError
            assert expected in text
            assert str(database) in text
        assert await other.receive() == (None, "it was entered")
        pair = await other.receive()
        async with open_sqlite(database) as store:
            assert await store.get("key") == pair


@pytest.mark.parametrize("endpoints", [[], ["a.db", "b.db"], [""], ["a\0b"], [":memory:"]])
async def test_endpoints_that_cannot_be(endpoints: list[str]) -> None:
    with pytest.raises(ValueError, match="sqlite"):
        SqliteStore(endpoints)


@pytest.mark.parametrize("bucket", ["", "a b", "a.log", 'a"b', "1a", "sqlite_a", "x" * 65, "ä"])
async def test_buckets_that_cannot_be(database: Path, bucket: str) -> None:
    with pytest.raises(ValueError, match="bucket"):
        SqliteStore([str(database)], Config(bucket=bucket))


async def test_options_that_cannot_be(database: Path) -> None:
    with pytest.raises(ValueError, match="durability"):
        SqliteStore([str(database)], Config(options={"durability": "off"}))
    with pytest.raises(ValueError, match="unknown option"):
        SqliteStore([str(database)], Config(options={"journal": "wal"}))

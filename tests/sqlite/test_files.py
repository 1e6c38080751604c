"""Files that are read, removed, restored or shared wrongly under open stores: nothing is lost, nobody is two."""

# ruff: noqa: ASYNC240 - files are looked at while nothing else runs

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from aiolibkv import AccessDeniedError, AsyncStore, KeyModifiedError, KVPair, StoreClosedError, StoreError
from aiolibkv.backends.sqlite import shrinking
from aiolibkv.testing.scale import eventually, scaled
from sqlite.workers import acquire_and_put, enter_as_nobody, open_sqlite, put_once, worker

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

_needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="it needs root")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def open_files(database: Path) -> list[str]:
    """Return the files of a database that this process has open."""
    names = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return [name for name in names if name.startswith(str(database))]


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def copy(source: Path, target: Path) -> None:
    """Copy a database as SQLite's own commands do it."""
    with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(target)) as writing:
        reading.backup(writing)


async def puts_elsewhere(database: Path, key: str, value: bytes) -> KVPair:
    """Have a process put a key, and close the database as the only one that SQLite's locks tell of."""
    with worker(put_once, database, key, value) as other:
        pair: KVPair = await other.receive()
        await other.join()
    return pair


async def test_the_application_reads_the_files_of_an_open_database(database: Path) -> None:
    """Which drops all locks that SQLite has in the process; see anchors."""
    wal = Path(f"{database}-wal")
    async with open_sqlite(database) as store, store.watch("theirs") as watch:
        assert await anext(watch) is None
        await store.put("before", b"")
        for file in (database, wal, Path(f"{database}-shm")):
            shutil.copy(file, database.with_name("copy"))
        theirs = await puts_elsewhere(database, "theirs", b"")
        assert await anext(watch) == theirs
        assert wal.exists()
        after = await store.put("after", b"")
        async with open_sqlite(database) as sibling:
            assert await sibling.get("after") == after
        shutil.copy(database, database.with_name("copy"))
        await puts_elsewhere(database, "again", b"")
        assert wal.exists()
        last = await store.put("last", b"")
    assert not open_files(database)
    assert not wal.exists()
    async with open_sqlite(database) as store:
        assert await store.get("last") == last
        assert [pair.key for pair in await store.list("")] == ["after", "again", "before", "last", "theirs"]


async def test_an_application_that_has_the_database_open_itself_keeps_its_locks(database: Path) -> None:
    wal = Path(f"{database}-wal")
    async with open_sqlite(database) as store:
        await store.put("key", b"")
        own = sqlite3.connect(database)
        own.execute("SELECT * FROM aiolibkv").fetchall()
    await puts_elsewhere(database, "theirs", b"")
    assert wal.exists()
    assert len(own.execute("SELECT * FROM aiolibkv").fetchall()) == 2
    own.close()
    async with open_sqlite(database) as store:
        assert await store.exists("theirs")
    assert not open_files(database)


async def test_a_database_that_another_program_has_open(database: Path) -> None:
    """SQLite removed the files beside it with the last store, and made others for the program."""
    with ExitStack() as former, closing(sqlite3.connect(database)) as connection:
        async with open_sqlite(database) as store:
            pair = await store.put("key", b"")
            # As long as they are open, no other file gets their inodes.
            for suffix in ("-wal", "-shm"):
                former.callback(os.close, os.open(f"{database}{suffix}", os.O_RDONLY))
        connection.execute("SELECT * FROM aiolibkv").fetchall()
        async with open_sqlite(database, connection_timeout=1) as store:
            assert await store.get("key") == pair
            pair = await store.put("key", b"")
        assert connection.execute("SELECT rev FROM aiolibkv").fetchall() == [(pair.last_index,)]


@pytest.mark.parametrize("names", [["-wal"], ["-shm"], ["-wal", "-shm"], ["-shared/lock"], ["-wal", "-shm", "-shared"]])
async def test_files_that_are_removed_under_an_open_database(
    database: Path, caplog: pytest.LogCaptureFixture, names: list[str]
) -> None:
    """What was acknowledged is there, and nobody else has the lock before its holder knows that it is lost."""
    async with open_sqlite(database) as store, store.watch_tree("dir") as watch:
        assert not await anext(watch)
        lock = store.new_lock("lock", ttl=3)
        held = await lock.acquire()
        before = await store.put("dir/before", b"")
        assert list(await anext(watch)) == [before]
        for name in names:
            remove(Path(f"{database}{name}"))
        with worker(acquire_and_put, database, "lock", "dir/theirs") as other:
            await held.wait_lost()
            lost = time.monotonic()
            acquired, pairs, theirs = await other.receive()
            assert lost < acquired
            assert [pair for pair in pairs if pair.key != "lock"] == [before]
            assert theirs.last_index > before.last_index
            after = await store.put("dir/after", b"")
            while list(await anext(watch)) != [after, before, theirs]:
                pass
            assert not watch.is_stale
            assert await lock.try_acquire() is None
            other.send("end")
            await other.join()
        assert list(await store.list("dir")) == [after, before, theirs]
    assert not open_files(database)
    assert len([text for text in warnings(caplog) if str(database) in text]) == 1


def spoil(wal: Path, how: str, former: bytes) -> None:
    if how == "overwritten":
        wal.write_bytes(former)
    else:
        os.truncate(wal, {"emptied": 0, "shortened": wal.stat().st_size // 2}[how])


@pytest.mark.parametrize("how", ["emptied", "shortened", "overwritten"])
async def test_a_log_that_is_spoilt_under_an_open_database(
    database: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """What was in it is lost; what is acknowledged later is not, and nobody has the lock before its holder lost it."""
    wal = Path(f"{database}-wal")
    async with open_sqlite(database) as store, store.watch_tree("dir") as watch:
        old = await store.put("dir/old", bytes(200_000))
        former = wal.read_bytes()
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        held = await store.new_lock("lock", ttl=3).acquire()
        lost = await store.put("dir/lost", bytes(100_000))
        while list(await anext(watch)) != [lost, old]:
            pass
        spoil(wal, how, former)
        with worker(acquire_and_put, database, "lock", "dir/theirs") as other:
            async with asyncio.timeout(scaled(5)):
                await held.wait_lost()
            noticed = time.monotonic()
            acquired, pairs, theirs = await other.receive()
            assert noticed < acquired
            assert [pair for pair in pairs if pair.key != "lock"] == [old]
            assert theirs.last_index > lost.last_index
            after = await store.put("dir/after", b"")
            while list(await anext(watch)) != [after, old, theirs]:
                pass
            other.send("end")
            await other.join()
    assert not open_files(database)
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    async with open_sqlite(database) as store:
        assert list(await store.list("dir")) == [after, old, theirs]
    assert len([text for text in warnings(caplog) if str(database) in text]) == 1


@pytest.mark.parametrize("how", ["restored", "moved"])
async def test_a_database_that_is_restored_under_an_open_store(
    database: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    backup = database.with_name("backup.db")
    async with open_sqlite(database) as store, store.watch_tree("dir") as watch:
        assert not await anext(watch)
        old = await store.put("dir/key", b"old")
        copy(database, backup)
        lost = await store.put("dir/key", b"lost")
        await store.put("dir/other", b"lost")
        held = await store.new_lock("lock").acquire()
        while len(await anext(watch)) < 2:
            pass
        if how == "restored":
            copy(backup, database)
        else:
            backup.replace(database)
        async with asyncio.timeout(scaled(5)):
            while list(await anext(watch)) != [old]:
                pass
            await held.wait_lost()
        assert await store.get("dir/key") == old
        with pytest.raises(KeyModifiedError):
            await store.atomic_put("dir/key", b"", lost)
        new = await store.atomic_put("dir/key", b"new", old)
        assert new.last_index > held.fencing_token
        assert list(await anext(watch)) == [new]
        assert (await store.new_lock("lock").acquire()).fencing_token > held.fencing_token
        theirs = await puts_elsewhere(database, "dir/theirs", b"")
        assert list(await anext(watch)) == [new, theirs]
    assert not open_files(database)
    assert len([text for text in warnings(caplog) if str(database) in text]) == {"restored": 0, "moved": 2}[how]


async def test_an_index_of_a_lost_history_never_comes_again(database: Path) -> None:
    """Also when nobody was there when the database was restored."""
    backup = database.with_name("backup.db")
    async with open_sqlite(database) as store:
        await store.put("key", b"1")
        copy(database, backup)
        lost = await store.put("key", b"2")
    backup.replace(database)
    async with open_sqlite(database) as store:
        again = await store.put("key", b"3")
        assert again.last_index > lost.last_index
        with pytest.raises(KeyModifiedError):
            await store.atomic_put("key", b"", lost)


async def test_an_index_never_comes_again_though_all_files_are_restored_in_place(database: Path) -> None:
    """Those of the library as well, as by ``cp -a backup/. .``, while a store has the database open."""
    backup = database.with_name("backup")
    async with open_sqlite(database) as store:
        await store.put("key", b"1")
        copy(database, backup)
        shutil.copytree(f"{database}-shared", f"{backup}-shared")
        lost = await store.put("key", b"2")
        copy(backup, database)
        for file in Path(f"{backup}-shared").iterdir():
            shutil.copyfile(file, f"{database}-shared/{file.name}")
        assert (await store.get("key")).value == b"1"
        again = await store.put("key", b"3")
        assert again.last_index > lost.last_index
        with pytest.raises(KeyModifiedError):
            await store.atomic_put("key", b"", lost)


async def test_another_applications_database_in_place_of_this_one(
    database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = database.with_name("foreign.db")
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE data (value)")
    async with open_sqlite(database, request_timeout=scaled(0.5)) as store, store.watch("key") as watch:
        pair = await store.put("key", b"")
        while await anext(watch) != pair:
            pass
        copy(foreign, database)
        await eventually(lambda: watch.is_stale, within=5, message="the watch is cut off")
        with pytest.raises(StoreError, match="belongs to another application"):
            await store.get("key")
    assert len(warnings(caplog)) == 2


@contextmanager
def mounted(source: Path, target: Path) -> Iterator[None]:
    target.touch()
    done = subprocess.run(["mount", "--bind", source, target], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


@_needs_root
async def test_a_database_that_alone_is_mounted_is_refused(database: Path) -> None:
    """As by ``docker run -v store.db:/data/store.db``: the files beside it are others in there."""
    inside = database.with_name("in a container")
    inside.mkdir()
    async with open_sqlite(database) as store:
        await store.put("key", b"")
        with mounted(database, inside / "store.db"):
            with pytest.raises(StoreError, match="mount the directory") as caught:
                async with open_sqlite(inside / "store.db"):
                    pass
            assert str(inside / "store.db") in str(caught.value)
    assert [file.name for file in inside.iterdir()] == ["store.db"]


async def test_a_database_with_two_names_is_refused(database: Path) -> None:
    async with open_sqlite(database) as store:
        await store.put("key", b"")
        database.with_name("link.db").hardlink_to(database)
        with pytest.raises(StoreError, match="more than one name"):
            async with open_sqlite(database.with_name("link.db")):
                pass
        await store.put("key", b"")


@pytest.fixture
def directory_of_nobody() -> Iterator[Path]:
    """Not below pytest's directory, from which each pytest that starts takes all rights of others."""
    with TemporaryDirectory() as name:
        os.chown(name, 65534, 65534)
        yield Path(name)


@_needs_root
async def test_what_root_leaves_can_be_opened_by_the_owner_of_the_database(
    tmp_path: Path, directory_of_nobody: Path
) -> None:
    database = directory_of_nobody / "store.db"
    database.touch()
    os.chown(database, 65534, 65534)
    before = os.umask(0o077)
    try:
        async with open_sqlite(database) as store:
            await store.put("key", b"", keep_alive=True)
            with worker(enter_as_nobody, tmp_path / "unused.db", str(database)) as other:
                assert await other.receive() == (None, "it was entered")
    finally:
        os.umask(before)
    for file in Path(f"{database}-shared").iterdir():
        assert file.stat().st_uid == 65534
    with worker(enter_as_nobody, tmp_path / "unused.db", str(database)) as other:
        assert await other.receive() == (None, "it was entered")
    lock = Path(f"{database}-shared/lock")
    lock.chmod(0o600)
    os.chown(lock, 0, 0)
    with worker(enter_as_nobody, tmp_path / "unused.db", str(database)) as other:
        kind, text = await other.receive()
    assert kind is AccessDeniedError
    assert str(lock) in text


async def test_a_reading_ends_when_the_store_is_closed(database: Path) -> None:
    """Also one that nobody cancels."""
    async with open_sqlite(database) as store:
        await asyncio.gather(*(store.put(f"key/{number}", bytes(2000)) for number in range(2000)))
        await store.put("large", bytes(16_000_000))
        reader = store.driver._current.reader
        task = asyncio.ensure_future(reader.pairs_below("key", lambda: None))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        other = asyncio.ensure_future(reader.get("large"))
        await asyncio.sleep(0)
        assert len(reader._cursors) == 1
    assert not open_files(database)
    for ended in await asyncio.gather(task, other, return_exceptions=True):
        assert isinstance(ended, StoreClosedError)
    assert not open_files(database)


async def test_the_log_does_not_grow_while_one_list_begins_before_the_other_ends(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shrinking, "LARGE", 500_000)
    wal = Path(f"{database}-wal")
    async with open_sqlite(database) as store, open_sqlite(database) as other:
        await asyncio.gather(*(store.put(f"key/{number}", bytes(500)) for number in range(1000)))

        async def read(reading: AsyncStore) -> None:
            while True:
                assert len(await reading.list("key")) == 1000

        readers = [asyncio.ensure_future(read(reading)) for reading in (store, other, store, other)]
        largest = 0
        for _ in range(40):
            await asyncio.gather(*(store.put(f"hot/{number}", bytes(2000)) for number in range(50)))
            largest = max(largest, wal.stat().st_size)
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)
        assert largest < 6_000_000
        await asyncio.gather(*(store.put(f"large/{number}", bytes(1_000_000)) for number in range(6)))
        await eventually(lambda: wal.stat().st_size < 1_000_000, within=5, message="-wal is emptied")

"""One database in several processes: watches, fairness, and processes that die."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from aiolibkv import Discovery, KeyNotFoundError, Snapshot
from aiolibkv.backends.sqlite import signals
from aiolibkv.testing.scale import eventually, scaled
from sqlite.workers import (
    Worker,
    count_up,
    hold,
    keep_alive,
    keep_alive_and_fork,
    many,
    open_sqlite,
    put_and_die,
    worker,
    write_for_a_while,
    write_until_killed,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

_KILLS = 20
_SECONDS_OF_WRITING = 10.0
"""How long four processes write at once."""


def integrity(database: Path) -> str:
    connection = sqlite3.connect(database)
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()


async def test_writers_that_are_killed_lose_nothing_they_were_told_is_written(database: Path) -> None:
    acknowledged: list[tuple[str, bytes, int]] = []
    seen: dict[int, tuple[str, bytes]] = {}

    async def look(snapshots: Iterator[Snapshot]) -> None:
        for snapshot in snapshots:
            for change in snapshot.changes:
                assert change.pair is not None
                seen[change.pair.last_index] = (change.key, change.pair.value)

    async with open_sqlite(database) as store, store.watch_tree("") as watch:
        await look(iter([await anext(watch)]))

        async def follow() -> None:
            async for snapshot in watch:
                await look(iter([snapshot]))

        following = asyncio.create_task(follow())
        slots = [Worker(write_until_killed, database, "a"), Worker(write_until_killed, database, "b")]
        for turn in range(_KILLS):
            victim = slots[turn % 2]
            # The pause, of varying length, lets the signal come at any point of a write.
            acknowledged.append(await victim.receive())
            await asyncio.sleep(0.02 + turn % 7 * 0.005)
            victim.kill()
            await victim.join()
            acknowledged += victim.received()
            victim.end()
            slots[turn % 2] = Worker(write_until_killed, database, "ab"[turn % 2])
        for last in slots:
            last.kill()
            await last.join()
            acknowledged += last.received()
            last.end()
        pairs = {pair.key: pair for pair in await store.list("")}
        newest = max(pair.last_index for pair in pairs.values())
        await eventually(lambda: max(seen) == newest, within=10, message="the watch has seen the last write")
        following.cancel()
        await asyncio.wait({following})
        await store.put("usable", b"")
    assert len(acknowledged) > _KILLS
    assert [entry for entry in acknowledged if seen[entry[2]] != entry[:2]] == []
    assert sorted(seen) == list(range(min(seen), newest + 1))
    for key, value, index in acknowledged:
        assert pairs[key].last_index > index or pairs[key].value == value
    assert integrity(database) == "ok"


async def have_die(process: Worker) -> None:
    """Have a process carry out ``put_and_die``."""
    process.send("go")
    await process.join()


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_writer_that_dies_beside_its_commit_begins_no_new_history(database: Path, moment: str) -> None:
    """Neither for who has the database open, nor for who opens it next."""

    async def have_one_die() -> None:
        with worker(put_and_die, database, "theirs", moment) as other:
            await other.receive()
            await have_die(other)

    step = 1 if moment == "before" else 2
    async with open_sqlite(database) as store:
        first = await store.put("key", b"1")
        await have_one_die()
        second = await store.atomic_put("key", b"2", first)
        assert second.last_index == first.last_index + step
    await have_one_die()
    async with open_sqlite(database) as store:
        third = await store.atomic_put("key", b"3", second)
        assert third.last_index == second.last_index + step


async def test_two_writers_that_die_beside_their_commits_begin_no_new_history(database: Path) -> None:
    async with open_sqlite(database) as store:
        first = await store.put("key", b"1")
        with worker(put_and_die, database, "a", "after") as one, worker(put_and_die, database, "b", "before") as other:
            await one.receive()
            await other.receive()
            await have_die(one)
            await have_die(other)
        second = await store.atomic_put("key", b"2", first)
        assert second.last_index == first.last_index + 2


async def test_four_processes_write_at_once_and_each_has_its_share(database: Path) -> None:
    async with many(
        write_for_a_while, database, [(f"writer{n}", 50, _SECONDS_OF_WRITING) for n in range(4)]
    ) as workers:
        for one in workers:
            assert await one.receive() == "ready"
        for one in workers:
            one.send("go")
        taken = [await one.receive(within=30 + _SECONDS_OF_WRITING) for one in workers]
    counts = [len(one) for one in taken]
    assert min(counts) > sum(counts) / 4 / 2
    assert max(chain(*taken)) < scaled(3)
    assert integrity(database) == "ok"


async def test_keys_kept_alive_go_when_their_process_is_killed(database: Path) -> None:
    async with open_sqlite(database) as store, store.watch_tree("alive") as watch:
        assert not await anext(watch)
        await store.put("stays", b"")
        with worker(keep_alive, database, ["alive/1", "alive/2", "alive/3"], 600) as other:
            await other.receive()
            while len(await anext(watch)) < 3:
                pass
            before = time.monotonic()
            other.kill()
            snapshot = await anext(watch)
            assert time.monotonic() - before < scaled(2)
        assert [(change.key, change.pair) for change in snapshot.changes] == [(f"alive/{n}", None) for n in (1, 2, 3)]
        assert await store.exists("stays")
        await eventually(lambda: not owners(database), within=5, message="the dead owner's file is removed")


async def test_who_opens_the_database_finds_no_keys_of_the_dead(database: Path) -> None:
    with worker(keep_alive, database, ["alive"], 600) as other:
        await other.receive()
        other.kill()
        await other.join()
    assert owners(database)
    async with open_sqlite(database) as store:
        with pytest.raises(KeyNotFoundError):
            await store.get("alive")
        assert not owners(database)


async def test_who_opens_another_bucket_leaves_the_dead_to_their_own(database: Path) -> None:
    with worker(keep_alive, database, ["alive"], 600) as other:
        await other.receive()
        other.kill()
        await other.join()
    async with open_sqlite(database, bucket="another"):
        pass
    async with open_sqlite(database) as store:
        with pytest.raises(KeyNotFoundError):
            await store.get("alive")
    assert not owners(database)


async def test_keys_of_a_process_that_stands_still_go_after_their_ttl(database: Path) -> None:
    with worker(keep_alive, database, ["alive"], 1) as other:
        pid = await other.receive()
        async with open_sqlite(database) as store, store.watch("alive") as watch:
            assert await anext(watch) is not None
            os.kill(pid, signal.SIGSTOP)
            before = time.monotonic()
            assert await anext(watch) is None
            assert 0.3 < time.monotonic() - before < scaled(3)
            assert not await store.exists("alive")
            os.kill(pid, signal.SIGCONT)
            assert await anext(watch) is not None, "created again by its living owner"


async def test_a_child_does_not_keep_its_dead_parents_keys_alive(database: Path) -> None:
    with worker(keep_alive_and_fork, database, "alive") as other:
        child = await other.receive()
        try:
            async with open_sqlite(database) as store, store.watch("alive") as watch:
                assert await anext(watch) is not None
                other.kill()
                assert await anext(watch) is None
                os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("has_inotify", [True, False])
async def test_a_lock_is_free_when_its_holder_was_killed(
    database: Path, monkeypatch: pytest.MonkeyPatch, *, has_inotify: bool
) -> None:
    def none() -> None:
        raise OSError("no inotify here")

    if not has_inotify:
        monkeypatch.setattr(signals, "Inotify", none)
    async with open_sqlite(database) as store:
        with worker(hold, database, "lock") as other:
            token = await other.receive()
            assert await store.new_lock("lock").try_acquire() is None
            waiting = asyncio.create_task(store.new_lock("lock").acquire())
            await asyncio.sleep(0.05)
            assert not waiting.done()
            before = time.monotonic()
            other.kill()
            held = await waiting
            # 6 ms were measured, and 100 ms where the ends of processes are looked for.
            assert time.monotonic() - before < scaled(0.5)
            assert held.fencing_token > token


async def test_two_processes_write_one_counter(database: Path) -> None:
    """Compare-and-swap across processes: no increment is lost."""
    async with many(count_up, database, [(50,), (50,)]) as workers, open_sqlite(database) as store:
        for one in workers:
            assert await one.receive() == "done"
        assert (await store.get("counter")).value == b"100"


async def test_the_demonstration_sees_another_terminal(tmp_path: Path) -> None:
    database = tmp_path / f"aiolibkv-demo-{os.getuid()}.db"
    async with (
        open_sqlite(database) as store,
        Discovery(store, "demo-services").register("demo", "another terminal"),
    ):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aiolibkv", "demo"),
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await asyncio.wait_for(process.communicate(), scaled(30))
    assert process.returncode == 0
    assert b"another terminal" in output
    assert b"at process %d" % process.pid in output


def owners(database: Path) -> list[str]:
    return [file.name for file in Path(f"{database}-shared").glob("owner-*")]

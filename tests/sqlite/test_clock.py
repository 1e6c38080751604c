"""Lifetimes, whatever is done to the clocks."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from aiolibkv import AsyncStore
from aiolibkv.backends.sqlite import clock
from aiolibkv.testing.scale import eventually, scaled
from sqlite.workers import hold, open_sqlite, worker

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

_HOUR = 3600.0


def set_wall_clock(monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    """Set it for this process."""
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + step)


@pytest.mark.skipif(sys.platform != "linux", reason="here lifetimes count by the wall clock")
@pytest.mark.parametrize("step", [_HOUR, -_HOUR])
async def test_setting_the_wall_clock_ends_nothing(
    database: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """Neither for a store that is open, nor for one of another process, nor for one that is opened then."""
    with worker(hold, database, "lock") as other:
        await other.receive()
        async with open_sqlite(database) as store:
            await store.put("long", b"", ttl=600)
            await store.put("alive", b"", ttl=600, keep_alive=True)
            set_wall_clock(monkeypatch, step)
            async with open_sqlite(database) as later:
                await later.put("short", b"", ttl=0.2)
                for each in (store, later):
                    assert await each.new_lock("lock").try_acquire() is None
                    assert await each.exists("long")
                    assert await each.exists("alive")
                    await eventually(partial(_gone, each, "short"), within=5, message="the key has expired")
                async with store.watch("watched") as watch:
                    assert await anext(watch) is None
                    before = time.monotonic()
                    await later.put("watched", b"", ttl=0.2)
                    assert await anext(watch) is not None
                    assert await anext(watch) is None
                    assert 0.2 < time.monotonic() - before < scaled(3)


async def test_from_one_start_of_the_machine_to_the_next_lifetimes_count_by_the_wall_clock(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_sqlite(database) as store:
        await store.put("short", b"", ttl=600)
        await store.put("long", b"", ttl=2 * _HOUR)
    connection = sqlite3.connect(database)
    with connection:
        # As if the machine had run for a day longer by then.
        connection.execute("""UPDATE ".clock" SET boot = 'the one before', zero = zero - 86400""")
    connection.close()
    set_wall_clock(monkeypatch, _HOUR)
    async with open_sqlite(database) as store:
        assert not await store.exists("short")
        assert await store.exists("long")


async def test_where_starts_cannot_be_told_apart_lifetimes_count_by_the_wall_clock(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "_BOOT", database.with_name("missing"))
    async with open_sqlite(database) as store, open_sqlite(database) as other:
        await store.put("short", b"", ttl=0.2)
        await store.put("long", b"", ttl=600)
        await eventually(lambda: _gone(other, "short"), within=5, message="the key has expired")
        set_wall_clock(monkeypatch, _HOUR)
        assert not await other.exists("long")


async def test_containers_whose_monotonic_clocks_differ(database: Path) -> None:
    """A time namespace shifts the monotonic clock."""
    script = """if True:
        import asyncio, sys
        from aiolibkv import new_store

        async def main():
            async with new_store("sqlite", [sys.argv[1]]) as store:
                print(await store.exists("long"), await store.new_lock("lock").try_acquire())

        asyncio.run(main())
    """
    unshare = shutil.which("unshare")
    shifted = [unshare or "", "--time", "--monotonic", "1000000"]
    trying = await asyncio.create_subprocess_exec(*shifted, "true") if unshare else None
    if trying is None or await trying.wait():
        pytest.skip("a time namespace cannot be made here")
    async with open_sqlite(database) as store:
        await store.put("long", b"", ttl=600)
        async with store.new_lock("lock"):
            other = await asyncio.create_subprocess_exec(
                *shifted, sys.executable, "-c", script, str(database), stdout=asyncio.subprocess.PIPE
            )
            output, _ = await asyncio.wait_for(other.communicate(), scaled(20))
    assert output.decode().split() == ["True", "None"]


async def _gone(store: AsyncStore, key: str) -> bool:
    return not await store.exists(key)

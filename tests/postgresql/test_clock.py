"""The server's clock is set while locks are held and keys have lifetimes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from aiolibkv import LockLostError
from aiolibkv.testing.conformance.suite import follow
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import PostgresServer
from aiolibkv.testing.servers.process import find_program
from postgresql.conftest import Make

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

_HOUR = 3600


class _ClockedServer(PostgresServer):
    """A server whose clock can be set; the others of the machine stay as they are."""

    def set_clock(self, seconds: int) -> None:
        """Set it so far ahead of the machine's."""
        fresh = self.directory / "clock.new"
        fresh.write_text(f"{seconds:+d}")
        fresh.rename(self._clock)

    @property
    def _clock(self) -> Path:
        return self.directory / "clock"

    def _command(self) -> Sequence[str]:
        find_program("faketime", "faketime")
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
        settings = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.set_clock(0)
        return [
            find_program("env", "coreutils"),
            *(f"{name}={value}" for name, value in settings.items()),
            *super()._command(),
        ]


@pytest_asyncio.fixture
async def clocked() -> AsyncIterator[_ClockedServer]:
    """Start a server whose clock can be set."""
    async with _ClockedServer() as running:
        yield running


async def test_a_clock_that_is_set(clocked: _ClockedServer, make: Make) -> None:
    """Forward, and lifetimes end; back, and they are longer. Guards hold, and what is kept alive is."""
    async with (
        make(clocked.endpoint) as store,
        make(clocked.endpoint) as other,
        store.watch_tree("") as tree,
    ):
        held = await store.new_lock("lock", ttl=30).acquire()
        await store.put("short", b"", ttl=1000)
        alive = await store.put("alive", b"", keep_alive=True, ttl=2)
        await follow(tree, lambda snapshot: len(snapshot) == 3)
        clocked.set_clock(_HOUR)
        async with asyncio.timeout(scaled(10)):
            later = await other.new_lock("lock", ttl=2).acquire()
        assert later.fencing_token > held.fencing_token
        with pytest.raises(LockLostError):
            await store.put("guarded", b"", guard=held)
        snapshots = await follow(tree, lambda snapshot: snapshot.get("alive") not in (None, alive))
        assert "short" not in snapshots[-1]

        clocked.set_clock(0)

        async def is_renewed() -> bool:
            return await clocked.sql("SELECT max(expires) < now() + interval '3 s' FROM aiolibkv_leases") == "t\n"

        await eventually(is_renewed, within=10, message="all leases are renewed by the clock as it is now")
        assert await store.new_lock("lock").try_acquire() is None
        await other.put("guarded", b"", guard=later)
        assert later.is_held

"""Connections that a firewall has forgotten, roles that only read, TLS, and a server that has no connection left."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from aiolibkv import AccessDeniedError, NotReachableError
from aiolibkv.testing.conformance.suite import follow, next_of
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import PostgresServer
from aiolibkv.testing.servers.tls import Certificates
from postgresql.conftest import Make

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


async def _processes_of_stores(server: PostgresServer) -> Sequence[int]:
    """Return the processes of the server that stores are connected to."""
    found = await server.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'aiolibkv'")
    return [int(pid) for pid in found.split()]


def _send(number: signal.Signals, processes: Sequence[int]) -> None:
    for pid in processes:
        # One that was made for a moment may be gone.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


async def test_connections_that_are_dead_though_the_server_answers(make: Make, server: PostgresServer) -> None:
    """Their processes stand still, so that they are as mute as what a firewall has forgotten."""
    async with make(request_timeout=scaled(5)) as store, store.watch("key") as watch:
        assert await next_of(watch) is None
        await asyncio.gather(store.exists("key"), store.put("other", b""))
        frozen = await _processes_of_stores(server)
        _send(signal.SIGSTOP, frozen)
        try:
            pair = await store.put("key", b"")
            assert await store.get("key") == pair
            assert await next_of(watch) == pair
        finally:
            _send(signal.SIGCONT, frozen)
        # What they had been told is not done now.
        await eventually(lambda: _are_gone(server, frozen), within=10, message="they see that nobody is there")
        assert await store.get("key") == pair


async def _are_gone(server: PostgresServer, processes: Sequence[int]) -> bool:
    return not set(processes) & set(await _processes_of_stores(server))


async def test_a_call_that_takes_long_keeps_its_connection(make: Make, server: PostgresServer) -> None:
    async with make(request_timeout=scaled(10)) as store:
        await store.put("key", b"")
        before = await _processes_of_stores(server)
        holding = asyncio.ensure_future(
            server.sql("BEGIN; SELECT * FROM aiolibkv_state FOR UPDATE; SELECT pg_sleep(4.5)")
        )
        await eventually(lambda: _is_held(server), within=5, message="the lock is held")
        pair = await store.put("key", b"2")
        await holding
        assert await store.get("key") == pair
        assert set(before) <= set(await _processes_of_stores(server))


async def _is_held(server: PostgresServer) -> bool:
    return await server.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == "1\n"


async def test_a_role_that_only_reads(make: Make, server: PostgresServer) -> None:
    """It reads and watches, also that keys expire, though it may not delete them."""
    options = {"database": server.database, "table": "readable"}
    async with make(options=options) as writer:
        pair = await writer.put("key", b"1")
        await server.sql(
            "CREATE ROLE reader LOGIN PASSWORD 'reader-password'; GRANT SELECT ON readable, readable_log,"
            " readable_leases, readable_state, readable_writers TO reader"
        )
        async with (
            make(options=options, username="reader", password="reader-password") as store,
            store.watch_tree("") as tree,
        ):
            assert list(await next_of(tree)) == [pair]
            for call in (store.put("key", b""), store.new_lock("lock").try_acquire(), store.delete_tree("")):
                with pytest.raises(AccessDeniedError):
                    await call
            # Nothing was begun that would have to be ended.
            assert not store._sessions._revocations._running
            await writer.put("key", b"2", ttl=1)
            await follow(tree, lambda snapshot: not snapshot)


@pytest.mark.parametrize("setting", ["database", "username", "password"])
@pytest.mark.parametrize("text", ["app\0user\0postgres", "\ud800"], ids=["NUL", "surrogate"])
async def test_what_the_protocol_cannot_carry(make: Make, setting: str, text: str) -> None:
    """A NUL would end the text, and what follows be another parameter."""
    with pytest.raises(ValueError, match=f"the {setting} has a character"):
        make(**({"options": {"database": text}} if setting == "database" else {setting: text}))


async def test_a_server_that_has_no_connection_left(make: Make) -> None:
    settings = {"max_connections": "6", "superuser_reserved_connections": "3"}
    async with (
        PostgresServer(settings=settings) as server,
        make(server.endpoint) as first,
        first.watch("key") as watch,
        make(server.endpoint) as second,
    ):
        assert await next_of(watch) is None
        with pytest.raises(NotReachableError, match="has no connection left"):
            await make(server.endpoint, connection_timeout=1).open()
        # A store makes do with one.
        pairs = await asyncio.gather(*(store.put(f"{n}", b"") for n, store in enumerate([first, second] * 5)))
        assert len(await second.list("")) == len(pairs)


async def test_tls(make: Make, tmp_path: Path) -> None:
    """Names and authorities are verified; when all certificates are renewed, open stores need not be."""
    here, fresh = tmp_path / "here", tmp_path / "fresh"
    for directory in (here, fresh):
        directory.mkdir()
    certificates = Certificates(here)
    own = {"cert_file": certificates.client_cert, "key_file": certificates.client_key}
    files = {"tls": True, "ca_file": certificates.ca, **own}
    async with PostgresServer(tls=certificates) as server:
        with pytest.raises(NotReachableError, match="certificate is not accepted"):
            await make(server.endpoint, tls=True, **own).open()
        with pytest.raises(AccessDeniedError, match="client certificate"):
            await make(server.endpoint, tls=True, ca_file=certificates.ca).open()
        with pytest.raises(AccessDeniedError, match="no encryption"):
            await make(server.endpoint).open()
        async with (
            make(server.endpoint.replace("127.0.0.1", "localhost"), **files) as store,
            store.watch("key") as watch,
        ):
            assert await next_of(watch) is None
            pair = await store.put("key", b"")
            assert await next_of(watch) == pair
            Certificates(fresh)
            for file in fresh.iterdir():
                shutil.copy(file, here / file.name)
            await server.restart()
            pair = await store.put("key", b"new")
            assert await next_of(watch) == pair

"""Connections that a firewall has forgotten, roles that only read, TLS, and a server that has no connection left."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from aiolibkv import AccessDeniedError, Config, NotReachableError
from aiolibkv.backends.postgresql.connection import Link
from aiolibkv.backends.postgresql.statements import Statement
from aiolibkv.testing.conformance.suite import follow, next_of
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import PostgresServer
from aiolibkv.testing.servers.tls import Certificates
from postgresql.conftest import Make
from stores import PostgresStore

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


async def test_connections_that_ended_while_idle(make: Make, server: PostgresServer) -> None:
    """They are not used any more, so they leave no write in doubt."""
    await server.sql("CREATE ROLE rotated LOGIN PASSWORD 'old'; CREATE SCHEMA AUTHORIZATION rotated")
    options = {"database": server.database, "schema": "rotated"}
    async with make(options=options, username="rotated", password="old") as store:
        await asyncio.gather(store.put("key", b""), store.exists("key"))
        connections = store.driver._connections
        assert connections is not None
        await server.sql(
            "ALTER ROLE rotated PASSWORD 'new';"
            " SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotated'"
        )
        await eventually(
            lambda: not any(link.is_good for link in connections._idle), within=5, message="the store has heard of it"
        )
        with pytest.raises(AccessDeniedError) as denied:
            await store.put("key", b"")
        assert not denied.value.maybe_applied


async def test_variables_of_libpq(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """They say who the user is where nothing else does, and nothing more."""
    meant_for_others = {
        "PGHOST": "/nowhere",
        "PGPORT": "1",
        "PGSERVICE": "nowhere",
        "PGSSLMODE": "verify-full",
        "PGSSLNEGOTIATION": "direct",
        "PGTARGETSESSIONATTRS": "standby",
        "PGKRBSRVNAME": "nobody",
        "PGGSSLIB": "nothing",
        "PGOPTIONS": "-c statement_timeout=1",
    }
    username, password = server.user
    named = {"PGUSER": username, "PGPASSWORD": password, "PGDATABASE": server.database}
    for name, value in (meant_for_others | named).items():
        monkeypatch.setenv(name, value)
    async with PostgresStore([server.endpoint], Config(prefix="named")) as store:
        await store.put("key", b"")
    config = Config(username="nobody", password="of-nobody", options={"database": server.database})
    with pytest.raises(AccessDeniedError, match='user "nobody"'):
        await PostgresStore([server.endpoint], config).open()


async def test_a_unix_socket(server: PostgresServer, tmp_path: Path) -> None:
    """Named itself, whatever its name, or by its directory as for libpq."""
    socket = server.directory / f".s.PGSQL.{server.port}"
    proxy = tmp_path / "proxy.sock"
    for link in (tmp_path / ".s.PGSQL.5432", proxy):
        link.symlink_to(socket)
    config = Config(username="postgres", options={"database": server.database, "table": "near"})
    for path in (socket, proxy, tmp_path, f"{tmp_path}/"):
        async with PostgresStore([f"unix:{path}"], config) as store:
            pair = await store.put("key", b"")
            assert await store.get("key") == pair


async def test_an_idle_connection_is_in_no_transaction(make: Make, server: PostgresServer) -> None:
    """One that is would keep locks, and vacuum from its work."""
    async with make(), make() as store, store.watch("key") as watch:
        await next_of(watch)
        states = await server.sql(
            "SELECT DISTINCT state, xact_start IS NULL FROM pg_stat_activity WHERE application_name = 'aiolibkv'"
        )
        assert states == "idle|t\n"


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


async def test_a_connection_that_has_ended_before_a_request(direct: PostgresStore, server: PostgresServer) -> None:
    """The caller is told, and the event loop has nothing to tell, whatever asyncpg knows of the end by then."""
    connections = direct.driver._connections
    assert connections is not None
    for steps in range(5):
        link = await connections.open()
        link.server = link.server._replace(is_pooled=True)
        link.connection._transport.pause_reading()
        await server.sql(f"SELECT pg_terminate_backend({link.pid})")
        await eventually(partial(_are_gone, server, [link.pid]), within=5, message="it has ended")
        link.connection._transport.resume_reading()
        for _ in range(steps):
            await asyncio.sleep(0)
        with pytest.raises(NotReachableError):
            await link.rows(Statement("SELECT 1::bigint", "i"))


class _Cut:
    """A call whose connection ends when an answer has come that the call has not seen yet."""

    def __init__(self, call: Awaitable[object], number: int, link: Link) -> None:
        self._call = call
        self._number = number
        self._link = link

    def __await__(self) -> Generator[Any, None, bool]:
        """Return whether there was no such answer any more."""
        steps = self._call.__await__()
        step = partial(steps.send, None)
        for number in count(1):
            try:
                answer = step()
            except StopIteration:
                return number <= self._number
            if number == self._number:
                answer.add_done_callback(lambda _: self._link.connection.terminate())
            try:
                yield answer
                step = partial(steps.send, None)
            except BaseException as error:  # noqa: BLE001 - it is for the call
                step = partial(steps.throw, error)
        raise AssertionError


@pytest.mark.parametrize("use", ["listen", "rows", "script", "snapshot", "prepare"])
async def test_a_connection_that_ends_between_an_answer_and_what_follows(direct: PostgresStore, use: str) -> None:
    one = Statement("SELECT 1::bigint", "i")

    async def in_snapshot(link: Link) -> None:
        async with link.snapshot():
            await link.rows(one)

    uses: Mapping[str, Callable[[Link], Awaitable[object]]] = {
        "listen": lambda link: link.listen("channel", lambda _: None),
        "rows": lambda link: link.rows(one),
        "script": lambda link: link.script("SELECT 1; SELECT 2"),
        "snapshot": in_snapshot,
        "prepare": lambda link: link.prepare(one),
    }
    connections = direct.driver._connections
    assert connections is not None
    for number in count(1):
        link = await connections.open()
        is_done = False
        with contextlib.suppress(NotReachableError):
            is_done = await _Cut(uses[use](link), number, link)
        connections.retire(link)
        if is_done:
            break

"""How servers are reached: names, certificates, slow links, limits, and what an outage is said to be."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aiolibkv import NotReachableError
from aiolibkv.backends.zookeeper import session
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import Certificates, ZooKeeperServer
from faults.impostors import Front, between
from zookeeper.conftest import make_store


@asynccontextmanager
async def slow_uplink(host: str, port: int, rate: int, *, receive_buffer: int | None = None) -> AsyncIterator[str]:
    """Pass on so many bytes a second to a server, and its answers at once.

    Args:
        host: the server's.
        port: the server's.
        rate: of bytes in a second.
        receive_buffer: bytes that the system takes before they are passed on; as many as it likes if not given.
    """
    block = rate // 40

    async def up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(block):
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(len(data) / rate)  # the speed of the link

    async def down(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async with Front(between(host, port, up, down), limit=block) as listening:
        if receive_buffer is not None:
            listening.hold_at_most(receive_buffer)
        yield listening.endpoint


@pytest.mark.asyncio
async def test_a_value_that_takes_longer_to_send_than_a_server_may_be_silent(
    server: ZooKeeperServer, prefix: str
) -> None:
    """Something in between may hold all of it, or its pieces leave, though the ping behind it is not answered."""
    for rate, size, receive_buffer in ((300_000, 1_000_000, None), (70_000, 400_000, 8192)):
        async with (
            slow_uplink(server.host, server.port, rate, receive_buffer=receive_buffer) as endpoint,
            make_store([endpoint], prefix=prefix, request_timeout=30, options={"session_timeout": 10}) as store,
        ):
            connection = await store.driver._session.connection()
            await store.put("key", b"")
            await store.put("key", bytes(size))
            assert len((await store.get("key")).value) == size
            assert await store.driver._session.connection() is connection
            await store.delete("key")


@pytest.mark.asyncio
async def test_a_server_that_falls_silent_while_a_value_is_sent(server: ZooKeeperServer, prefix: str) -> None:
    """Nothing leaves any more, so it is given up as any silent one."""
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make_store([proxy.endpoint], prefix=prefix, request_timeout=scaled(20)) as store,
    ):
        connection = await store.driver._session.connection()
        proxy.blackhole()
        began = asyncio.get_running_loop().time()
        with pytest.raises(NotReachableError, match="no sign of life"):
            await store.put("key", bytes(200_000))
        assert connection.closed.done()
        assert asyncio.get_running_loop().time() - began < scaled(5)
        proxy.heal()


@pytest.mark.asyncio
@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
async def test_each_address_of_a_name_is_tried(
    server: ZooKeeperServer, prefix: str, monkeypatch: pytest.MonkeyPatch, order: slice
) -> None:
    """Also when the connection has to be made again."""
    look_up = socket.getaddrinfo

    def addresses(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if host != "servers.test":
            return look_up(host, port, *args, **kwargs)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.9", server.host)][
            order
        ]

    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    async with make_store([f"servers.test:{server.port}"], prefix=prefix) as store:
        pair = await store.put("key", b"")
        for _ in range(2):
            (await store.driver._session.connection()).abort(NotReachableError())
            assert await store.get("key") == pair
        await store.delete("key")


@pytest.mark.asyncio
async def test_a_look_up_that_stalls(server: ZooKeeperServer, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next server does not wait for it, nor what was looked up before, nor close."""
    look_up = socket.getaddrinfo
    release = threading.Event()

    def addresses(host: str, *args: Any, **kwargs: Any) -> Any:
        if host == "stalled.test":
            release.wait(60)
        return look_up("127.0.0.1" if host == "known.test" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    try:
        async with asyncio.timeout(scaled(10)):
            async with make_store([f"stalled.test:{server.port}", server.endpoint], prefix=prefix) as store:
                pair = await store.put("key", b"")
            async with make_store([f"known.test:{server.port}"], prefix=prefix) as store:
                monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: release.wait(60) and [])
                (await store.driver._session.connection()).abort(NotReachableError())
                assert await store.get("key") == pair
                await store.delete("key")
    finally:
        release.set()


@pytest.mark.asyncio
async def test_connecting_again_does_not_wait_for_the_applications_threads(
    server: ZooKeeperServer, prefix: str
) -> None:
    """All of the event loop's own are busy."""
    release = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with make_store([f"localhost:{server.port}"], prefix=prefix) as store:
        busy = [asyncio.ensure_future(asyncio.to_thread(_wait_for, release, loop)) for _ in range(40)]
        await asyncio.sleep(0)
        try:
            (await store.driver._session.connection()).abort(NotReachableError())
            await store.put("key", b"")
            await store.delete("key")
        finally:
            release.set()
            await asyncio.gather(*busy)


def _wait_for(event: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
    asyncio.run_coroutine_threadsafe(event.wait(), loop).result()


@pytest.mark.asyncio
async def test_certificates_that_are_renewed(tmp_path: Path) -> None:
    """An open store connects again after everything, the authority included, was replaced."""
    (tmp_path / "used").mkdir()
    (tmp_path / "fresh").mkdir()
    used = Certificates(tmp_path / "used")
    async with ZooKeeperServer(tls=used) as server:
        tls: dict[str, Any] = {
            "tls": True,
            "ca_file": used.ca,
            "cert_file": used.client_cert,
            "key_file": used.client_key,
        }
        async with make_store([server.endpoint], request_timeout=scaled(10), **tls) as store:
            pair = await store.put("key", b"")
            Certificates(tmp_path / "fresh")
            for file in (tmp_path / "fresh").iterdir():
                shutil.copy(file, tmp_path / "used" / file.name)
            await server.restart()
            assert await store.get("key") == pair


@pytest.mark.asyncio
async def test_an_outage_has_an_endpoint_and_a_cause(server: ZooKeeperServer, prefix: str, tmp_path: Path) -> None:
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make_store([proxy.endpoint], prefix=prefix, request_timeout=1) as store,
    ):
        proxy.cut_answers()
        with pytest.raises(NotReachableError) as caught:
            await store.put("key", b"")
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        assert (caught.value.endpoint, caught.value.maybe_applied) == (proxy.endpoint, True)
        proxy.refuse()
        proxy.reset()
        for call in (
            lambda: store.get("key"),
            lambda: store.put("key", b""),
            lambda: store.list(""),
            lambda: store.put("key", b"", ttl=5),
        ):
            with pytest.raises(NotReachableError) as caught:
                await call()
            assert isinstance(caught.value.__cause__, ConnectionRefusedError)
            assert caught.value.endpoint == proxy.endpoint
            assert not caught.value.maybe_applied
    stranger = Certificates(tmp_path)
    store = make_store([server.endpoint], tls=True, ca_file=stranger.ca, connection_timeout=scaled(1))
    with pytest.raises(NotReachableError) as caught:
        await store.__aenter__()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.endpoint == server.endpoint


@pytest.mark.asyncio
async def test_a_server_with_as_many_connections_as_it_allows(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        ZooKeeperServer(max_connections=1) as server,
        make_store([server.endpoint], request_timeout=scaled(2)) as store,
    ):
        with pytest.raises(NotReachableError, match="maxClientCnxns") as caught:
            async with make_store([server.endpoint], connection_timeout=scaled(1)):
                pass
        assert caught.value.endpoint == server.endpoint
        acquiring = asyncio.ensure_future(store.new_lock("lock", ttl=5).acquire())
        await eventually(lambda: "maxClientCnxns" in caplog.text, within=10, message="a warning names the limit")
        assert not acquiring.done()
        acquiring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await acquiring
        await store.put("key", b"")


@pytest.mark.asyncio
async def test_a_link_on_which_connecting_takes_long(
    server: ZooKeeperServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers are given more time in each round, up to all that there is for connecting."""
    monkeypatch.setattr(session, "_FIRST_ATTEMPT", 0.1)
    async with FaultProxy(server.host, server.port, protocol="zookeeper") as proxy:
        proxy.delay(0.2)
        store = make_store([proxy.endpoint], prefix=prefix, connection_timeout=scaled(20))
        for _ in range(10):
            try:
                await store.__aenter__()
                break
            except NotReachableError:
                continue
        try:
            with proxy.counting() as counts:
                proxy.reset()
                assert not await store.exists("key")
            # It is known how long connecting took; to go on with a session takes a round trip more.
            assert counts.connections <= 2
        finally:
            await store.close()

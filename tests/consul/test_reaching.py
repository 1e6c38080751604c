"""How servers are reached: names, certificates, Unix sockets, what stands before them, and how long they may take."""

import asyncio
import json
import shutil
import socket
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aiolibkv import Config, KeyNotFoundError, NotReachableError, StoreError, open_store
from aiolibkv.backends.consul.connection import Connection
from aiolibkv.backends.consul.scope import Scope
from aiolibkv.events import Connected, Disconnected
from aiolibkv.store import Endpoints
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers import Certificates, ConsulServer
from consul.conftest import Make
from consul.rewriting import Rewriting
from stores import ConsulStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


Known = dict[str, list[str] | threading.Event]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Known:
    """Say which addresses names have; an event holds the look-up up until it is set."""
    known: Known = {}
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
        found = known.get(host)
        if isinstance(found, threading.Event):
            found.wait(60)
            raise socket.gaierror("nobody answers")
        return [answer for address in found or [host] for answer in real(address, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


async def test_a_name_with_an_address_that_refuses(make: Make, server: ConsulServer, names: Known) -> None:
    names["consul.test"] = ["127.0.0.99", "127.0.0.1"]
    async with make(f"consul.test:{server.port}") as store:
        pair = await store.put("key", b"")
        assert await store.get("key") == pair


async def test_a_name_that_moves(make: Make, server: ConsulServer, names: Known) -> None:
    """The old address is not kept."""
    async with FaultProxy(server.host, server.port) as proxy:
        names["consul.test"] = ["127.0.0.1"]
        async with make(f"consul.test:{proxy.port}", request_timeout=scaled(1)) as store:
            pair = await store.put("key", b"")
            names["consul.test"] = ["127.0.0.99"]
            proxy.reset()
            with pytest.raises(NotReachableError, match=r"127\.0\.0\.99"):
                await store.get("key")
            names["consul.test"] = ["127.0.0.1"]
            assert await store.get("key") == pair


async def test_a_look_up_that_stalls(make: Make, server: ConsulServer, names: Known) -> None:
    """Neither the other endpoint waits for it, nor what was reached already, nor close."""
    stalled = threading.Event()
    names["consul.test"] = ["127.0.0.1"]
    try:
        async with FaultProxy(server.host, server.port) as proxy, asyncio.timeout(scaled(6)):
            async with make(f"consul.test:{proxy.port}") as store:
                pair = await store.put("key", b"")
                names["consul.test"] = stalled
                proxy.reset()
                assert await store.get("key") == pair
            async with make(f"consul.test:{proxy.port}", server.endpoint, connection_timeout=2) as store:
                assert await store.get("key") == pair
    finally:
        stalled.set()


async def test_entering_where_no_name_is_looked_up_tells_so(make: Make, names: Known) -> None:
    names["consul.test"] = stalled = threading.Event()
    try:
        with pytest.raises(NotReachableError, match=r"consul\.test could not be looked up: no answer within"):
            await make("consul.test", connection_timeout=scaled(1)).open()
    finally:
        stalled.set()


async def test_certificates_are_read_again(make: Make, tmp_path: Path) -> None:
    """When all of them are renewed, the authority included."""
    here, fresh = tmp_path / "here", tmp_path / "fresh"
    for directory in (here, fresh):
        directory.mkdir()
    certificates = Certificates(here)
    settings = {
        "tls": True,
        "ca_file": certificates.ca,
        "cert_file": certificates.client_cert,
        "key_file": certificates.client_key,
        "request_timeout": scaled(5),
    }
    async with ConsulServer(tls=certificates) as server, make(server.endpoint, **settings) as store:
        pair = await store.put("key", b"")
        async with store.watch("key") as watch:
            assert await anext(watch) == pair
            Certificates(fresh)
            for file in fresh.iterdir():
                shutil.copy(file, here / file.name)
            await server.restart()
            assert await store.get("key") == pair
            pair = await store.put("key", b"new")
            async with asyncio.timeout(scaled(10)):
                assert await anext(watch) == pair


async def test_a_call_that_is_cancelled_while_it_connects(make: Make, server: ConsulServer, tmp_path: Path) -> None:
    """Its socket is closed when its transport is, or else the next one with its number belongs to both."""
    certificates = Certificates(tmp_path)
    files = {"ca_file": certificates.ca, "cert_file": certificates.client_cert, "key_file": certificates.client_key}
    async with ConsulServer(tls=certificates) as secured, make(secured.endpoint, tls=True, **files) as store:
        for steps in range(60):
            # The first one has the connection that there is.
            calls = [asyncio.create_task(store.exists("key")) for _ in range(2)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            _, writer = await asyncio.open_connection(server.host, server.port)
            writer.transport.abort()
            await asyncio.sleep(0)
        assert not await store.exists("key")


async def test_a_slow_link(make: Make, tmp_path: Path) -> None:
    """Connecting with TLS takes longer than it is waited for at first where there are several servers."""
    certificates = Certificates(tmp_path)
    settings = {"tls": certificates.ssl_context(), "connection_timeout": 5, "request_timeout": scaled(10)}
    async with (
        ConsulServer(tls=certificates) as server,
        FaultProxy(server.host, server.port) as proxy,
        make(proxy.endpoint, "127.0.0.1:1", **settings) as store,
    ):
        pair = await store.put("key", b"")
        proxy.delay(0.6)
        proxy.reset()
        assert await store.get("key") == pair


async def test_the_only_server_takes_its_time(make: Make, proxy: FaultProxy) -> None:
    """There is no other one to be asked instead, so that it is asked once."""
    async with make(proxy.endpoint, request_timeout=scaled(2.5)) as store:
        pair = await store.put("key", b"")
        proxy.delay(scaled(0.9))
        with proxy.counting() as counts:
            assert await store.get("key") == pair
        assert counts.requests == 1


async def test_a_unix_socket(tmp_path: Path) -> None:
    """Two of them, which are two servers."""
    first, second = tmp_path / "first.sock", tmp_path / "second.sock"
    async with AsyncExitStack() as entering:
        for path in (first, second):
            hcl = f'addresses {{ http = "127.0.0.1 unix://{path}" }}'
            await entering.enter_async_context(ConsulServer(extra_args=["-hcl", hcl]))
        stores = [
            await entering.enter_async_context(open_store(f"consul://unix:{str(path).replace('/', '%2F')}/app"))
            for path in (first, second)
        ]
        pair = await stores[0].put("key", b"")
        assert await stores[0].get("key") == pair
        assert not await stores[1].exists("key")
        both = await entering.enter_async_context(
            ConsulStore([f"unix:{first}", f"unix:{second}"], Config(prefix="app"))
        )
        assert await both.get("key") == pair
        connection = both.driver._connection
        connection.failed(connection.endpoint, "the next one is to be used, and no connection to the first")
        assert not await both.exists("key")
    with pytest.raises(NotReachableError, match=f"unix:{tmp_path}/none"):
        await ConsulStore([f"unix:{tmp_path}/none"], Config(connection_timeout=0.5)).__aenter__()


async def test_a_path_before_the_api(server: ConsulServer, prefix: str) -> None:
    asked: list[str] = []

    def refuse(request: web.Request) -> tuple[int, str] | None:
        asked.append(request.path)
        page = "<html><head><title>404 Not Found</title></head></html>"
        return None if request.path.startswith("/tools/consul/v1/") else (404, page)

    async with Rewriting(server, refuse=refuse, path="/tools/consul") as front:
        async with open_store(f"consul://{front.endpoint}/{prefix}?http_path=/tools/consul/") as store:
            pair = await store.put("key", b"", ttl=60)
            assert await store.get("key") == pair
            assert await anext(store.watch("key")) == pair
        assert all(path.startswith("/tools/consul/v1/") for path in asked)
        with pytest.raises(NotReachableError, match=r"HTML page \(404 Not Found\)"):
            await open_store(f"consul://{front.endpoint}/{prefix}?connection_timeout=0.5").__aenter__()


async def test_another_datacenter(server: ConsulServer, prefix: str) -> None:
    async with open_store(f"consul://{server.endpoint}/{prefix}?dc=dc1") as store:
        pair = await store.put("key", b"", ttl=60)
        assert await store.get("key") == pair
        assert await anext(store.watch_tree("")) == [pair]
    with pytest.raises(NotReachableError, match="No path to datacenter"):
        await open_store(f"consul://{server.endpoint}/{prefix}?dc=nowhere&connection_timeout=0.5").__aenter__()


async def test_what_only_consul_enterprise_has(server: ConsulServer) -> None:
    """Neither is left out in silence."""
    with pytest.raises(StoreError, match="Enterprise feature"):
        await open_store(f"consul://{server.endpoint}/app?namespace=team").__aenter__()
    scope = Scope(Config(options={"dc": "b", "namespace": "te am", "partition": "p"}))
    assert scope.query == "&dc=b&partition=p&ns=te%20am"
    assert scope.node_query == "&dc=b&partition=p"
    assert json.loads(f'{{"Verb":"get"{scope.fields}}}') == {"Verb": "get", "Namespace": "te am", "Partition": "p"}
    for wrong in ("", 1):
        with pytest.raises(ValueError, match="option namespace"):
            Scope(Config(options={"namespace": wrong}))


async def test_nodes_are_in_no_namespace(server: ConsulServer) -> None:
    """The one that sessions are bound to is of all namespaces of a partition."""
    asked: list[str] = []

    def refuse(request: web.Request) -> tuple[int, str] | None:
        asked.append(request.path_qs)
        return None if "ns=" not in request.query_string else (503, "rate limit exceeded")

    async with Rewriting(server, refuse=refuse) as front:
        store = ConsulStore([front.endpoint], Config(options={"namespace": "team", "partition": "p"}))
        connection = Connection(store.driver.config, Endpoints([front.endpoint], 8500), store.driver)
        try:
            with pytest.raises(StoreError):
                await connection.read("kv/key?raw")
            with pytest.raises(StoreError):
                await connection.request("PUT", "catalog/register", b"{}")
        finally:
            await connection.close()
    assert asked == ["/v1/kv/key?raw&partition=p&ns=team", "/v1/catalog/register?partition=p"]


async def test_which_server_is_heard_is_told(make: Make, server: ConsulServer, proxy: FaultProxy) -> None:
    """Each once, and why no more."""
    told: list[tuple[str, str]] = []

    def note(event: object) -> None:
        if isinstance(event, Connected):
            told.append(("connected", event.endpoint))
        elif isinstance(event, Disconnected):
            told.append((event.reason, event.endpoint))

    async with make(proxy.endpoint, server.endpoint, listener=note) as store:
        await store.put("key", b"")
        with pytest.raises(KeyNotFoundError) as caught:
            await store.get("missing")
        assert caught.value.endpoint == proxy.endpoint
        proxy.refuse()
        proxy.reset()
        for _ in range(3):
            await store.get("key")
    assert [endpoint for _, endpoint in told] == [proxy.endpoint] * 2 + [server.endpoint] * 2
    assert [reason for reason, _ in told][::3] == ["connected", "the store is closed"]
    assert told[1][0].startswith("the connection failed")

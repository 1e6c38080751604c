"""What stands between a store and its server, and ends what it finds too slow or too quiet."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial

import pytest

from aiolibkv.events import Disconnected, Event, WatchStale
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import ConsulServer
from aiolibkv.testing.servers.reverse_proxies import Haproxy, Nginx, ReverseProxy
from consul.conftest import Make
from consul.recording import recorded
from faults.impostors import Front, between, passing_on
from stores import ConsulStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


@pytest.mark.parametrize("proxy", [partial(Nginx, read_timeout=1.2), partial(Haproxy, idle_timeout=1.2)])
async def test_a_proxy_with_less_patience_than_a_blocking_query(
    make: Make, server: ConsulServer, direct: ConsulStore, entering: AsyncExitStack, proxy: partial[ReverseProxy]
) -> None:
    """Its 504, or a closed connection, is no outage: neither of the watch nor of the server."""
    told: list[Event] = []
    impatient = await entering.enter_async_context(proxy([server.endpoint]))
    seeing = await entering.enter_async_context(FaultProxy(impatient.host, impatient.port, protocol="http1"))
    store = await entering.enter_async_context(make(seeing.endpoint, listener=told.append))

    def reads() -> int:
        return sum(b"/dir/?recurse&consistent HTTP" in request for request in requests)

    async with store.watch_tree("dir") as watch:
        with recorded(seeing) as requests:
            assert await anext(watch) == []
            await eventually(lambda: reads() == 2, within=15, message="a query was given up")
        pair = await direct.put("dir/key", b"")
        async with asyncio.timeout(scaled(5)):
            assert await anext(watch) == [pair]
        assert not [event for event in told if isinstance(event, WatchStale | Disconnected)]


async def test_what_comes_unasked_is_no_answer(make: Make, server: ConsulServer, direct: ConsulStore) -> None:
    """It would be taken for the next request's, and that one's answer for the one after, from then on."""
    clients: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.add(writer)
        await passing_on(server.port)(reader, writer)

    async with Front(serve) as front, make(front.endpoint) as store:
        pairs = [await store.put(key, key.encode()) for key in "ab"]
        for unasked in (b"200 OK\r\nX-Consul-Index: 7\r\nContent-Length: 1\r\n\r\nx", b"408 Request Timeout\r\n\r\n"):
            for client in clients:
                client.write(b"HTTP/1.1 " + unasked)
            assert await direct.exists("a")  # meanwhile it arrives
            assert [await store.get(key) for key in "ab"] == pairs


async def test_a_write_does_not_meet_an_end_that_the_event_loop_has_not_seen(make: Make, server: ConsulServer) -> None:
    """A proxy that reads its settings again closes what is idle at once, also what was used a moment ago."""
    clients: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.append(writer)
        await passing_on(server.port)(reader, writer)

    async with Front(serve) as front, make(front.endpoint) as store:
        for number in range(3):
            await store.exists("key")
            for client in clients:
                with suppress(OSError):
                    client.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
            clients.clear()
            pair = await store.put("key", bytes([number]))
            assert await store.get("key") == pair


async def test_a_write_does_not_meet_the_end_of_an_idle_connection(
    make: Make, server: ConsulServer, direct: ConsulStore
) -> None:
    """What stands before the server closes connections that were idle, on the first byte of the next request."""
    clock = asyncio.get_running_loop().time
    cut: list[float] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        used: float | None = None

        async def up(reader: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
            while sent := await reader.read(65536):
                if used is not None and clock() - used > 1:
                    cut.append(clock())
                    return
                to_server.write(sent)

        async def down(from_server: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal used
            while said := await from_server.read(65536):
                writer.write(said)
                used = clock()

        await between(server.host, server.port, up, down)(reader, writer)

    previous = await direct.put("swapped", b"")
    await direct.put("deleted", b"")
    await direct.put("dir/key", b"")
    async with Front(serve) as front, make(front.endpoint) as store:
        writes: list[Callable[[], Awaitable[object]]] = [
            lambda: store.put("put", b""),
            lambda: store.atomic_put("created", b"", None),
            lambda: store.atomic_put("swapped", b"new", previous),
            lambda: store.delete("deleted"),
            lambda: store.delete_tree("dir"),
            lambda: store.put("large", bytes(450_000)),
        ]
        # As many connections are open now.
        await asyncio.gather(*(store.exists("put") for _ in writes))
        await asyncio.sleep(1.2)  # they are idle for so long
        await asyncio.gather(*(write() for write in writes))
        assert not cut
        await asyncio.sleep(1.2)
        assert [pair.key for pair in await store.list("")] == ["created", "large", "put", "swapped"]
        assert len(cut) == 1

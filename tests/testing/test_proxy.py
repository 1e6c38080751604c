import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from testing.streams import assert_reset, connected, receive


class Peer:
    """A server that says "<" and what it was told, and "bye" when the client has finished."""

    def __init__(self) -> None:
        self.received = b""
        self.connections = 0
        self.resets = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            while data := await reader.read(65536):
                self.received += data
                writer.write(b"<" + data)
            writer.write(b"bye")
        except ConnectionResetError:
            self.resets += 1
        finally:
            writer.close()


@pytest_asyncio.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer()
    server = await asyncio.start_server(peer.serve, "127.0.0.1")
    peer.port = server.sockets[0].getsockname()[1]
    yield peer
    for writer in peer.writers:
        if not writer.is_closing():
            writer.transport.abort()
    server.close()


@pytest_asyncio.fixture
async def proxy(peer: Peer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", peer.port) as proxy:
        yield proxy


async def assert_mute(reader: asyncio.StreamReader) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.read(1)


@pytest.mark.asyncio
async def test_bytes_pass_both_ways(proxy: FaultProxy) -> None:
    blob = bytes(range(256)) * 40_000
    async with connected(proxy) as (reader, writer):
        writer.write(b"hello")
        await receive(reader, b"<hello")
        writer.write(blob)
        writer.write_eof()
        async with asyncio.timeout(scaled(20)):
            answer = await reader.read()
    assert answer.replace(b"<", b"") == (blob + b"bye").replace(b"<", b"")


@pytest.mark.asyncio
async def test_addresses(proxy: FaultProxy) -> None:
    assert proxy.endpoint == proxy.url_host == f"127.0.0.1:{proxy.port}"


@pytest.mark.asyncio
async def test_half_close_is_forwarded(proxy: FaultProxy) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"x")
        writer.write_eof()
        # "bye" is sent only after the server saw the end of the client's bytes.
        async with asyncio.timeout(scaled(5)):
            assert await reader.read() == b"<xbye"
        assert proxy.connections_open == 0


@pytest.mark.asyncio
async def test_connections_are_counted(proxy: FaultProxy) -> None:
    async with connected(proxy) as (reader, writer), connected(proxy) as (other_reader, other_writer):
        writer.write(b"a")
        other_writer.write(b"b")
        await receive(reader, b"<a")
        await receive(other_reader, b"<b")
        assert (proxy.connections_open, proxy.connections_total) == (2, 2)
        other_writer.close()
        await eventually(lambda: proxy.connections_open == 1, within=5, message="the close was not seen")
    await eventually(lambda: proxy.connections_open == 0, within=5, message="the close was not seen")
    assert proxy.connections_total == 2


@pytest.mark.asyncio
async def test_client_that_closes_while_held_is_not_open(proxy: FaultProxy, peer: Peer) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"a")
        await receive(reader, b"<a")
        proxy.blackhole()
    await eventually(lambda: proxy.connections_open == 0, within=5, message="the close was not seen")
    assert peer.resets == 0


@pytest.mark.asyncio
async def test_delay_applies_to_each_direction(proxy: FaultProxy) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"a")
        await receive(reader, b"<a")
        proxy.delay(0.1)
        begin = time.monotonic()
        writer.write(b"b")
        await receive(reader, b"<b")
        assert time.monotonic() - begin >= 0.2
        proxy.delay(60)
        writer.write(b"c")
        await assert_mute(reader)
        proxy.delay(0)
        await receive(reader, b"<c")


@pytest.mark.asyncio
async def test_delay_does_not_break_a_blackhole(proxy: FaultProxy, peer: Peer) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"a")
        await receive(reader, b"<a")
        proxy.delay(scaled(0.2))
        with proxy.counting() as counts:
            writer.write(b"b")
            await eventually(lambda: counts.requests, within=5, message="nothing was sent")
        due = time.monotonic() + scaled(0.2)
        proxy.blackhole()
        await eventually(lambda: time.monotonic() > due, within=5, message="time stands still")
        await assert_mute(reader)
        assert peer.received == b"a"
        proxy.heal()
        await receive(reader, b"<b")


@pytest.mark.asyncio
async def test_blackhole_holds_bytes_until_healed(proxy: FaultProxy, peer: Peer) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"a")
        await receive(reader, b"<a")
        proxy.blackhole()
        writer.write(b"b")
        await assert_mute(reader)
        assert peer.received == b"a"
        assert proxy.connections_open == 1
        proxy.heal()
        await receive(reader, b"<b")


@pytest.mark.asyncio
async def test_blackhole_of_answers_only(proxy: FaultProxy, peer: Peer) -> None:
    async with connected(proxy) as (reader, writer):
        proxy.blackhole(to_server=False)
        writer.write(b"a")
        await eventually(lambda: peer.received == b"a", within=5, message="the request was held back")
        await assert_mute(reader)
        proxy.heal()
        await receive(reader, b"<a")


@pytest.mark.asyncio
async def test_blackhole_of_requests_only(proxy: FaultProxy, peer: Peer) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"a")
        await receive(reader, b"<a")
        proxy.blackhole(to_client=False)
        writer.write(b"b")
        peer.writers[0].write(b"news")
        await receive(reader, b"news")
        assert peer.received == b"a"
        proxy.heal()
        await receive(reader, b"<b")


@pytest.mark.asyncio
async def test_new_connections_are_mute_in_a_blackhole(proxy: FaultProxy, peer: Peer) -> None:
    proxy.blackhole()
    async with connected(proxy) as (reader, writer):
        writer.write(b"a")
        await assert_mute(reader)
        assert peer.connections == 0
        proxy.heal()
        await receive(reader, b"<a")


@pytest.mark.asyncio
async def test_a_reset_in_a_blackhole_arrives_after_it(proxy: FaultProxy, peer: Peer) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"a")
        await receive(reader, b"<a")
        proxy.blackhole()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await eventually(lambda: proxy.connections_open == 0, within=5, message="the reset was not seen")
    assert peer.resets == 0
    proxy.heal()
    await eventually(lambda: peer.resets == 1, within=5, message="the reset was not passed on")


@pytest.mark.asyncio
async def test_reset_reaches_both_sides(proxy: FaultProxy, peer: Peer) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"a")
        await receive(reader, b"<a")
        proxy.reset()
        assert proxy.connections_open == 0
        await assert_reset(reader)
        await eventually(lambda: peer.resets == 1, within=5, message="the server's side was not reset")
    async with connected(proxy) as (reader, writer):
        writer.write(b"b")
        await receive(reader, b"<b")


@pytest.mark.asyncio
async def test_a_servers_reset_is_passed_on(proxy: FaultProxy, peer: Peer) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"a")
        await receive(reader, b"<a")
        sock = peer.writers[0].get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.writers[0].transport.abort()
        await assert_reset(reader)


@pytest.mark.asyncio
async def test_refuse_and_accept_keep_the_port(proxy: FaultProxy) -> None:
    port = proxy.port
    proxy.refuse()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((proxy.host, port))
    proxy.accept()
    async with connected(proxy) as (reader, writer):
        proxy.refuse()
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(proxy.host, port)
        writer.write(b"a")
        await receive(reader, b"<a")
    proxy.accept()
    proxy.accept()
    assert proxy.port == port
    async with connected(proxy) as (reader, writer):
        writer.write(b"b")
        await receive(reader, b"<b")


@pytest.mark.asyncio
async def test_a_dead_server_resets_the_client() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with FaultProxy("127.0.0.1", unused.getsockname()[1]) as proxy, connected(proxy) as (reader, _):
            await assert_reset(reader)
            assert proxy.connections_open == 0


@pytest.mark.asyncio
async def test_close_leaves_nothing(peer: Peer) -> None:
    tasks = asyncio.all_tasks()
    async with FaultProxy("127.0.0.1", peer.port) as proxy, connected(proxy) as (reader, writer):
        proxy.delay(60)
        writer.write(b"held by the delay")
        await eventually(lambda: proxy.requests == 1, within=5, message="nothing was sent")
        await proxy.close()
        await proxy.close()
        await assert_reset(reader)
        await eventually(lambda: len(asyncio.all_tasks() - tasks) == 0, within=5, message="a task is left over")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(proxy.host, proxy.port)
    assert peer.received == b""


@pytest.mark.asyncio
async def test_cancelling_the_user_closes_the_proxy(peer: Peer) -> None:
    entered: asyncio.Future[FaultProxy] = asyncio.get_running_loop().create_future()

    async def use() -> None:
        async with FaultProxy("127.0.0.1", peer.port) as proxy:
            entered.set_result(proxy)
            await asyncio.Event().wait()

    task = asyncio.create_task(use())
    proxy = await entered
    async with connected(proxy) as (reader, writer):
        writer.write(b"a")
        await receive(reader, b"<a")
        task.cancel()
        await assert_reset(reader)
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(proxy.host, proxy.port)


@pytest.mark.asyncio
async def test_cut_answers_lets_the_request_through(proxy: FaultProxy, peer: Peer) -> None:
    proxy.cut_answers(2)
    for request in (b"a", b"b"):
        async with connected(proxy) as (reader, writer):
            writer.write(request)
            await assert_reset(reader)
    assert peer.received == b"ab"
    assert proxy.answers_cut == 2
    async with connected(proxy) as (reader, writer):
        writer.write(b"c")
        await receive(reader, b"<c")


@pytest.mark.asyncio
async def test_cut_answers_of_matching_requests(proxy: FaultProxy) -> None:
    proxy.cut_answers(matching=lambda sent: b"delete" in sent)
    async with connected(proxy) as (reader, writer):
        writer.write(b"get")
        await receive(reader, b"<get")
        writer.write(b"delete")
        await assert_reset(reader)


@pytest.mark.asyncio
async def test_counting_covers_its_block_only(proxy: FaultProxy) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"a")
        await receive(reader, b"<a")
        with proxy.counting() as outer:
            with proxy.counting() as inner:
                writer.write(b"b")
                await receive(reader, b"<b")
            writer.write(b"c")
            await receive(reader, b"<c")
        writer.write(b"d")
        await receive(reader, b"<d")
    assert (inner.requests, inner.round_trips, inner.connections) == (1, 1, 0)
    assert (outer.requests, outer.round_trips, outer.connections) == (2, 2, 0)
    assert (proxy.requests, proxy.round_trips, proxy.connections_total) == (4, 4, 1)


@pytest.mark.asyncio
async def test_a_lost_connection_ends_its_wave(proxy: FaultProxy) -> None:
    proxy.blackhole()
    async with connected(proxy) as (_, writer):
        writer.write(b"a")
        await eventually(lambda: proxy.requests == 1, within=5, message="nothing was sent")
        proxy.reset()
    proxy.heal()
    async with connected(proxy) as (reader, writer):
        writer.write(b"a")
        await receive(reader, b"<a")
    assert (proxy.requests, proxy.round_trips) == (2, 2)


def test_use_before_entering_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="not been entered"):
        FaultProxy("127.0.0.1", 1).accept()

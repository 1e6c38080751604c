import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from aiolibkv.testing.framing import Framing
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import EtcdServer, ZooKeeperServer

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


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


@contextlib.asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def receive(reader: asyncio.StreamReader, expected: bytes) -> None:
    async with asyncio.timeout(scaled(5)):
        assert await reader.readexactly(len(expected)) == expected


async def assert_mute(reader: asyncio.StreamReader) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.read(1)


async def assert_reset(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(scaled(5)):
        with pytest.raises(ConnectionResetError):
            await reader.read()


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


# --- Framing, against servers that say exactly what the test tells them ---


@contextlib.asynccontextmanager
async def scripted(protocol: Framing) -> AsyncIterator[tuple[FaultProxy, Streams, Streams]]:
    """Yield a proxy and the streams of its client's and its server's side."""
    accepted: asyncio.Queue[Streams] = asyncio.Queue()
    server = await asyncio.start_server(lambda reader, writer: accepted.put_nowait((reader, writer)), "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    async with server, FaultProxy("127.0.0.1", port, protocol=protocol) as proxy, connected(proxy) as client:
        answering = await accepted.get()
        yield proxy, client, answering
        answering[1].transport.abort()


async def exchange(sender: Streams, receiver: Streams, pieces: Sequence[bytes]) -> None:
    """Send pieces, each after the one before has arrived, so that each is read by itself."""
    for piece in pieces:
        sender[1].write(piece)
        await receive(receiver[0], piece)


def one_by_one(data: bytes) -> Sequence[bytes]:
    return [data[index : index + 1] for index in range(len(data))]


def at_once(data: bytes) -> Sequence[bytes]:
    return [data]


@pytest.mark.asyncio
async def test_raw_requests_end_with_the_answer() -> None:
    async with scripted("raw") as (proxy, client, server):
        await exchange(client, server, [b"re", b"quest"])
        await exchange(server, client, [b"an", b"swer"])
        proxy.cut_answers()
        await exchange(client, server, [b"ano", b"ther"])
        assert (proxy.requests, proxy.round_trips) == (2, 2)
        server[1].write(b"answer")
        await assert_reset(client[0])


each_way = pytest.mark.parametrize("split", [at_once, one_by_one])
Split = Callable[[bytes], Sequence[bytes]]


@each_way
@pytest.mark.asyncio
async def test_http1_requests_with_bodies(split: Split) -> None:
    async with scripted("http1") as (proxy, client, server):
        await exchange(
            client,
            server,
            split(
                b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n"
                b"PUT /2 HTTP/1.1\r\ncontent-length: 18\r\n\r\nGET /no HTTP/1.1\r\n"
                b"PUT /3 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"a;x=y\r\nGET / HTTP\r\n3\r\nabc\r\n0\r\nTrailer: 1\r\n\r\n"
                b"HEAD /4 HTTP/1.1\r\n\r\n"
            ),
        )
        assert (proxy.requests, proxy.round_trips) == (4, 1)
        await exchange(
            server,
            client,
            split(
                b"HTTP/1.1 100 Continue\r\n\r\n"
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHTTP/"
                b"HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n"
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
            ),
        )
        proxy.cut_answers()
        await exchange(client, server, split(b"GET /5 HTTP/1.1\r\n\r\n"))
        assert (proxy.requests, proxy.round_trips) == (5, 2)
        # The cut takes the fifth answer only if the four before it were told apart.
        await exchange(server, client, split(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"))
        assert proxy.answers_cut == 0
        server[1].write(b"HTTP/1.1 200 OK\r\n")
        await assert_reset(client[0])
        assert proxy.answers_cut == 1


@pytest.mark.asyncio
async def test_http1_interim_responses_are_no_answers() -> None:
    async with scripted("http1") as (proxy, client, server):
        proxy.cut_answers()
        await exchange(client, server, [b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"])
        await exchange(server, client, [b"HTTP/1.1 100 Continue\r\n\r\n"])
        await exchange(client, server, [b"x"])
        server[1].write(b"HTTP/1.1 200 OK\r\n")
        await assert_reset(client[0])


@pytest.mark.asyncio
async def test_http1_body_until_the_end_of_the_connection() -> None:
    async with scripted("http1") as (proxy, client, server):
        await exchange(client, server, [b"GET / HTTP/1.1\r\n\r\n"])
        await exchange(server, client, [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
        server[1].write_eof()
        assert await client[0].read() == b""
        assert proxy.round_trips == 1


@pytest.mark.asyncio
async def test_http1_matching_sees_the_body() -> None:
    async with scripted("http1") as (proxy, client, server):
        proxy.cut_answers(matching=lambda sent: b"secret" in sent)
        await exchange(client, server, [b"PUT / HTTP/1.1\r\nContent-Length: 6\r\n\r\n", b"sec", b"ret"])
        server[1].write(b"HTTP/1.1 200 OK\r\n")
        await assert_reset(client[0])


def frame(kind: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, 0]) + stream.to_bytes(4) + payload


DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@each_way
@pytest.mark.asyncio
async def test_http2_counts_streams(split: Split) -> None:
    async with scripted("http2") as (proxy, client, server):
        await exchange(
            client,
            server,
            split(
                PREFACE
                + frame(SETTINGS, 0, b"x" * 6)
                + frame(HEADERS, 1, b"head")
                + frame(DATA, 1, b"body")
                + frame(HEADERS, 3)
                + frame(HEADERS, 1, b"trailers")
            ),
        )
        assert (proxy.requests, proxy.round_trips) == (2, 1)
        await exchange(server, client, split(frame(SETTINGS, 0) + frame(PING, 0, b"12345678")))
        await exchange(client, server, split(frame(HEADERS, 5)))
        assert (proxy.requests, proxy.round_trips) == (3, 1)
        await exchange(server, client, split(frame(HEADERS, 3) + frame(DATA, 3, b"x" * 300)))
        await exchange(client, server, split(frame(HEADERS, 7)))
        assert (proxy.requests, proxy.round_trips) == (4, 2)


@pytest.mark.asyncio
async def test_http2_answers_to_an_earlier_wave_end_no_wave() -> None:
    async with scripted("http2") as (proxy, client, server):
        await exchange(client, server, [PREFACE + frame(HEADERS, 1)])
        with proxy.counting() as counts:
            await exchange(client, server, [frame(HEADERS, 3)])
            assert counts.round_trips == 1
            await exchange(server, client, [frame(DATA, 1, b"an event")])
            await exchange(client, server, [frame(HEADERS, 5)])
    assert (counts.requests, counts.round_trips) == (2, 1)


@pytest.mark.asyncio
async def test_http2_cut_waits_for_the_answer() -> None:
    async with scripted("http2") as (proxy, client, server):
        proxy.cut_answers()
        await exchange(client, server, [PREFACE + frame(HEADERS, 1)])
        for kind in (SETTINGS, PING, WINDOW_UPDATE):
            await exchange(server, client, [frame(kind, 0, b"12345678")])
        await exchange(server, client, [frame(WINDOW_UPDATE, 1, b"1234")])
        server[1].write(frame(HEADERS, 1, b"200"))
        await assert_reset(client[0])
        assert proxy.answers_cut == 1


@pytest.mark.asyncio
async def test_http2_matching_sees_messages_on_open_streams() -> None:
    async with scripted("http2") as (proxy, client, server):
        await exchange(client, server, [PREFACE + frame(HEADERS, 1)])
        await exchange(server, client, [frame(HEADERS, 1)])
        proxy.cut_answers(matching=lambda sent: b"watch" in sent)
        await exchange(client, server, [frame(DATA, 1, b"keep alive")])
        await exchange(server, client, [frame(DATA, 1, b"alive")])
        await exchange(client, server, [frame(DATA, 1, b"wat"), frame(DATA, 1, b"ch")])
        server[1].write(frame(DATA, 1, b"created"))
        await assert_reset(client[0])


def packet(xid: int, payload: bytes = b"") -> bytes:
    return (4 + len(payload)).to_bytes(4) + xid.to_bytes(4, signed=True) + payload


@each_way
@pytest.mark.asyncio
async def test_zookeeper_counts_requests_but_not_pings(split: Split) -> None:
    async with scripted("zookeeper") as (proxy, client, server):
        await exchange(client, server, split(packet(0, b"connect")))
        await exchange(server, client, split(packet(0, b"connected")))
        assert proxy.requests == 0
        proxy.cut_answers()
        await exchange(client, server, split(packet(-2, b"ping") + packet(1, b"get") + packet(2, b"get")))
        assert (proxy.requests, proxy.round_trips) == (2, 1)
        await exchange(server, client, split(packet(-2) + packet(-1, b"event") + packet(2, b"value")))
        await exchange(client, server, split(packet(3)))
        assert (proxy.requests, proxy.round_trips) == (3, 2)
        assert proxy.answers_cut == 0
        server[1].write(packet(1, b"value"))
        await assert_reset(client[0])
        assert proxy.answers_cut == 1


@pytest.mark.asyncio
async def test_zookeeper_matching_tells_requests_of_one_number_apart() -> None:
    async with scripted("zookeeper") as (proxy, client, server):
        await exchange(client, server, [packet(0, b"connect")])
        await exchange(server, client, [packet(0, b"connected")])
        authenticate = -4
        proxy.cut_answers(matching=lambda sent: sent[4:] == b"second")
        await exchange(client, server, [packet(authenticate, b"first")])
        await exchange(server, client, [packet(authenticate)])
        await exchange(client, server, [packet(authenticate, b"second")])
        server[1].write(packet(authenticate))
        await assert_reset(client[0])


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


# --- Real servers ---


def put_request(key: bytes, value: bytes) -> bytes:
    return b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value


@pytest.mark.asyncio
async def test_counts_and_cuts_with_etcd() -> None:
    async with EtcdServer() as server, FaultProxy(server.host, server.port, protocol="http2") as proxy:
        async with grpc.aio.insecure_channel(proxy.endpoint) as channel:
            put: Any = channel.unary_unary("/etcdserverpb.KV/Put", None, None)
            await put(put_request(b"k", b"0"), timeout=scaled(10))
            with proxy.counting() as counts:
                for value in (b"1", b"2", b"3"):
                    await put(put_request(b"k", value), timeout=scaled(10))
            assert (counts.requests, counts.round_trips, counts.connections) == (3, 3, 0)

            proxy.cut_answers(matching=lambda sent: b"cut" in sent)
            await put(put_request(b"k", b"4"), timeout=scaled(10))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await put(put_request(b"k", b"cut"), timeout=scaled(10))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert proxy.answers_cut == 1
        assert await server.ctl("get", "k", "--print-value-only") == "cut\n"


@pytest.mark.asyncio
async def test_counts_and_cuts_with_zookeeper() -> None:
    connect = bytes(4) + bytes(8) + (4000).to_bytes(4) + bytes(8) + (16).to_bytes(4) + bytes(16)
    open_acl = (1).to_bytes(4) + (31).to_bytes(4) + b"\0\0\0\5world\0\0\0\6anyone"

    def create(xid: int, path: bytes) -> bytes:
        payload = (1).to_bytes(4) + len(path).to_bytes(4) + path + bytes(4) + open_acl + bytes(4)
        return packet(xid, payload)

    async def reply(reader: asyncio.StreamReader) -> tuple[int, int]:
        """Return the xid and the error."""
        async with asyncio.timeout(scaled(10)):
            body = await reader.readexactly(int.from_bytes(await reader.readexactly(4)))
        return int.from_bytes(body[:4], signed=True), int.from_bytes(body[12:16], signed=True)

    async def session(streams: Streams) -> None:
        streams[1].write(len(connect).to_bytes(4) + connect)
        await reply(streams[0])

    async with ZooKeeperServer() as server, FaultProxy(server.host, server.port, protocol="zookeeper") as proxy:
        async with connected(proxy) as client:
            await session(client)
            with proxy.counting() as counts:
                client[1].write(create(1, b"/a") + create(2, b"/a/b") + packet(-2, (11).to_bytes(4)))
                assert {await reply(client[0]) for _ in range(3)} == {(1, 0), (2, 0), (-2, 0)}
            assert (counts.requests, counts.round_trips) == (2, 1)
            proxy.cut_answers()
            client[1].write(create(3, b"/cut"))
            await assert_reset(client[0])
        async with connected(proxy) as client:
            await session(client)
            client[1].write(create(1, b"/cut"))
            node_exists = -110
            assert await reply(client[0]) == (1, node_exists)


def test_use_before_entering_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="not been entered"):
        FaultProxy("127.0.0.1", 1).accept()

"""How the proxy counts and cuts in each protocol: on servers that say what the test tells them, and on real ones."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from aiolibkv.backends.etcd.channel import BROKEN, RpcFailedError
from aiolibkv.testing.framing import Framing
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers import EtcdServer, ZooKeeperServer
from etcd.channels import channel_to
from testing.streams import Streams, assert_reset, connected, receive


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


# --- Real servers ---


def put_request(key: bytes, value: bytes) -> bytes:
    return b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value


@pytest.mark.asyncio
async def test_counts_and_cuts_with_etcd() -> None:
    async with EtcdServer() as server, FaultProxy(server.host, server.port, protocol="http2") as proxy:
        async with channel_to(proxy.endpoint) as channel:

            async def put(value: bytes) -> bytes:
                return await channel.call("/etcdserverpb.KV/Put", put_request(b"k", value), ())

            await put(b"0")
            with proxy.counting() as counts:
                for value in (b"1", b"2", b"3"):
                    await put(value)
            assert (counts.requests, counts.round_trips, counts.connections) == (3, 3, 0)

            proxy.cut_answers(matching=lambda sent: b"cut" in sent)
            await put(b"4")
            with pytest.raises(RpcFailedError) as caught:
                await put(b"cut")
            assert caught.value.code == BROKEN
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

"""The connection, against servers that do what HTTP/2 allows, and what it does not."""

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from random import Random

import pytest

from aiolibkv.backends.etcd import frames, http2
from aiolibkv.backends.etcd.channel import Channel, RpcFailedError
from aiolibkv.backends.etcd.frames import END_HEADERS, END_STREAM, frame
from aiolibkv.testing.scale import eventually, scaled
from etcd.channels import channel_to
from etcd.echoing import Manners, echo_server

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]

ECHO = "/echo.Echo/Say"
TOKEN = (("token", "t"),)


def state(channel: Channel) -> tuple[int, ...]:
    """Return how much the connection has under way."""
    connection = channel._connection
    assert connection is not None
    return len(connection._open), len(connection._waiting), len(connection._held_back)


@pytest.mark.parametrize(
    ("manners", "largest", "outcomes"),
    [
        pytest.param(Manners(), 3000, set(), id="as usual"),
        pytest.param(Manners({frames.INITIAL_WINDOW_SIZE: 100}), 2000, set(), id="windows of 100 bytes"),
        pytest.param(Manners({frames.MAX_CONCURRENT_STREAMS: 3}), 3000, set(), id="3 streams"),
        pytest.param(Manners({frames.MAX_FRAME_SIZE: 1 << 20}), 300_000, set(), id="large frames"),
        pytest.param(Manners({1: 0}), 3000, set(), id="no table of fields"),
        pytest.param(Manners(padding=200), 3000, set(), id="padding"),
        pytest.param(Manners(extra=17_000), 3000, set(), id="large heads"),
        pytest.param(Manners(refuses=5), 3000, {"RESET sent=False"}, id="refusals"),
        pytest.param(Manners(leaves=25), 3000, set(), id="a connection of 25 requests"),
        pytest.param(
            Manners({frames.INITIAL_WINDOW_SIZE: 10_000, frames.MAX_CONCURRENT_STREAMS: 2}, padding=255),
            200_000,
            set(),
            id="all at once",
        ),
    ],
)
async def test_each_call_has_its_own_answer(manners: Manners, largest: int, outcomes: set[str]) -> None:
    random = Random(str(manners))
    async with echo_server(manners) as (endpoint, server), channel_to(endpoint) as channel:

        async def call(number: int) -> str:
            said = random.randbytes(random.randrange(largest + 1))
            task = asyncio.ensure_future(channel.call(ECHO, said, (("token", f"t{number % 3}"),)))
            if number % 7 == 3:
                await asyncio.sleep(random.random() * 0.003)
                task.cancel()
            try:
                return "right" if await task == said else "wrong"
            except RpcFailedError as failure:
                return f"{failure.code} sent={failure.sent}"
            except asyncio.CancelledError:
                return "cancelled"

        async with asyncio.timeout(scaled(20)):
            got = Counter(await asyncio.gather(*(call(number) for number in range(60))))
            assert set(got) <= {"right", "cancelled"} | outcomes, got
            assert got["right"] > 30
            # Neither windows nor numbers are lost with what was cancelled.
            assert await channel.call(ECHO, bytes(largest), TOKEN) == bytes(largest)
        assert state(channel) == (0, 0, 0)
        assert server.most <= manners.settings.get(frames.MAX_CONCURRENT_STREAMS, 60)
        assert (server.connections > 1) == bool(manners.leaves)


async def test_cancelled_requests_use_up_no_window() -> None:
    async with echo_server(Manners()) as (endpoint, server), channel_to(endpoint) as channel:
        large = bytes(1 << 20)
        await channel.call(ECHO, b"", ())
        for _ in range(20):
            calls = [asyncio.ensure_future(channel.call(ECHO, large, ())) for _ in range(10)]
            await asyncio.sleep(0.002)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            assert state(channel) == (0, 0, 0)
        assert await channel.call(ECHO, large, ()) == large
        assert server.cancelled > 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_small_requests_do_not_wait_for_the_answers_to_others(host: str) -> None:
    async with echo_server(Manners()) as (endpoint, _), channel_to(endpoint.replace("127.0.0.1", host)) as channel:
        await channel.call(ECHO, b"", ())
        assert channel._connection is not None
        assert channel._connection._transport is not None
        sock = channel._connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_who_waits_for_a_stream_is_served_in_order_and_may_give_up() -> None:
    async with scripted() as (endpoint, said), channel_to(endpoint) as channel:
        calls = [asyncio.ensure_future(channel.call(ECHO, bytes([number]), ())) for number in range(5)]
        script = await said.get()
        script.write(frames.settings_frame([(frames.MAX_CONCURRENT_STREAMS, 1)]))
        order = []
        for number in range(4):
            stream, message = await script.request()
            order.append(message[5])
            if number == 1:
                calls[2].cancel()
            script.write(answer(stream, message))
        assert order == [0, 1, 3, 4]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [result for result in results if isinstance(result, bytes)] == [b"\0", b"\1", b"\3", b"\4"]


# -- servers that say exactly what they are told -----------------------------------------------------------------------


class Script:
    """The server's end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._messages: dict[int, bytes] = {}
        self.writer = writer
        self.write = writer.write

    async def frame(self) -> frames.Frame:
        """Read a frame."""
        async with asyncio.timeout(scaled(5)):
            head = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(head[:3]))
        return head[3], head[4], int.from_bytes(head[5:]), payload

    async def next(self, kind: int) -> frames.Frame:
        """Read up to a frame of a kind."""
        while (found := await self.frame())[0] != kind:
            pass
        return found

    async def request(self) -> tuple[int, bytes]:
        """Read up to the end of a request, and return its stream and its message."""
        while True:
            kind, flags, stream, payload = await self.frame()
            if kind == frames.DATA:
                self._messages[stream] = self._messages.get(stream, b"") + payload
                if flags & END_STREAM:
                    return stream, self._messages.pop(stream)

    async def rest(self) -> bytes:
        """Read to the end of the connection."""
        async with asyncio.timeout(scaled(5)):
            return await self._reader.read()


@contextlib.asynccontextmanager
async def scripted() -> AsyncIterator[tuple[str, "asyncio.Queue[Script]"]]:
    """Yield the address of a server, and its ends of connections."""
    accepted: asyncio.Queue[Script] = asyncio.Queue()
    scripts = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(frames.PREFACE))
        scripts.append(Script(reader, writer))
        accepted.put_nowait(scripts[-1])

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        try:
            yield f"{host}:{port}", accepted
        finally:
            for script in scripts:
                script.writer.transport.abort()


HEAD = b"\x88\x5f\x10application/grpc"
STATUS_0 = b"\x00\x0bgrpc-status\x010"


def answer(stream: int, message: bytes) -> bytes:
    return (
        frame(frames.HEADERS, END_HEADERS, stream, HEAD)
        + frame(frames.DATA, 0, stream, message)
        + frame(frames.HEADERS, END_HEADERS | END_STREAM, stream, STATUS_0)
    )


@contextlib.asynccontextmanager
async def talking() -> AsyncIterator[tuple[Channel, Script, "asyncio.Queue[Script]"]]:
    """Yield a connected channel, the server's end of its connection, and those of others that follow."""
    async with scripted() as (endpoint, accepted), channel_to(endpoint) as channel:
        first = asyncio.ensure_future(channel.call(ECHO, b"", ()))
        script = await accepted.get()
        script.write(frames.settings_frame([]))
        script.write(answer(*await script.request()))
        assert await first == b""
        yield channel, script, accepted


async def failure_of(call: "asyncio.Future[bytes]") -> RpcFailedError:
    with pytest.raises(RpcFailedError) as caught:
        await asyncio.wait_for(call, scaled(5))
    return caught.value


async def test_a_window_that_shrinks_below_what_was_sent_and_grows_again() -> None:
    async with talking() as (channel, script, _):
        script.write(frames.settings_frame([(frames.INITIAL_WINDOW_SIZE, 10)]))
        await script.next(frames.SETTINGS)
        call = asyncio.ensure_future(channel.call(ECHO, bytes(95), ()))
        _, _, stream, first = await script.next(frames.DATA)
        assert len(first) == 10
        script.write(frames.settings_frame([(frames.INITIAL_WINDOW_SIZE, 0)]))
        script.write(frames.number_frame(frames.WINDOW_UPDATE, stream, 15))
        _, _, _, second = await script.next(frames.DATA)
        assert len(second) == 5
        script.write(frames.settings_frame([(frames.INITIAL_WINDOW_SIZE, 100)]))
        _, flags, _, third = await script.next(frames.DATA)
        assert (flags, len(third)) == (END_STREAM, 85)
        script.write(answer(stream, first + second + third))
        assert await call == bytes(95)


async def test_what_a_leaving_server_has_not_looked_at_goes_to_another_connection() -> None:
    async with talking() as (channel, script, accepted):
        calls = [asyncio.ensure_future(channel.call(ECHO, bytes([number]), ())) for number in range(4)]
        requests = [await script.request() for _ in calls]
        # First in general, then in particular.
        script.write(frame(frames.GOAWAY, 0, 0, frames.LAST_STREAM.to_bytes(4) + bytes(4)))
        script.write(frame(frames.GOAWAY, 0, 0, requests[1][0].to_bytes(4) + bytes(4)))
        later = await accepted.get()
        later.write(frames.settings_frame([]))
        repeated = [await later.request() for _ in range(2)]
        assert sorted(message[5] for _, message in repeated) == [2, 3]
        for each in repeated:
            later.write(answer(*each))
        for each in requests[:2]:
            script.write(answer(*each))
        assert await asyncio.gather(*calls) == [b"\0", b"\1", b"\2", b"\3"]
        # With nothing left to say the old connection is closed.
        await script.rest()
        assert accepted.empty()


async def test_when_a_connection_breaks_only_what_was_sent_whole_is_in_doubt() -> None:
    async with talking() as (channel, script, _):
        script.write(frames.settings_frame([(frames.INITIAL_WINDOW_SIZE, 10), (frames.MAX_CONCURRENT_STREAMS, 2)]))
        await script.next(frames.SETTINGS)
        whole, partial, waiting = (asyncio.ensure_future(channel.call(ECHO, bytes(size), ())) for size in (2, 20, 3))
        await script.request()
        await script.next(frames.DATA)
        script.writer.transport.abort()
        failures = [await failure_of(call) for call in (whole, partial, waiting)]
        assert [(failure.code, failure.sent) for failure in failures] == [
            ("BROKEN", True),
            ("BROKEN", False),
            ("BROKEN", False),
        ]
        # It is not replaced: whoever has the channel decides where to go.
        assert not (await failure_of(asyncio.ensure_future(channel.call(ECHO, b"", ())))).sent


async def test_numbers_of_streams_that_are_used_up() -> None:
    async with echo_server(Manners()) as (endpoint, server), channel_to(endpoint) as channel:
        await channel.call(ECHO, b"", ())
        assert channel._connection is not None
        channel._connection._next = frames.LAST_STREAM - 4
        said = [bytes([number]) for number in range(12)]
        assert await asyncio.gather(*(channel.call(ECHO, each, ()) for each in said)) == said
        assert server.connections == 2
        await eventually(lambda: len(server.open) == 1, within=5, message="the used up one is closed")


async def test_a_server_that_leaves_and_is_gone() -> None:
    async with talking() as (channel, script, accepted):
        call = asyncio.ensure_future(channel.call(ECHO, b"", ()))
        await script.request()
        script.write(frame(frames.GOAWAY, 0, 0, (1).to_bytes(4) + bytes(4)))
        (await accepted.get()).writer.transport.abort()
        failure = await failure_of(call)
        assert (failure.code, failure.sent) == ("BROKEN", False)


async def test_what_arrives_for_a_cancelled_call_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with talking() as (channel, script, _):
        monkeypatch.setattr(http2, "_RETURNED_AT", 300)
        call = asyncio.ensure_future(channel.call(ECHO, b"", ()))
        stream, _ = await script.request()
        call.cancel()
        assert (await script.next(frames.RST_STREAM))[2:] == (stream, frames.CANCEL.to_bytes(4))
        # A field that goes into the table, which the next answer refers to, and data that uses up the window.
        indexed = b"\x40\x0bgrpc-status\x010"
        script.write(
            frame(frames.HEADERS, END_HEADERS, stream, HEAD + indexed) + frame(frames.DATA, 0, stream, bytes(300))
        )
        _, _, number, size = await script.next(frames.WINDOW_UPDATE)
        assert (number, size) == (0, (300 + len(b"\0\0\0\0\0")).to_bytes(4))
        again = asyncio.ensure_future(channel.call(ECHO, b"", ()))
        stream, message = await script.request()
        script.write(frame(frames.HEADERS, END_HEADERS, stream, HEAD) + frame(frames.DATA, 0, stream, message))
        script.write(frame(frames.HEADERS, END_HEADERS | END_STREAM, stream, b"\xbf"))
        assert await again == b""


async def test_padding_uses_up_no_window_of_a_stream() -> None:
    async with talking() as (channel, script, _):
        call = asyncio.ensure_future(channel.call(ECHO, b"", ()))
        stream, message = await script.request()
        script.write(frame(frames.HEADERS, END_HEADERS, stream, HEAD))
        script.write(frame(frames.DATA, frames.PADDED, stream, b"\x09" + message + bytes(9)))
        assert (await script.next(frames.WINDOW_UPDATE))[2:] == (stream, (10).to_bytes(4))
        script.write(frame(frames.HEADERS, END_HEADERS | END_STREAM, stream, STATUS_0))
        assert await call == b""


async def test_pings_are_answered() -> None:
    async with talking() as (_, script, _):
        script.write(frame(frames.PING, 0, 0, b"12345678"))
        assert await script.next(frames.PING) == (frames.PING, frames.ACK, 0, b"12345678")


async def test_a_ping_is_answered_together_with_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "_ANSWERING_TIME", 600.0)
    async with talking() as (channel, script, _):
        connection = channel._connection
        assert connection is not None
        script.write(frame(frames.PING, 0, 0, b"12345678"))
        await eventually(lambda: connection._out, within=5, message="the ping is not kept")
        call = asyncio.ensure_future(channel.call(ECHO, b"", ()))
        assert await script.next(frames.PING) == (frames.PING, frames.ACK, 0, b"12345678")
        script.write(answer(*await script.request()))
        assert await call == b""
        assert not connection._out


async def test_who_asks_and_does_not_listen_is_left() -> None:
    async with talking() as (channel, script, _):
        call = asyncio.ensure_future(channel.call(ECHO, bytes(10), ()))
        connection = channel._connection
        assert connection is not None
        pings = frame(frames.PING, 0, 0, bytes(8)) * 1000
        async with asyncio.timeout(scaled(20)):
            while connection.failure is None:
                script.write(pings)
                with contextlib.suppress(OSError):
                    await script.writer.drain()
                await asyncio.sleep(0)
        assert "does not read" in connection.failure
        await failure_of(call)


WRONG: dict[str, Callable[[int], bytes]] = {
    "a web server": lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "data of nobody": lambda _: frame(frames.DATA, 0, 999, b"x"),
    "data of the server": lambda _: frame(frames.DATA, 0, 2, b"x"),
    "a head of nobody": lambda _: frame(frames.HEADERS, END_HEADERS, 999, HEAD),
    "no header block": lambda stream: frame(frames.HEADERS, END_HEADERS, stream, b"\xff"),
    "too much padding": lambda stream: frame(frames.DATA, frames.PADDED, stream, b"\x09a"),
    "a window opened by nothing": lambda stream: frame(frames.WINDOW_UPDATE, 0, stream, bytes(4)),
    "a window too wide": lambda _: frames.number_frame(frames.WINDOW_UPDATE, 0, frames.LARGEST_WINDOW),
    "a stream's window too wide": lambda stream: frames.number_frame(
        frames.WINDOW_UPDATE, stream, frames.LARGEST_WINDOW
    ),
    "settings cut off": lambda _: frame(frames.SETTINGS, 0, 0, bytes(5)),
    "an end with a reason": lambda _: frame(frames.GOAWAY, 0, 0, b"\x7f\xff\xff\xff\0\0\0\x0btoo_many_pings"),
    "an end without": lambda _: b"",
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_is_wrong_ends_the_connection(name: str) -> None:
    async with talking() as (channel, script, _):
        call = asyncio.ensure_future(channel.call(ECHO, b"", ()))
        stream, _ = await script.request()
        script.write(WRONG[name](stream))
        if name == "an end without":
            script.writer.close()
        failure = await failure_of(call)
        assert (failure.code, failure.sent) == ("BROKEN", True)
        await script.rest()
        await eventually(lambda: not channel._connections, within=5, message="the socket is closed")


TOO_MUCH = b"\0" + (64 * 2**20 + 1).to_bytes(4)
BAD_ANSWERS: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "a page": ("HTTP 200", lambda stream: frame(frames.HEADERS, END_HEADERS, stream, b"\x88\x5f\x09text/html")),
    "a proxy that finds it too large": (
        "HTTP 413",
        lambda stream: frame(frames.HEADERS, END_HEADERS, stream, b"\x08\x03413\x5f\x09text/html"),
    ),
    "another status": ("HTTP 404", lambda stream: frame(frames.HEADERS, END_HEADERS | END_STREAM, stream, b"\x8d")),
    "no status": (
        "RESET",
        lambda stream: frame(frames.HEADERS, END_HEADERS, stream, HEAD) + frame(frames.DATA, END_STREAM, stream),
    ),
    "no head": ("NOT_GRPC", lambda stream: frame(frames.DATA, 0, stream, bytes(5))),
    "nothing": (
        "INTERNAL",
        lambda stream: frame(frames.HEADERS, END_HEADERS | END_STREAM, stream, HEAD + STATUS_0),
    ),
    "half a message": ("INTERNAL", lambda stream: answer(stream, b"\0\0\0\0\2a")),
    "two messages": ("INTERNAL", lambda stream: answer(stream, b"\0\0\0\0\1a\0\0\0\0\1b")),
    "two heads": ("INTERNAL", lambda stream: 2 * frame(frames.HEADERS, END_HEADERS, stream, HEAD)),
    "a compressed message": ("INTERNAL", lambda stream: answer(stream, b"\1\0\0\0\1a")),
    "too much": (
        "TOO_LARGE",
        lambda stream: frame(frames.HEADERS, END_HEADERS, stream, HEAD) + frame(frames.DATA, 0, stream, TOO_MUCH),
    ),
    "a status that nobody knows": (
        "UNKNOWN",
        lambda stream: frame(frames.HEADERS, END_HEADERS | END_STREAM, stream, HEAD + STATUS_0[:-2] + b"\x0299"),
    ),
    "a reset": ("RESET", lambda stream: frames.number_frame(frames.RST_STREAM, stream, frames.CANCEL)),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_a_bad_answer_is_one_calls_affair(name: str) -> None:
    code, say = BAD_ANSWERS[name]
    async with talking() as (channel, script, _):
        call = asyncio.ensure_future(channel.call(ECHO, b"", ()))
        stream, _ = await script.request()
        script.write(say(stream))
        assert (await failure_of(call)).code == code
        # What still comes of it is not looked at.
        script.write(frame(frames.DATA, 0, stream, b"x") + frames.number_frame(frames.WINDOW_UPDATE, stream, 1))
        again = asyncio.ensure_future(channel.call(ECHO, b"again", ()))
        script.write(answer(*await script.request()))
        assert await again == b"again"


async def test_a_message_is_told_with_its_escapes() -> None:
    async with talking() as (channel, script, _):
        call = asyncio.ensure_future(channel.call(ECHO, b"", ()))
        stream, _ = await script.request()
        interim = frame(frames.HEADERS, END_HEADERS, stream, b"\x08\x03103")
        refusal = HEAD + STATUS_0[:-2] + b"\x0214" + b"\x00\x0cgrpc-message\x0da%20%C3%A4%zz"
        script.write(interim + frame(frames.HEADERS, END_HEADERS | END_STREAM, stream, refusal))
        failure = await failure_of(call)
        assert (failure.code, failure.details, failure.sent) == ("UNAVAILABLE", "a \u00e4%zz", True)


# -- streams -----------------------------------------------------------------------------------------------------------


async def test_a_stream_of_messages_cut_anywhere() -> None:
    async with talking() as (channel, script, _):
        stream = channel.stream(ECHO, ())
        reading = asyncio.ensure_future(stream.read())
        await stream.write(b"first")
        _, flags, number, data = await script.next(frames.DATA)
        assert (flags, data) == (0, b"\0\0\0\0\5first")
        messages = [bytes([number]) * number * 100 for number in range(20)]
        whole = b"".join(b"\0" + len(message).to_bytes(4) + message for message in messages)
        script.write(frame(frames.HEADERS, END_HEADERS, number, HEAD))
        for at in range(0, len(whole), 333):
            script.write(frame(frames.DATA, 0, number, whole[at : at + 333]))
        assert [await reading, *[await stream.read() for _ in messages[1:]]] == messages
        await stream.write(b"second")
        assert (await script.next(frames.DATA))[3] == b"\0\0\0\0\6second"
        stream.cancel()
        assert (await script.next(frames.RST_STREAM))[2:] == (number, frames.CANCEL.to_bytes(4))
        with pytest.raises(RpcFailedError):
            await stream.read()
        with pytest.raises(RpcFailedError):
            await stream.write(b"third")


async def test_a_stream_is_told_of_its_end_after_its_messages() -> None:
    async with talking() as (channel, script, _):
        stream = channel.stream(ECHO, ())
        await stream.write(b"")
        _, _, number, _ = await script.next(frames.DATA)
        end = HEAD[:0] + STATUS_0[:-2] + b"\x0216" + b"\x00\x0cgrpc-message\x02no"
        script.write(
            frame(frames.HEADERS, END_HEADERS, number, HEAD)
            + frame(frames.DATA, 0, number, b"\0\0\0\0\1a")
            + frame(frames.HEADERS, END_HEADERS | END_STREAM, number, end)
        )
        # The other half of the stream is ended as well.
        assert (await script.next(frames.RST_STREAM))[2] == number
        assert await stream.read() == b"a"
        with pytest.raises(RpcFailedError, match="UNAUTHENTICATED: no"):
            await stream.read()


async def test_a_stream_opens_its_window_as_its_messages_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiolibkv.backends.etcd.channel._RETURNED_AT", 300)
    monkeypatch.setattr("aiolibkv.backends.etcd.channel.STREAM_WINDOW", 1000)
    async with talking() as (channel, script, _):
        stream = channel.stream(ECHO, ())
        await stream.write(b"")
        _, _, number, _ = await script.next(frames.DATA)
        message = b"\0" + (95).to_bytes(4) + bytes(95)
        script.write(frame(frames.HEADERS, END_HEADERS, number, HEAD) + frame(frames.DATA, 0, number, message * 4))
        for _ in range(4):
            assert await stream.read() == bytes(95)
        assert await script.next(frames.WINDOW_UPDATE) == (frames.WINDOW_UPDATE, 0, number, (300).to_bytes(4))
        # A server that does not heed the window is not listened to without end.
        script.write(frame(frames.DATA, 0, number, message * 11))
        assert (await script.next(frames.RST_STREAM))[2] == number


async def test_a_stream_that_has_to_wait_for_another() -> None:
    async with talking() as (channel, script, _):
        script.write(frames.settings_frame([(frames.MAX_CONCURRENT_STREAMS, 1)]))
        await script.next(frames.SETTINGS)
        call = asyncio.ensure_future(channel.call(ECHO, b"", ()))
        first = await script.request()
        stream = channel.stream(ECHO, ())
        await stream.write(b"one")
        await stream.write(b"two")
        script.write(answer(*first))
        await call
        assert (await script.next(frames.DATA))[3] == b"\0\0\0\0\3one\0\0\0\0\3two"


async def test_a_connection_that_is_never_made_complete() -> None:
    async with scripted() as (endpoint, accepted), channel_to(endpoint) as channel:
        call = asyncio.ensure_future(channel.call(ECHO, b"", ()))
        await accepted.get()
        channel.drop("enough")
        failure = await failure_of(call)
        assert (failure.code, failure.details, failure.sent) == ("CANCELLED", "enough", False)

"""What may listen on a port where a server is expected: other services, and nonsense of every kind."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Self

from aiolibkv.testing.servers import Certificates

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_HOST = "127.0.0.1"
_CHUNK = 65536


class Front:
    """A port behind which another server can be put at any time.

    Args:
        handler: what is done with each connection at first.
        tls: speak TLS with those who connect.
        limit: bytes of a connection that are held before they are read.
    """

    def __init__(self, handler: Handler, *, tls: ssl.SSLContext | None = None, limit: int = _CHUNK) -> None:
        self._handler = handler
        self._tls = tls
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, _HOST, 0, ssl=self._tls, limit=self._limit)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._drop()

    @property
    def endpoint(self) -> str:
        return f"{_HOST}:{self.port}"

    def hold_at_most(self, size: int) -> None:
        """Have the system take so many bytes, more or less, of a later connection before they are read."""
        self._server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    async def become(self, handler: Handler) -> None:
        """Put something else behind the port; what is connected is reset."""
        self._handler = handler
        await self._drop()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A task that is cancelled before it began would not close anything.
        task.add_done_callback(lambda _: writer.transport.abort())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._handler(reader, writer)
        except (OSError, EOFError):
            return

    async def _drop(self) -> None:
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def swallow(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Take what is sent, until the other side has enough."""
    while await reader.read(_CHUNK):
        pass


def passing_on(port: int) -> Handler:
    """Pass everything on to a server."""
    return between(_HOST, port, _copy, _copy)


def between(host: str, port: int, up: Handler, down: Handler, *, limit: int = _CHUNK) -> Handler:
    """Stand between a client and a server, until one of them has enough.

    Args:
        host: the server's.
        port: the server's.
        up: passes on what the client sends.
        down: passes on what the server sends.
        limit: bytes from the server that are held before they are read.
    """

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(host, port, limit=limit)
        directions = [
            asyncio.ensure_future(up(reader, server_writer)),
            asyncio.ensure_future(down(server_reader, writer)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server_writer.transport.abort()
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)

    return handle


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()


def saying(*parts: bytes, first_listen: bool = True, then_close: bool = False) -> Handler:
    """Say something, once something was said to it or at once, and then nothing, or hang up."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if first_listen:
            await reader.read(_CHUNK)
        for part in parts:
            writer.write(part)
            await writer.drain()
        if then_close:
            writer.close()
            await writer.wait_closed()
        else:
            await swallow(reader, writer)

    return handle


class Flood:
    """An answer without end, and how much of it was taken.

    Attributes:
        limit: bytes that may be taken.
        is_stopped: done when the other side wanted no more (True), or has taken more than it may (False).
    """

    def __init__(self, limit: int) -> None:
        self.is_stopped: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.limit = limit

    async def pour(self, writer: asyncio.StreamWriter, part: bytes) -> None:
        """Say the same for ever, as fast as it is taken."""
        taken = 0
        try:
            while taken <= self.limit:
                writer.write(part)
                await writer.drain()
                taken += len(part)
                await asyncio.sleep(0)
        except OSError:
            self.stop(wanted=True)
            raise
        self.stop(wanted=False)

    def stop(self, *, wanted: bool) -> None:
        if not self.is_stopped.done():
            self.is_stopped.set_result(wanted)


def never_ending(start: bytes, part: bytes, flood: Flood | None = None) -> Handler:
    """Say one thing, and then another for ever."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(_CHUNK)
        writer.write(start)
        await (flood or Flood(sys.maxsize)).pour(writer, part)

    return handle


async def _web_server(status: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    page = b"<html><body>Welcome!</body></html>"
    while await reader.readuntil(b"\r\n\r\n"):
        head = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len(page)}\r\n\r\n"
        writer.write(head.encode() + page)


GARBAGE = Random(7).randbytes(4096)

OTHER_SERVICES: dict[str, Handler] = {
    "a web server": partial(_web_server, "200 OK"),
    "a web server without such a page": partial(_web_server, "404 Not Found"),
    "a web server that is elsewhere": saying(
        b"HTTP/1.1 301 Moved Permanently\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    ),
    "a banner": saying(b"SSH-2.0-OpenSSH_9.6\r\n", first_listen=False),
    "garbage": saying(GARBAGE),
    "garbage at once": saying(GARBAGE, first_listen=False, then_close=True),
    "nothing, and an end": saying(then_close=True),
}
"""What no client asked for."""

# HTTP/2: a frame is its length in 3 bytes, its type, its flags and its stream.
_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_DATA, _HEADERS, _RESET, _PING_FRAME, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 6, 7, 8
_END_STREAM, _END_HEADERS = 1, 4
_HEAD = b"\x88\x5f\x10application/grpc"
"""HPACK: status 200, and the content type."""


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


_GRPC_ANSWER = _SETTINGS + _frame(_HEADERS, _END_HEADERS, 1, _HEAD)

# ZooKeeper: a frame is its length in 4 bytes, and what it is of.
WELCOME = (0).to_bytes(4) + (10_000).to_bytes(4) + (77).to_bytes(8) + (16).to_bytes(4) + bytes(16) + b"\x00"
"""Version, timeout in ms, session, password, and whether it is for reading only."""

NONSENSE: dict[str, dict[str, Handler]] = {
    "consul": {
        "an answer without end": never_ending(b"HTTP/1.1 200 OK\r\nX-Consul-Index: 5\r\n\r\n", b"[" * _CHUNK),
        "a cut head": saying(b"HTTP/1.1 200 O", then_close=True),
        "a cut body": saying(b"HTTP/1.1 200 OK\r\nX-Consul-Index: 5\r\nContent-Length: 100\r\n\r\n[{", then_close=True),
        "a cut chunk": saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n[", then_close=True),
        "a chunk without a size": saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n[]\r\n"),
        "a huge header": saying(b"HTTP/1.1 200 OK\r\nX-Consul-Index: " + b"1" * 100_000 + b"\r\n\r\n"),
        "headers without end": never_ending(b"HTTP/1.1 200 OK\r\n", b"X-Header: value\r\n" * 1000),
        "a body of an exabyte": saying(
            b"HTTP/1.1 200 OK\r\nX-Consul-Index: 5\r\nContent-Length: 1" + b"0" * 18 + b"\r\n\r\n"
        ),
    },
    "etcd": {
        "an answer without end": never_ending(_GRPC_ANSWER, _frame(_DATA, 0, 1, bytes(16384))),
        "a cut frame": saying(b"\x00\x00\x64\x04\x00\x00", then_close=True),
        "a frame of 16 MB": saying(_SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(1000)),
        "a message of 4 GB": saying(_GRPC_ANSWER + _frame(0, 0, 1, b"\x00\xff\xff\xff\xff" + bytes(1000))),
        "a message cut off": saying(_GRPC_ANSWER + _frame(0, 1, 1, b"\x00\x00\x00\x00\x64abc")),
        "no status": saying(_GRPC_ANSWER + _frame(0, 1, 1, b"\x00\x00\x00\x00\x00")),
    },
    "zookeeper": {
        "a cut length": saying(b"\x00\x00", then_close=True),
        "a cut welcome": saying(len(WELCOME).to_bytes(4) + WELCOME[:10], then_close=True),
        "a frame of 2 GB": saying(b"\x7f\xff\xff\xff" + bytes(1000)),
        "a frame of less than nothing": saying(b"\xff\xff\xff\xff" + bytes(1000)),
        "an empty welcome": saying(bytes(4)),
        "a welcome too short": saying((20).to_bytes(4) + WELCOME[:20]),
        "a welcome without end": never_ending(b"\x00\x10\x00\x00", bytes(_CHUNK)),
        "a negative timeout": saying(
            len(WELCOME).to_bytes(4) + WELCOME[:4] + (-1).to_bytes(4, signed=True) + WELCOME[8:]
        ),
        "no timeout": saying(len(WELCOME).to_bytes(4) + WELCOME[:4] + bytes(4) + WELCOME[8:]),
        "no session": saying(len(WELCOME).to_bytes(4) + WELCOME[:8] + bytes(8) + WELCOME[16:]),
        "a welcome and a frame of 2 GB": saying(len(WELCOME).to_bytes(4) + WELCOME + b"\x7f\xff\xff\xff"),
        "a welcome and garbage": saying(len(WELCOME).to_bytes(4) + WELCOME + b"\x00\x00\x10\x00" + GARBAGE),
    },
}
"""What only looks like the protocol of a backend's servers."""


def server_context(certificates: Certificates) -> ssl.SSLContext:
    """Return the context of a server that speaks TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.server_cert, certificates.server_key)
    return context


# -- servers that greet as they should, and answer everything else badly -----------------------------------------------


def consul(status: str, body: bytes, *headers: str) -> Handler:
    """Answer as Consul does when a store is entered, and then always the same."""
    greeting = _http("404 Not Found", b"", "X-Consul-Index: 1")
    leader = _http("200 OK", b'"127.0.0.1:8300"')
    answer = _http(status, body, *headers)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    await reader.readexactly(int(line.partition(b":")[2]))
            if b"/.aiolibkv?" in head:
                writer.write(greeting)
            else:
                writer.write(leader if b"/v1/status/leader" in head else answer)

    return handle


def _http(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


_INDEX = "X-Consul-Index: 5"
_PAGE = b"<html><body>Welcome!</body></html>"


def _pairs(**fields: object) -> bytes:
    pair = {"Key": "dir/key", "Value": "MQ==", "ModifyIndex": 5, "Flags": 0, **fields}
    return json.dumps([{name: value for name, value in pair.items() if value is not None}]).encode()


BAD_INDEXES: dict[str, Handler] = {
    name: consul("200 OK", _pairs(), *headers)
    for name, headers in {
        "none": (),
        "an empty one": ("X-Consul-Index: ",),
        "a word": ("X-Consul-Index: abc",),
        "a negative one": ("X-Consul-Index: -5",),
        "zero": ("X-Consul-Index: 0",),
        "a fraction": ("X-Consul-Index: 1.5",),
        "5000 digits": ("X-Consul-Index: " + "1" * 5000,),
    }.items()
}
BAD_BODIES: dict[str, Handler] = {
    name: consul(status, body, _INDEX)
    for name, (status, body) in {
        "a page": ("200 OK", _PAGE),
        "nothing": ("200 OK", b""),
        "null": ("200 OK", b"null"),
        "numbers": ("200 OK", b"[1, 2]"),
        "an object": ("200 OK", b'{"Results": [{"KV": {}}], "Errors": 5}'),
        "results that are none": ("200 OK", b'{"Results": [], "ID": 7}'),
        "lists in lists": ("200 OK", b"[" * 100_000 + b"]" * 100_000),
        "no unicode": ("200 OK", b'[{"Key": "\xff"}]'),
        "no base64": ("200 OK", _pairs(Value="%%%%")),
        "cut base64": ("200 OK", _pairs(Value="MTI")),
        "an index that is a text": ("200 OK", _pairs(ModifyIndex="5")),
        "a negative index": ("200 OK", _pairs(ModifyIndex=-5)),
        "no index": ("200 OK", _pairs(ModifyIndex=None)),
        "a key that is a number": ("200 OK", _pairs(Key=7)),
        "no key": ("200 OK", _pairs(Key=None)),
        "a refusal that is a page": ("409 Conflict", _PAGE),
        "a refusal without a reason": ("409 Conflict", b'{"Errors": []}'),
        "a refusal of another shape": ("409 Conflict", b'{"Errors": [{"What": 5}]}'),
        "a failure": ("500 Internal Server Error", _PAGE),
        "a status that nobody knows": ("799 What", _PAGE),
        "a redirection": ("301 Moved Permanently", _PAGE),
    }.items()
}


def etcd(*frames: tuple[int, int, bytes], message: bytes | None = None, status: str | None = "0") -> Handler:
    """Answer questions for health as etcd does, and everything else always the same.

    Args:
        frames: type, flags and payload of each HTTP/2 frame of the answer, when it is nothing as usual as the rest.
        message: of the answer.
        status: of gRPC.
    """
    answer = frames or _answer(message, status)
    healthy = _answer(b"\x08\x01", "0")

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
        writer.write(_SETTINGS)
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3]))
            if head[3] == _DATA and payload:
                stream = int.from_bytes(head[5:])
                for kind, flags, content in healthy if payload == bytes(5) else answer:
                    writer.write(_frame(kind, flags, stream, content))

    return handle


def _answer(message: bytes | None, status: str | None) -> tuple[tuple[int, int, bytes], ...]:
    data = [] if message is None else [(_DATA, 0, b"\x00" + len(message).to_bytes(4) + message)]
    trailers = b"" if status is None else _header("grpc-status", status)
    return ((_HEADERS, _END_HEADERS, _HEAD), *data, (_HEADERS, _END_HEADERS | _END_STREAM, trailers))


def _header(name: str, value: str) -> bytes:
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


_REVISION_5 = b"\x0a\x02\x18\x05"
BAD_ANSWERS: dict[str, Handler] = {
    "garbage": etcd(message=GARBAGE),
    "a message that is cut off": etcd(message=b"\x0a\x20abc"),
    "an empty message": etcd(message=b""),
    "a transaction without its parts": etcd(message=_REVISION_5 + b"\x10\x01"),
    "a revision below zero": etcd(message=b"\x0a\x0b\x18" + b"\xff" * 9 + b"\x01"),
    "no message": etcd(message=None),
    "two messages": etcd(
        (_HEADERS, _END_HEADERS, _HEAD),
        (_DATA, 0, (b"\x00" + len(_REVISION_5).to_bytes(4) + _REVISION_5) * 2),
        (_HEADERS, _END_HEADERS | _END_STREAM, _header("grpc-status", "0")),
    ),
    "no status": etcd(message=_REVISION_5, status=None),
    "a status that is a word": etcd(message=_REVISION_5, status="fine"),
    "a status that nobody knows": etcd(message=_REVISION_5, status="99"),
    "a negative status": etcd(status="-1"),
    "data loss": etcd(status="15"),
    "an unknown failure": etcd(status="2"),
    "no such call": etcd(status="12"),
    "a failure of the server": etcd(status="13"),
    "a cancellation": etcd(status="1"),
    "the status alone": etcd((_HEADERS, _END_HEADERS | _END_STREAM, _HEAD + _header("grpc-status", "14"))),
    "a page": etcd((_HEADERS, _END_HEADERS, b"\x88\x5f\x09text/html"), (_DATA, _END_STREAM, _PAGE)),
    "a failure of HTTP": etcd((_HEADERS, _END_HEADERS | _END_STREAM, b"\x8e")),
    "a message of 4 GB": etcd((_HEADERS, _END_HEADERS, _HEAD), (_DATA, 0, b"\x00\xff\xff\xff\xff" + bytes(100))),
    "a compressed message": etcd((_HEADERS, _END_HEADERS, _HEAD), (_DATA, _END_STREAM, b"\x01\x00\x00\x00\x03abc")),
    "a reset": etcd((_RESET, 0, (2).to_bytes(4))),
    "a farewell": etcd((_GOAWAY, 0, bytes(8))),
    "a frame that nobody knows": etcd((200, 0, GARBAGE[:100]), (_HEADERS, _END_HEADERS, GARBAGE[:100])),
}


def zookeeper(answer: Callable[[int, int], bytes]) -> Handler:
    """Begin a session, answer pings and whether there is a root as ZooKeeper does, and everything else as told.

    Args:
        answer: gives what is sent, lengths included, for the number and the kind of a request.
    """

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(int.from_bytes(await reader.readexactly(4)))
        writer.write(len(WELCOME).to_bytes(4) + WELCOME)
        while True:
            request = await reader.readexactly(int.from_bytes(await reader.readexactly(4)))
            xid, kind = struct.unpack_from("!ii", request)
            if kind == _EXISTS and request[8:] == _OF_THE_ROOT:
                # With this a store begins: a server that lets nobody in says so in answer.
                writer.write(reply(xid, _STAT))
            else:
                writer.write(reply(xid) if kind == _PING else answer(xid, kind))

    return handle


def reply(xid: int, body: bytes = b"", *, code: int = 0) -> bytes:
    """Return an answer of ZooKeeper's."""
    frame = struct.pack("!iqi", xid, 100, code) + body
    return len(frame).to_bytes(4) + frame


_EXISTS, _SYNC, _PING, _CHECK, _TRANSACTION = 3, 9, 11, 13, 14
_OF_THE_ROOT = b"\x00\x00\x00\x01/\x00"
_EVENT = struct.pack("!ii", 3, 3)
_STAT = struct.pack("!qqqqiiiqiiq", 5, 5, 0, 0, 0, 0, 0, 0, 1, 0, 5)


def _result(kind: int, body: bytes = b"") -> bytes:
    return struct.pack("!i?i", kind, False, 0) + body


BAD_REPLIES: dict[str, Handler] = {
    "to another request": zookeeper(lambda xid, _: reply(xid + 1000)),
    "to no request": zookeeper(lambda *_: reply(0)),
    "twice": zookeeper(lambda xid, _: reply(xid, code=-4) * 2),
    "to a ping that was not sent": zookeeper(lambda *_: reply(-2) * 50),
    "without a body": zookeeper(lambda xid, _: reply(xid)),
    "with a cut head": zookeeper(lambda xid, _: (8).to_bytes(4) + xid.to_bytes(4) + bytes(4)),
    "with a body of garbage": zookeeper(lambda xid, _: reply(xid, GARBAGE)),
    "with a body of zeros": zookeeper(lambda xid, _: reply(xid, bytes(30))),
    "with a body of ones": zookeeper(lambda xid, _: reply(xid, b"\xff" * 200)),
    "with two billion names": zookeeper(lambda xid, _: reply(xid, b"\x7f\xff\xff\xff" + bytes(400))),
    "with an unknown code": zookeeper(lambda xid, _: reply(xid, code=-9999)),
    "with a positive code": zookeeper(lambda xid, _: reply(xid, code=7)),
    "an event of no node": zookeeper(lambda *_: reply(-1, _EVENT + b"\xff\xff\xff\xff")),
    "an event that is cut off": zookeeper(lambda *_: reply(-1, _EVENT + b"\x00\x00\x00\x09/a")),
    "an event without unicode": zookeeper(lambda *_: reply(-1, _EVENT + b"\x00\x00\x00\x02/\xff")),
    "one result cut off": zookeeper(lambda xid, _: reply(xid, _result(4, b"\x00\x00"))),
    "results of another kind": zookeeper(lambda xid, _: reply(xid, _result(1, bytes(4)) * 20)),
    "results that nobody asked for": zookeeper(lambda xid, _: reply(xid, _result(99, _STAT) * 20)),
}


# -- servers whose answers go on for ever ------------------------------------------------------------------------------


def _etcd_flood(flood: Flood) -> Handler:
    """Answer questions for health, and everything else by a message of 4 GB, as fast as HTTP/2 lets it be taken."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
        writer.write(_SETTINGS)
        windows: defaultdict[int, int] = defaultdict(lambda: 65535)
        flooded = 0
        taken = 0
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3]))
            kind, stream = head[3], int.from_bytes(head[5:])
            if kind == _DATA and payload == bytes(5):
                for each, flags, content in _answer(b"\x08\x01", "0"):
                    writer.write(_frame(each, flags, stream, content))
            elif kind == _DATA and payload:
                flooded = stream
                writer.write(_frame(_HEADERS, _END_HEADERS, stream, _HEAD))
                writer.write(_frame(_DATA, 0, stream, b"\x00\xff\xff\xff\xff"))
                windows[0] -= 5
                windows[stream] -= 5
            elif kind == _WINDOW_UPDATE:
                windows[stream] += int.from_bytes(payload)
            elif kind == _PING_FRAME and not head[4]:
                writer.write(_frame(_PING_FRAME, 1, 0, payload))
            elif kind == _RESET and stream == flooded:
                flood.stop(wanted=True)
            while flooded and not flood.is_stopped.done():
                part = min(windows[0], windows[flooded], 16384)
                if part <= 0:
                    break
                writer.write(_frame(_DATA, 0, flooded, bytes(part)))
                windows[0] -= part
                windows[flooded] -= part
                taken += part
                if taken > flood.limit:
                    flood.stop(wanted=False)
            await writer.drain()

    return handle


def _zookeeper_flood(flood: Flood) -> Handler:
    """Let the session be continued, and answer everything else by a frame of 2 GB."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(int.from_bytes(await reader.readexactly(4)))
        writer.write(len(WELCOME).to_bytes(4) + WELCOME)
        while True:
            request = await reader.readexactly(int.from_bytes(await reader.readexactly(4)))
            xid, kind = struct.unpack_from("!ii", request)
            if kind in {_PING, _SYNC}:
                writer.write(reply(xid))
            elif kind == _TRANSACTION:
                writer.write(reply(xid, _result(_CHECK)))
            else:
                writer.write((2**31 - 1).to_bytes(4))
                await flood.pour(writer, bytes(_CHUNK))

    return handle


FLOODS: dict[str, Callable[[Flood], Handler]] = {
    "consul": partial(never_ending, b"HTTP/1.1 200 OK\r\nX-Consul-Index: 5\r\n\r\n", b"[" * _CHUNK),
    "etcd": _etcd_flood,
    "zookeeper": _zookeeper_flood,
}

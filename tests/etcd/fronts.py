"""Servers of HTTP/2 that answer with what they are told, or keep messages from a real one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from urllib.parse import quote

from aiolibkv.testing.servers import EtcdServer
from faults.impostors import Front, between

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS = 0, 1, 3, 4
_END_OF_HEADERS_AND_STREAM = 5
_MESSAGE_PREFIX = 5
INVALID_ARGUMENT = 3
RESOURCE_EXHAUSTED = 8
UNAVAILABLE = 14

_CANCEL = (8).to_bytes(4, "big")

Answer = Callable[[bytes], bytes | None]
"""Gives the headers that answer a request, from its message; None ends its stream without."""


def status(code: int, text: str) -> bytes:
    """Return the headers by which gRPC refuses a request."""
    fields = {"content-type": "application/grpc", "grpc-status": str(code), "grpc-message": quote(text, safe=" ,:'")}
    # HPACK: ":status: 200" is the 8th of the fields that everybody knows, the others are written out.
    return b"\x88" + b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields.items())


def web_status(code: int) -> bytes:
    """Return the headers by which a web server answers."""
    return b"\x08" + _string(str(code))


def refusing(code: int, text: str) -> Answer:
    """Refuse all requests like an etcd server that does so for one reason, but knows the empty request."""
    return _knowing_etcd(status(code, text))


def resetting() -> Answer:
    """End the streams of all requests but the empty one."""
    return _knowing_etcd(None)


def _knowing_etcd(answer: bytes | None) -> Answer:
    known = status(INVALID_ARGUMENT, "etcdserver: key is not provided")
    return lambda message: answer if message else known


@contextlib.asynccontextmanager
async def front(answer: Answer) -> AsyncIterator[str]:
    """Run a server that answers each request with headers alone.

    Yields:
        Its address.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(_PREFACE))
        writer.write(_frame(_SETTINGS, 0, 0))
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] == _DATA and payload:
                stream = int.from_bytes(head[5:], "big")
                headers = answer(payload[_MESSAGE_PREFIX:])
                if headers is None:
                    writer.write(_frame(_RESET, 0, stream, _CANCEL))
                else:
                    writer.write(_frame(_HEADERS, _END_OF_HEADERS_AND_STREAM, stream, headers))

    async with Front(serve) as listening:
        yield listening.endpoint


@contextlib.asynccontextmanager
async def swallowing(server: EtcdServer, part: bytes) -> AsyncIterator[str]:
    """Pass everything on to a server and back, but for messages to it that contain something.

    Yields:
        The address.
    """

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(len(_PREFACE)))
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] != _DATA or part not in payload:
                writer.write(head + payload)

    async def back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async with Front(between(server.host, server.port, forward, back)) as listening:
        yield listening.endpoint


@contextlib.asynccontextmanager
async def throttled(server: EtcdServer, rate: int) -> AsyncIterator[str]:
    """Pass everything on to a server and back, at so many bytes a second, and without holding much.

    Yields:
        The address.
    """
    block = rate // 20

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(block):
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(len(data) / rate)

    async with Front(between(server.host, server.port, forward, forward, limit=block), limit=block) as listening:
        yield listening.endpoint


def _string(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

"""Talking to a proxy, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import scaled

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


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


async def assert_reset(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(scaled(5)):
        with pytest.raises(ConnectionResetError):
            await reader.read()

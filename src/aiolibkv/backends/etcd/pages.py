"""Long answers to a Range, decoded a part at a time, so that other tasks run meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from aiolibkv.backends.etcd.codec import RangeAnswer, decode
from aiolibkv.backends.etcd.table import read_varint

AT_ONCE = 128 * 1024
"""Bytes that are decoded at once; about 2 ms."""

_DELIMITED = frozenset({0x0A, 0x12})
"""The tags of the header and of a pair."""


async def decode_page(data: bytes, at_once: int = AT_ONCE) -> RangeAnswer:
    """Read an answer to a Range, however long, as ``decode`` does.

    Args:
        data: the answer.
        at_once: bytes that are decoded before other tasks have their turn.

    Raises:
        MalformedError: it is none.
    """
    page = RangeAnswer()
    for number, part in enumerate(_parts(data, at_once)):
        if number:
            await asyncio.sleep(0)
        read = decode(RangeAnswer, part)
        page.kvs += read.kvs
        page.more, page.count = read.more or page.more, read.count or page.count
        if read.header.revision:
            page.header = read.header
    return page


def _parts(data: bytes, size_of_part: int) -> Iterator[bytes]:
    """Cut an answer between two pairs. Messages of one kind, one after the other, are one message to protobuf."""
    start = at = 0
    end = len(data)
    while at < end and data[at] in _DELIMITED:
        size, at = read_varint(data, at + 1, end)
        at += size
        if at - start >= size_of_part:
            yield data[start:at]
            start = at
    yield data[start:]

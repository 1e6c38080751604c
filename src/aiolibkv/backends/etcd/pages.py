"""Answers to a Range, of one pair or of many: most of what etcd sends.

They are read into columns, without an object for each pair, and a part at a time, so that other tasks run meanwhile.
What is not as etcd writes it is left to the table, which gives the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from aiolibkv.backends.etcd import table
from aiolibkv.backends.etcd.codec import Header, RangeAnswer, decode_header
from aiolibkv.backends.etcd.pairs import UnusualError, read_pairs
from aiolibkv.backends.etcd.table import MalformedError, read_varint

AT_ONCE = 128 * 1024
"""Bytes that are decoded at once; about 2 ms."""

_DELIMITED = frozenset({0x0A, 0x12})
"""The tags of the header and of a pair."""


@dataclass(slots=True)
class Page:
    """A RangeAnswer whose pairs are columns.

    Attributes:
        header: as in RangeAnswer.
        keys: of the pairs, in order.
        revisions: their mod_revisions.
        values: their values.
        more: as in RangeAnswer.
        count: as in RangeAnswer.
    """

    header: Header = field(default_factory=Header)
    keys: list[bytes] = field(default_factory=list)
    revisions: list[int] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)
    more: bool = False
    count: int = 0

    def add(self, following: Page) -> None:
        """Append what follows in the same answer."""
        self.keys += following.keys
        self.revisions += following.revisions
        self.values += following.values
        self.more, self.count = following.more or self.more, following.count or self.count
        if following.header.revision:
            self.header = following.header


async def decode_page(data: bytes, at_once: int = AT_ONCE) -> Page:
    """Read an answer to a Range, however long.

    Args:
        data: the answer.
        at_once: bytes that are decoded before other tasks have their turn.

    Raises:
        MalformedError: it is none.
    """
    if len(data) <= at_once:
        return _decode(data)
    page = Page()
    for number, part in enumerate(_parts(data, at_once)):
        if number:
            await asyncio.sleep(0)
        page.add(_decode(part))
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


def _decode(data: bytes) -> Page:
    try:
        return _decode_written_out(data)
    except (UnusualError, IndexError, MalformedError):
        answer = table.decode(RangeAnswer, data, 0, len(data))
    page = Page(answer.header, more=answer.more, count=answer.count)
    for key, revision, value in answer.kvs:
        page.keys.append(key)
        page.revisions.append(revision)
        page.values.append(value)
    return page


def _decode_written_out(data: bytes) -> Page:
    """Read an answer as etcd writes it.

    Raises:
        UnusualError, IndexError, MalformedError: it is another one.
    """
    page = Page()
    at, end = 0, len(data)
    while at < end:
        tag = data[at]
        if tag == 0x12 and not page.keys:
            page.keys, page.revisions, page.values, at = read_pairs(data, at, end)
        elif tag == 0x20:
            page.count, at = read_varint(data, at + 1, end)
        elif tag == 0x0A:
            size, start = read_varint(data, at + 1, end)
            at = start + size
            page.header = decode_header(data, start, at)
        elif tag == 0x18 and data[at + 1] <= 1:
            page.more = data[at + 1] == 1
            at += 2
        else:
            raise UnusualError
    if page.count >= 1 << 63 or at != end:
        raise UnusualError
    return page

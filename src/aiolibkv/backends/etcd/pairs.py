"""Pairs in the order in which etcd writes their fields, one after the other: most of what it sends."""

from __future__ import annotations

from aiolibkv.backends.etcd.table import read_varint

_LONGEST_SHIFT = 63
"""Of a number with 64 bits. One without an end would otherwise take time with the square of its length."""


class UnusualError(Exception):
    """A message is not as etcd writes it."""


Columns = tuple[list[bytes], list[int], list[bytes], int]
"""The keys of some pairs, the mod_revision of each, the values, and where what follows the pairs begins."""


def read_pairs(data: bytes, at: int, end: int) -> Columns:
    """Read the pairs that begin somewhere, each as a part of a message with the number 2, up to something else.

    All in one pass, with no object for a pair. What is taken for a field may go past the end of its pair, which is seen
    there.

    Raises:
        UnusualError, IndexError, MalformedError: there is something else in between.
    """
    keys: list[bytes] = []
    revisions: list[int] = []
    values: list[bytes] = []
    add_key, add_revision, add_value = keys.append, revisions.append, values.append
    while at < end and data[at] == 0x12:
        size = data[at + 1]
        at += 2
        if size >= 0x80:
            if data[at] < 0x80:
                size += (data[at] - 1) << 7
                at += 1
            else:
                size, at = read_varint(data, at - 1, end)
        stop = at + size
        if stop > end or data[at] != 0x0A:
            raise UnusualError
        size = data[at + 1]
        at += 2
        if size >= 0x80:
            size, at = read_varint(data, at - 1, stop)
        add_key(data[at : at + size])
        at += size
        if data[at] == 0x10:
            at += 2
            while data[at - 1] >= 0x80:
                at += 1
        if data[at] != 0x18:
            raise UnusualError
        revision = data[at + 1]
        at += 2
        if revision >= 0x80:
            revision &= 0x7F
            shift = 7
            while (byte := data[at]) >= 0x80:
                revision |= (byte & 0x7F) << shift
                shift += 7
                at += 1
                if shift > _LONGEST_SHIFT:
                    raise UnusualError
            revision |= byte << shift
            at += 1
        value = b""
        if at < stop:
            if data[at] == 0x20:
                at += 2
                while data[at - 1] >= 0x80:
                    at += 1
            if at < stop and data[at] == 0x2A:
                size = data[at + 1]
                at += 2
                if size >= 0x80:
                    size, at = read_varint(data, at - 1, stop)
                value = data[at : at + size]
                at += size
            if at < stop and data[at] == 0x30:
                at += 2
                while data[at - 1] >= 0x80:
                    at += 1
        if at != stop or revision >= 1 << 63:
            raise UnusualError
        add_revision(revision)
        add_value(value)
    return keys, revisions, values, at

"""The pairs of a recursive read of Consul's.

What a server writes without indentation, with plain keys, is read by one regular expression, which takes two thirds of
the time. Anything else is left to the decoder of JSON, which gives the same.
"""

from __future__ import annotations

import asyncio
import json
import re
from binascii import a2b_base64
from collections.abc import Iterator
from functools import partial
from typing import cast

from aiolibkv.backends.consul.encoding import Answer, is_folder, parse_pair, reading
from aiolibkv.types import KVPair

_SLICE = 256 * 1024
"""Bytes decoded before other tasks have their turn; about 2 ms."""

_BETWEEN_ITEMS = re.compile(rb'\}\s*,\s*(?=\{\s*"[A-Za-z])')
"""What separates the objects of an array: inside a text no quote that is not escaped is followed by a letter."""

_ITEM = re.compile(
    rb'\{"LockIndex":(?:0|[1-9]\d*+),"Key":"([^"]++)","Flags":(?:0|[1-9]\d*+),"Value":(?:null|"([^"]*+)")'
    rb'(?:,"Session":"[0-9A-Za-z-]++")?+,"CreateIndex":(?:0|[1-9]\d*+),"ModifyIndex":([1-9]\d*+)\}'
)
"""A pair as servers write it: key, value and index. What the texts hold is looked at for all together: a class of
characters here would take most of the time."""

_decoded = partial(a2b_base64, strict_mode=True)


async def parse_tree(answer: Answer) -> list[KVPair]:
    """Return the pairs of a recursive read, in order; other tasks have their turn meanwhile.

    A thread would not help: the decoder of JSON keeps the interpreter's lock. Keys that end in a slash, by
    which Consul's own web pages keep empty folders, are no keys here.
    """
    if not answer.found:
        return []
    pairs: list[KVPair] = []
    with reading():
        for number, part in enumerate(_slices(answer.body)):
            if number:
                await asyncio.sleep(0)
            pairs += _read_plain(part) or _read(part)
    return pairs


def _slices(body: bytes) -> Iterator[bytes]:
    """Cut a JSON array of objects without objects in them into arrays that are decoded quickly."""
    if len(body) <= _SLICE:
        yield body
        return
    start = 0
    while cut := _BETWEEN_ITEMS.search(body, start + _SLICE):
        yield (b"[" if start else b"") + body[start : cut.start() + 1] + b"]"
        start = cut.end()
    yield (b"[" if start else b"") + body[start:]


def _read(part: bytes) -> list[KVPair]:
    found = [parse_pair(item) for item in json.loads(part)]
    return [pair for pair in found if not is_folder(pair.key)]


def _read_plain(part: bytes) -> list[KVPair] | None:
    """Return the pairs of an array; None when there is anything in it that is not as usual.

    What stands between two pairs, and before and behind all, has to be what an array has there.
    """
    before, *found = _ITEM.split(part)
    keys, values, indexes, between = (cast("list[bytes]", found[column::4]) for column in range(4))
    if before != b"[" or between[-1] != b"]" or between.count(b",") != len(between) - 1 or b"\\" in part:
        return None
    text = b"\n".join(keys).decode()
    names = text.split("\n")
    if len(names) != len(keys) or not "".join(names).isprintable() or "/\n" in text or text.endswith("/"):
        return None
    if None in values:
        values = [value or b"" for value in values]
    return list(map(KVPair, names, map(_decoded, values), map(int, indexes)))

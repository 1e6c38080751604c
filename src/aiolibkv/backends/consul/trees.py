"""What is below a directory of Consul's: pairs, or names; read in slices, between which other tasks run.

Pairs that a server writes without indentation, with plain keys, are read by one regular expression, which takes less
time. Anything else is left to the decoder of JSON, which gives the same.
"""

from __future__ import annotations

import asyncio
import json
import re
from binascii import a2b_base64
from collections.abc import Iterator
from functools import partial
from typing import cast

from aiolibkv.backends.consul.encoding import Answer, is_folder, parse_pair, reading, text_of
from aiolibkv.types import KVPair

_SLICE = 256 * 1024
"""Bytes decoded before other tasks have their turn; about 2 ms."""

_BETWEEN_ITEMS = re.compile(rb'\}\s*,\s*(?=\{\s*"[A-Za-z])')
"""What separates the objects of an array: inside a text no quote that is not escaped is followed by a letter."""
_BETWEEN_TEXTS = re.compile(rb'(?<=[^\\,\[\s])"\s*,\s*(?=")')
"""What separates most texts of an array: a quote that begins one stands behind a comma, a bracket or space."""

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
        for number, part in enumerate(_slices(answer.body, _BETWEEN_ITEMS)):
            if number:
                await asyncio.sleep(0)
            pairs += _read_plain(part) or _read(part)
    return pairs


async def parse_names(answer: Answer, start: str, *, folders: bool) -> list[str]:
    """Return what follows a start in the keys of a read of keys, in order.

    Args:
        answer: of the server.
        start: what all the keys begin with; one that is no longer is left out.
        folders: whether those that end in a slash count.
    """
    if not answer.found:
        return []
    names: list[str] = []
    at = len(start)
    with reading():
        for number, part in enumerate(_slices(answer.body, _BETWEEN_TEXTS)):
            if number:
                await asyncio.sleep(0)
            found = [text_of(key)[at:] for key in json.loads(part) if key != start]
            names += found if folders else [name for name in found if not is_folder(name)]
    return names


def _slices(body: bytes, between: re.Pattern[bytes]) -> Iterator[bytes]:
    """Cut a JSON array into arrays that are decoded quickly, between two of its items."""
    if len(body) <= _SLICE:
        yield body
        return
    start = 0
    while cut := between.search(body, start + _SLICE):
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

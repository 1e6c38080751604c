"""Reads of whole directories, page by page at one revision, and of what a watch begins with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from aiolibkv.backends.etcd.codec import KeyValue, Range, RangeAnswer
from aiolibkv.backends.etcd.connection import Connection
from aiolibkv.backends.etcd.failures import AnswerTooLargeError, RefusedError
from aiolibkv.errors import AccessDeniedError, NotReachableError
from aiolibkv.keys import below
from aiolibkv.types import KVPair

_EVERYTHING = b"\x00"
_PAGE_KEYS = 1000
_PAGE_BYTES = 4 * 1024 * 1024
"""What the pages after the first aim at; the server holds a page in memory as a whole."""

_SHRINKING = 8
"""By what a page that was too large is divided: each try has the server put a whole message together."""


class RevisionGoneError(NotReachableError):
    """The revision to be read was compacted, or the server has not arrived there; to read again helps."""


class Reading(NamedTuple):
    """What was read, at one revision.

    Attributes:
        pairs: sorted, with paths as keys.
        revision: the store's revision that this is the state of.
    """

    pairs: list[KVPair]
    revision: int


def bounds(directory: str) -> tuple[bytes, bytes]:
    """Return key and range_end for what is strictly below a directory; the root's range is everything."""
    first, end = below(directory)
    return first.encode() or _EVERYTHING, end.encode() or _EVERYTHING


def to_path(key: bytes) -> str | None:
    """Return the path of a key, or None when no path can name it: others may write to the server too."""
    try:
        path = key.decode()
    except UnicodeDecodeError:
        return None
    return None if path.startswith("/") or path.endswith("/") or "//" in path else path


async def read_key(connection: Connection, path: str, *, revision: int = 0, consistent: bool = True) -> Reading:
    """Read one key.

    Args:
        connection: where to read.
        path: the key.
        revision: whose state to read; 0 for the present one.
        consistent: False may give an older state.

    Raises:
        RevisionGoneError: there is no such revision, or not any more.
    """
    answer = await _read_page(connection, Range(path.encode(), revision=revision, serializable=not consistent))
    pairs = [KVPair(path, kv.value, kv.mod_revision) for kv in answer.kvs[:1]]
    return Reading(pairs, revision or answer.header.revision)


async def read_tree(
    connection: Connection,
    directory: str,
    *,
    revision: int = 0,
    consistent: bool = True,
    page_read: Callable[[], None] = lambda: None,
) -> Reading:
    """Read what is strictly below a directory, at one revision.

    Args:
        connection: where to read.
        directory: its path; "" is everything.
        revision: whose state to read; 0 for the present one.
        consistent: False may give an older state.
        page_read: called after each page.

    Raises:
        RevisionGoneError: there is no such revision, or not any more.
    """
    first, end = bounds(directory)
    request = Range(first, end, _PAGE_KEYS, revision, serializable=not consistent)
    page = await _read_page(connection, request)
    revision = revision or page.header.revision
    pairs = _to_pairs(page.kvs)
    while page.more and page.kvs:
        page_read()
        size = sum(len(kv.value) + len(kv.key) for kv in page.kvs) // len(page.kvs) + 1
        request.key, request.revision = page.kvs[-1].key + b"\x00", revision
        request.limit = max(1, min(2 * request.limit, _PAGE_KEYS, _PAGE_BYTES // size))
        page = await _read_page(connection, request)
        if page.kvs and page.kvs[-1].key < request.key:
            raise NotReachableError("the answer is not etcd's: a page comes again")
        pairs += _to_pairs(page.kvs)
    return Reading(pairs, revision)


async def is_key(connection: Connection, directory: str, revision: int, *, consistent: bool = True) -> bool:
    """Tell whether a directory with nothing below was itself a key at a revision.

    Asked for separately, because a user may be allowed to see what is below it and not the key itself.
    """
    request = Range(directory.encode(), revision=revision, count_only=True, serializable=not consistent)
    try:
        return (await _read_page(connection, request)).count > 0
    except AccessDeniedError:
        return False


def _to_pairs(kvs: list[KeyValue]) -> list[KVPair]:
    return [KVPair(path, kv.value, kv.mod_revision) for kv in kvs if (path := to_path(kv.key)) is not None]


async def _read_page(connection: Connection, request: Range) -> RangeAnswer:
    while True:
        try:
            return await connection.call(request, RangeAnswer, needs_leader=not request.serializable)
        except AnswerTooLargeError:
            if request.limit == 1:
                raise
            request.limit = max(1, request.limit // _SHRINKING)
        except RefusedError as refusal:
            if not refusal.says("required revision"):
                raise
            raise RevisionGoneError(f"the revision being read is gone: {refusal.message}") from refusal

"""Reads of whole directories, page by page at one revision, and of what a watch begins with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from aiolibkv.backends.etcd.codec import KeyValue, Range, RangeAnswer
from aiolibkv.backends.etcd.connection import Connection
from aiolibkv.backends.etcd.failures import AnswerTooLargeError, RefusedError
from aiolibkv.backends.etcd.keyspace import Keyspace
from aiolibkv.errors import AccessDeniedError, NotReachableError
from aiolibkv.types import KVPair

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


class Reader:
    """Reads of one store."""

    def __init__(self, connection: Connection, keyspace: Keyspace) -> None:
        """Make a reader; nothing is sent."""
        self._connection = connection
        self._keyspace = keyspace

    async def key(self, path: str, *, revision: int = 0, consistent: bool = True) -> Reading:
        """Read one key.

        Args:
            path: the key.
            revision: whose state to read; 0 for the present one.
            consistent: False may give an older state.

        Raises:
            RevisionGoneError: there is no such revision, or not any more.
        """
        answer = await self._read_page(Range(self._keyspace.key(path), revision=revision, serializable=not consistent))
        pairs = [KVPair(path, kv.value, kv.mod_revision) for kv in answer.kvs[:1]]
        return Reading(pairs, revision or answer.header.revision)

    async def tree(
        self,
        directory: str,
        *,
        revision: int = 0,
        consistent: bool = True,
        page_read: Callable[[], None] = lambda: None,
    ) -> Reading:
        """Read what is strictly below a directory, at one revision.

        Args:
            directory: its path; "" is everything.
            revision: whose state to read; 0 for the present one.
            consistent: False may give an older state.
            page_read: called after each page.

        Raises:
            RevisionGoneError: there is no such revision, or not any more.
        """
        first, end = self._keyspace.below(directory)
        request = Range(first, end, _PAGE_KEYS, revision, serializable=not consistent)
        page = await self._read_page(request)
        revision = revision or page.header.revision
        pairs = self._to_pairs(page.kvs)
        while page.more and page.kvs:
            page_read()
            size = sum(len(kv.value) + len(kv.key) for kv in page.kvs) // len(page.kvs) + 1
            request.key, request.revision = page.kvs[-1].key + b"\x00", revision
            request.limit = max(1, min(2 * request.limit, _PAGE_KEYS, _PAGE_BYTES // size))
            page = await self._read_page(request)
            if page.kvs and page.kvs[-1].key < request.key:
                raise NotReachableError("the answer is not etcd's: a page comes again")
            pairs += self._to_pairs(page.kvs)
        return Reading(pairs, revision)

    async def is_key(self, directory: str, revision: int, *, consistent: bool = True) -> bool:
        """Tell whether a directory with nothing below was itself a key at a revision.

        Asked for separately, because a user may be allowed to see what is below it and not the key itself.
        """
        request = Range(self._keyspace.key(directory), revision=revision, count_only=True, serializable=not consistent)
        try:
            return (await self._read_page(request)).count > 0
        except AccessDeniedError:
            return False

    def _to_pairs(self, kvs: list[KeyValue]) -> list[KVPair]:
        return [
            KVPair(path, kv.value, kv.mod_revision) for kv in kvs if (path := self._keyspace.path(kv.key)) is not None
        ]

    async def _read_page(self, request: Range) -> RangeAnswer:
        while True:
            try:
                return await self._connection.call(request, RangeAnswer, needs_leader=not request.serializable)
            except AnswerTooLargeError:
                if request.limit == 1:
                    raise
                request.limit = max(1, request.limit // _SHRINKING)
            except RefusedError as refusal:
                if not refusal.says("required revision"):
                    raise
                raise RevisionGoneError(f"the revision being read is gone: {refusal.message}") from refusal

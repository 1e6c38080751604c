"""Reads of several keys and of directories, in pages at one revision, and of what a watch begins with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from aiolibkv.backends.etcd.codec import Operation, Range, Txn
from aiolibkv.backends.etcd.connection import Connection
from aiolibkv.backends.etcd.failures import AnswerTooLargeError, RefusedError
from aiolibkv.backends.etcd.keyspace import Keyspace
from aiolibkv.backends.etcd.pages import Page
from aiolibkv.errors import AccessDeniedError, NotReachableError
from aiolibkv.store import children_of
from aiolibkv.types import KVPair

_PAGE_KEYS = 1000
"""Of the first page. The server counts all that follows for each page, so that few large ones cost it less."""

_PAGE_BYTES = 4 * 1024 * 1024
"""What the pages after the first aim at; the server holds a page in memory as a whole."""

_UNSEEN_KEYS = 10_000
"""The most that a page has of keys alone: the server reads their values too, and their size is not known."""

_SHRINKING = 8
"""By what a page that was too large is divided: each try has the server put a whole message together."""

_SCAN_BYTES = 16 * 1024 * 1024
"""What the pages of a scan aim at, as far as their user asks for so many pairs."""

_ASSUMED_BYTES = 1600
"""The size of a pair in a directory of which no page was read yet."""

_SIZES_KEPT = 100
"""Of how many directories the size of the pairs is remembered."""

_KEYS_AT_ONCE = 127
"""Of several keys; etcd reads at most 128 in a transaction."""

_FIRST_KEYS, _KEYS_PER_CHILD = 256, 32
"""How many keys are read at first, and later for each child, to find the children of a directory."""

_COUNTED_PER_READ = 16
"""How many keys the server counts in the time in which one is read, at least."""


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
        self._sizes: dict[str, int] = {}

    async def key(self, path: str, *, revision: int = 0, consistent: bool = True) -> Reading:
        """Read one key.

        Args:
            path: the key.
            revision: whose state to read; 0 for the present one.
            consistent: False may give an older state.

        Raises:
            RevisionGoneError: there is no such revision, or not any more.
        """
        page = await self._read_page(Range(self._keyspace.key(path), revision=revision, serializable=not consistent))
        pairs = [KVPair(path, page.values[0], page.revisions[0])] if page.keys else []
        return Reading(pairs, revision or page.header.revision)

    async def many(
        self, paths: Sequence[str], *, consistent: bool, page_read: Callable[[], None]
    ) -> list[KVPair | None]:
        """Read several keys, at one revision.

        Args:
            paths: the keys.
            consistent: False may give an older state.
            page_read: called after each transaction.

        Raises:
            RevisionGoneError: there is no such revision, or not any more.
        """
        found: list[KVPair | None] = []
        revision, limit = 0, _KEYS_AT_ONCE
        while len(found) < len(paths):
            part = paths[len(found) : len(found) + limit]
            reads = [Range(self._keyspace.key(path), revision=revision, serializable=not consistent) for path in part]
            request = Txn(success=[Operation(range=read) for read in reads])
            try:
                answer = await self._connection.txn(request, needs_leader=consistent)
            except AnswerTooLargeError:
                if len(part) == 1:
                    raise
                limit = max(1, len(part) // _SHRINKING)
                continue
            except RefusedError as refusal:
                _check_revision(refusal)
                raise
            revision = revision or answer.header.revision
            for path, response in zip(part, answer.responses, strict=True):
                kvs = response.range.kvs if response.range is not None else []
                found.append(KVPair(path, kvs[0].value, kvs[0].mod_revision) if kvs else None)
            page_read()
        return found

    async def tree(
        self,
        directory: str,
        *,
        revision: int = 0,
        consistent: bool = True,
        keys_only: bool = False,
        page_read: Callable[[], None] = lambda: None,
    ) -> Reading:
        """Read what is strictly below a directory, at one revision.

        Args:
            directory: its path; "" is everything.
            revision: whose state to read; 0 for the present one.
            consistent: False may give an older state.
            keys_only: leave the values out.
            page_read: called after each page.

        Raises:
            RevisionGoneError: there is no such revision, or not any more.
        """
        first, end = self._keyspace.below(directory)
        request = Range(first, end, _PAGE_KEYS, revision, serializable=not consistent, keys_only=keys_only)
        page = await self._read_page(request)
        revision = revision or page.header.revision
        pairs = self._to_pairs(page)
        while page.more and page.keys:
            page_read()
            request.key, request.revision = page.keys[-1] + b"\x00", revision
            most = _UNSEEN_KEYS if keys_only else _PAGE_BYTES // _bytes_each(page)
            request.limit = max(1, min(2 * request.limit, most))
            page = await self._read_page(request)
            for start in range(0, len(page.keys), _PAGE_KEYS):
                pairs += self._to_pairs(page, start)
                await asyncio.sleep(0)
        return Reading(pairs, revision)

    async def page(
        self, directory: str, after: str, limit: int, *, page_read: Callable[[], None]
    ) -> tuple[list[KVPair], bool]:
        """Read the present state of some of what is strictly below a directory.

        Args:
            directory: its path; "" is everything.
            after: the path after which to begin; "" for the first.
            limit: the most pairs that are wanted; fewer are read where they are large.
            page_read: called when another page has to be read, as there is no path in this one.

        Returns:
            The pairs, and whether there is more.
        """
        first, end = self._keyspace.below(directory)
        if after:
            first = self._keyspace.key(after) + b"\x00"
        size = self._sizes.get(directory, _ASSUMED_BYTES)
        request = Range(first, end, max(1, min(limit, _SCAN_BYTES // size)))
        while True:
            page = await self._read_page(request)
            if not page.keys:
                return [], False
            self._remember_size(directory, _bytes_each(page))
            pairs = []
            for start in range(0, len(page.keys), _PAGE_KEYS):
                pairs += self._to_pairs(page, start)
                if start:
                    await asyncio.sleep(0)
            if pairs or not page.more:
                return pairs, page.more
            page_read()
            request.key = page.keys[-1] + b"\x00"

    async def children(
        self, directory: str, *, consistent: bool, page_read: Callable[[], None]
    ) -> tuple[list[str], int]:
        """Find the names one level below a directory at one revision, past most of what is below them.

        Args:
            directory: its path; "" is everything.
            consistent: False may give an older state.
            page_read: called after each page.

        Returns:
            The names, with a "/" at the end of what has keys below it, and the revision.

        Raises:
            RevisionGoneError: the revision was compacted meanwhile.
        """
        first, end = self._keyspace.below(directory)
        request = Range(first, end, _FIRST_KEYS, serializable=not consistent, keys_only=True)
        # In their order: they come in that of their keys.
        names: dict[str, None] = {}
        least = _KEYS_PER_CHILD // 2
        while True:
            page = await self._read_page(request)
            request.revision = request.revision or page.header.revision
            known = len(names)
            paths = self._keyspace.paths(page.keys)
            names.update(dict.fromkeys(children_of((path for path in paths if path is not None), directory)))
            if not page.more or not page.keys:
                return list(names), request.revision
            page_read()
            request.key = self._next_child(directory, page.keys[-1])
            # Each time the server counts all that follows: of many children it is soon cheaper to read more of that.
            least = min(2 * least, max(_KEYS_PER_CHILD, page.count // _COUNTED_PER_READ))
            request.limit = min(max(least, _KEYS_PER_CHILD * (len(names) - known)), _UNSEEN_KEYS)

    def _next_child(self, directory: str, key: bytes) -> bytes:
        """Return where to look for what comes after the child of a directory that a key is, or is below."""
        path = self._keyspace.path(key)
        start = f"{directory}/" if directory else ""
        name, slash, _ = (path or "")[len(start) :].partition("/")
        return self._keyspace.below(start + name)[1] if slash else key + b"\x00"

    async def created_before(self, directory: str, path: str) -> tuple[bool, str | None]:
        """Find the newest key strictly below a directory that was created before one of them.

        In one round trip if that is the newest of all, as it is for who has just joined a line.

        Returns:
            Whether that one exists, and the path of the other.
        """
        first, end = self._keyspace.below(directory)
        newest = Range(first, end, 2, keys_only=True, sort_order=Range.DESCEND, sort_target=Range.CREATE)
        own = Range(self._keyspace.key(path), keys_only=True)
        answers = (await self._connection.txn(Txn(success=[Operation(range=own), Operation(range=newest)]))).responses
        found, kvs = (answer.range.kvs if answer.range is not None else [] for answer in answers)
        if not found:
            return False, None
        if not kvs or kvs[0].key != own.key:
            # Nobody writes such a key again: its index is that of its creation.
            newest.max_create_revision = found[0].mod_revision
            ahead = (await self._read_page(newest)).keys[1:]
        else:
            ahead = [kv.key for kv in kvs[1:]]
        return True, self._keyspace.path(ahead[0]) if ahead else None

    async def is_key(self, directory: str, revision: int, *, consistent: bool = True) -> bool:
        """Tell whether a directory with nothing below was itself a key at a revision.

        Asked for separately, because a user may be allowed to see what is below it and not the key itself.
        """
        request = Range(self._keyspace.key(directory), revision=revision, count_only=True, serializable=not consistent)
        try:
            return (await self._read_page(request)).count > 0
        except AccessDeniedError:
            return False

    def _to_pairs(self, page: Page, start: int = 0) -> list[KVPair]:
        """Return the pairs of a page that have paths; of a long one, of as many as are done at once."""
        chosen = slice(start, start + _PAGE_KEYS)
        paths, values, revisions = self._keyspace.paths(page.keys[chosen]), page.values[chosen], page.revisions[chosen]
        if None not in paths:
            return list(map(KVPair, cast("list[str]", paths), values, revisions))
        columns = zip(paths, values, revisions, strict=True)
        return [KVPair(path, value, revision) for path, value, revision in columns if path is not None]

    def _remember_size(self, directory: str, size: int) -> None:
        self._sizes.pop(directory, None)
        self._sizes[directory] = size
        if len(self._sizes) > _SIZES_KEPT:
            del self._sizes[next(iter(self._sizes))]

    async def _read_page(self, request: Range) -> Page:
        while True:
            try:
                page = await self._connection.call(request, Page, needs_leader=not request.serializable)
            except AnswerTooLargeError:
                if request.limit == 1:
                    raise
                request.limit = max(1, request.limit // _SHRINKING)
            except RefusedError as refusal:
                _check_revision(refusal)
                raise
            else:
                if page.keys and page.keys[0] < request.key:
                    raise NotReachableError("the answer is not etcd's: a page comes again")
                return page


def _bytes_each(page: Page) -> int:
    return (sum(map(len, page.keys)) + sum(map(len, page.values))) // len(page.keys) + 1


def _check_revision(refusal: RefusedError) -> None:
    """Raise RevisionGoneError when the server refuses a read because of its revision."""
    if refusal.says("required revision"):
        raise RevisionGoneError(f"the revision being read is gone: {refusal.message}") from refusal

"""What is read of a store, each by one statement at one instant. What has expired is not there."""

# ruff: noqa: S608 - what is put into statements are only names of tables, made of checked identifiers

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from aiolibkv.backends.postgresql.connection import Connections, Link
from aiolibkv.backends.postgresql.gathering import Gatherer
from aiolibkv.backends.postgresql.schema import Identifiers
from aiolibkv.backends.postgresql.statements import Statement
from aiolibkv.keys import below
from aiolibkv.store import LeaseLostError, Listing, Names, Page, Tasks, children_of
from aiolibkv.types import KVPair

_GETS_AT_ONCE = 100
_PAGE_ROWS = 10_000
_PAGE_BYTES = 8 * 1024 * 1024
_LAST_KEY = "\U0010ffff"
_NEXT = "\x01"
"""What makes of a key the next one: no text in PostgreSQL has a character U+0000."""


class State(NamedTuple):
    """A key or what is below a directory.

    Attributes:
        pairs: sorted.
        revision: of that instant.
        remaining: seconds until anything expires; None when nothing does.
    """

    pairs: Sequence[KVPair]
    revision: int
    remaining: float | None


class Reader:
    """The reading side of one store."""

    def __init__(self, tables: Identifiers, connections: Connections, tasks: Tasks) -> None:
        """Make a reader; nothing is sent."""
        self._connections = connections
        pairs, live = tables.pairs, tables.live()
        within = f"FROM {pairs} AS p WHERE p.key >= $1 AND p.key < $2 AND {live}"
        itself = f"FROM {pairs} AS p WHERE p.key = $3 AND {live}"
        self._some = Statement(
            f"SELECT p.key, p.value, p.rev FROM {pairs} AS p WHERE p.key = ANY ($1::text[]) AND {live}", "tbi"
        )
        self._state = Statement(
            f"SELECT {tables.revision()} AS index, {tables.remaining()}, p.key, p.value, p.rev FROM {tables.state} AS s"
            f" LEFT JOIN {pairs} AS p ON p.key >= $1 AND p.key < $2 AND {live} ORDER BY p.key",
            "iftbi",
        )
        self._page = Statement(
            "(SELECT key, value, rev FROM (SELECT p.key, p.value, p.rev, sum(octet_length(p.value))"
            f" OVER (ORDER BY p.key) - octet_length(p.value) AS before {within} ORDER BY p.key LIMIT $4) AS page"
            f" WHERE before < {_PAGE_BYTES}) UNION ALL SELECT p.key, NULL, p.rev {itself}",
            "tbi",
        )
        self._keys = Statement(f"(SELECT p.key {within} ORDER BY p.key) UNION ALL SELECT p.key {itself}", "t")
        # Where a child has keys below it, the next one begins after all of them: "0" comes after "/".
        after = (
            "CASE WHEN position('/' in substr(c.key, length($1) + 1)) > 0"
            " THEN $1 || split_part(substr(c.key, length($1) + 1), '/', 1) || '0' ELSE c.key || chr(1) END"
        )
        self._children = Statement(
            f"WITH RECURSIVE c AS ((SELECT p.key {within} ORDER BY p.key LIMIT 1) UNION ALL SELECT n.key FROM c,"
            f" LATERAL (SELECT p.key FROM {pairs} AS p WHERE p.key >= {after} AND p.key < $2 AND {live}"
            f" ORDER BY p.key LIMIT 1) AS n) SELECT key FROM c UNION ALL SELECT p.key {itself}",
            "t",
        )
        self._ahead = Statement(
            f"SELECT (SELECT p.key {within} AND p.rev < o.rev ORDER BY p.rev DESC LIMIT 1)"
            f" FROM (SELECT p.rev {itself}) AS o",
            "t",
        )
        self._gets = Gatherer(tasks, self._get_all, most=_GETS_AT_ONCE)

    async def prepare(self, link: Link) -> None:
        """Have a new connection ready for reads of single keys, which then are one round trip each.

        One is carried out, though of no key: asyncpg leaves the transaction open in which a statement is only prepared.
        """
        await link.rows(self._some, [])

    async def get(self, path: str) -> KVPair | None:
        """Return a pair, or None."""
        return await self._gets.ask(path)

    async def get_many(self, paths: Sequence[str]) -> Sequence[KVPair | None]:
        """Return the pair of each path, or None, all at one instant."""
        found = await self._connections.run(lambda link: self._some_of(link, paths))
        return [found.get(path) for path in paths]

    async def state(self, path: str, *, tree: bool) -> State:
        """Return a key, or what is below a directory, with the revision of that instant."""
        first, end = _bounds(path) if tree else (path, path + _NEXT)

        async def read(link: Link) -> State:
            rows = await link.rows(self._state, first, end)
            if not rows:
                raise self._connections.emptied(link)
            return State([KVPair(*row[2:]) for row in rows if row[2] is not None], *rows[0][:2])

        return await self._connections.run(read)

    async def list(self, directory: str, *, paged: Callable[[], None]) -> Listing:
        """Return what is below a directory, at one instant."""

        async def read(link: Link) -> Listing:
            first = await self._page_of(link, directory, "", _PAGE_ROWS)
            if not first.more:
                return Listing(first.pairs, first.exists)
            pairs: list[KVPair] = []
            async with link.snapshot():
                more = True
                while more:
                    page = await self._page_of(link, directory, pairs[-1].key if pairs else "", _PAGE_ROWS)
                    pairs += page.pairs
                    more = page.more
                    paged()
            return Listing(pairs, page.exists)

        return await self._connections.run(read)

    async def page(self, directory: str, after: str, limit: int) -> Page:
        """Return the first pairs below a directory whose path is above another one."""
        return await self._connections.run(lambda link: self._page_of(link, directory, after, limit))

    async def keys(self, directory: str) -> Names:
        """Return the paths below a directory."""
        rows = await self._connections.run(lambda link: link.rows(self._keys, *_bounds(directory), directory))
        paths = [key for (key,) in rows]
        exists = bool(paths) and paths[-1] == directory
        return Names(paths[:-1] if exists else paths, exists)

    async def children(self, directory: str) -> Names:
        """Return the names one level below a directory."""
        rows = await self._connections.run(lambda link: link.rows(self._children, *_bounds(directory), directory))
        paths = [key for (key,) in rows]
        exists = bool(paths) and paths[-1] == directory
        return Names(children_of(paths[:-1] if exists else paths, directory), exists)

    async def place_ahead(self, line: str, place: str) -> str | None:
        """Return who stands before a place in a line, None for the first.

        Raises:
            LeaseLostError: the place is gone.
        """
        rows = await self._connections.run(lambda link: link.rows(self._ahead, *below(line), place))
        if not rows:
            raise LeaseLostError
        ahead: str | None = rows[0][0]
        return ahead

    async def _get_all(self, paths: Sequence[str]) -> Sequence[KVPair | None]:
        async with self._connections.borrow() as link:
            found = await self._some_of(link, paths)
        return [found.get(path) for path in paths]

    async def _some_of(self, link: Link, paths: Sequence[str]) -> dict[str, KVPair]:
        return {row[0]: KVPair(*row) for row in await link.rows(self._some, paths)}

    async def _page_of(self, link: Link, directory: str, after: str, limit: int) -> Page:
        first, end = _bounds(directory)
        first = max(first, f"{after}{_NEXT}") if after else first
        rows = await link.rows(self._page, first, end, directory, limit + 1)
        exists = bool(rows) and rows[-1][0] == directory
        pairs = [KVPair(*row) for row in (rows[:-1] if exists else rows)]
        is_full = len(pairs) > limit or sum([len(pair.value) for pair in pairs]) >= _PAGE_BYTES
        return Page(pairs[:limit], is_full, exists)


def _bounds(directory: str) -> tuple[str, str]:
    first, end = below(directory)
    return first, end or _LAST_KEY

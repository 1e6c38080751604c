"""Reading on the event loop's thread: a little at a time, and what belongs together at one snapshot."""

# ruff: noqa: S608 - what is put into statements are only the names of tables, made of a checked identifier

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiolibkv.backends.sqlite.clock import Clock
from aiolibkv.backends.sqlite.failures import meaning, primary_code
from aiolibkv.backends.sqlite.files import Files, ReplacedError
from aiolibkv.backends.sqlite.schema import Tables, open_for_reading
from aiolibkv.backends.sqlite.shrinking import LONGEST_PAUSE
from aiolibkv.errors import KeyNotFoundError, StoreError
from aiolibkv.keys import below as bounds
from aiolibkv.store import UNSEEN, Listing, Names, Page, Unseen
from aiolibkv.types import KVPair

_LARGE = 64 * 1024
"""Bytes; a larger value is read in slices, and other tasks run between them."""

_SLICE = 1024 * 1024
_PAGE_ROWS = 256
_PAGE_KEYS = 2048
_PAGE_BYTES = 1024 * 1024
_READS_AT_ONCE = 64
"""Reads without a wait, before one gives way to the other tasks."""

_SHORT = 4096
"""Bytes; a page of values that are all at most so long is read at once."""

_ROWS_PER_READ = 16
"""Rows whose reading takes as long as that of one pair alone."""

_TRUSTED_TIME = 0.01
"""Seconds for which reads of one statement do not look again whether the files are still the same."""

_SNAPSHOTS = 8
"""Snapshots that are read at once, each on a connection of its own."""

_GATE_INTERVAL = 0.005
"""Seconds between two looks at a gate that is shut."""

_LAST_KEY = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class State:
    """A key or what is below a directory, at one snapshot.

    Attributes:
        pairs: sorted.
        exists: whether the key or directory is itself a key.
        index: the bucket's index.
    """

    pairs: list[KVPair]
    exists: bool
    index: int


class Logged(NamedTuple):
    """One row of the log; value None is a deletion, and rows up to the rev ``last`` are one modification."""

    rev: int
    last: int
    key: str
    value: bytes | None


class CompactedError(Exception):
    """The log does not reach back that far any more."""


class Reader:
    """The reading side of one store, in its event loop."""

    def __init__(
        self, files: Files, tables: Tables, clock: Clock, *, replaced: Callable[[ReplacedError], None]
    ) -> None:
        """Open a connection.

        Args:
            files: the database and the files beside it.
            tables: those to read.
            clock: tells what has expired.
            replaced: called when the files are found to be others.

        Raises:
            StoreError: SQLite cannot.
        """
        self._replaced = replaced
        self._files = files
        self._tables = tables
        self._clock = clock
        self._reads = 0
        self._opened: list[sqlite3.Connection] = []
        self._idle: list[sqlite3.Connection] = []
        self._cursors: set[sqlite3.Cursor] = set()
        self._end: StoreError | None = None
        self._checked = -math.inf
        self._snapshots = asyncio.Semaphore(_SNAPSHOTS)
        pairs, log, sessions, live = tables.pairs, tables.log, tables.sessions, tables.live()
        small = f"CASE WHEN length(value) <= {_LARGE} THEN CAST(value AS BLOB) END"
        quick = f"length(value) <= {_LARGE} AND session IS NULL AND (expires IS NULL OR expires > ?)"
        self._quick = f"SELECT rev, CASE WHEN {quick} THEN CAST(value AS BLOB) END FROM {pairs} WHERE key = ?"
        self._one = f"SELECT rev, {small}, rowid FROM {pairs} WHERE key = :key AND {live}"
        self._below = (
            f"SELECT key, rev, {small}, rowid FROM {pairs} WHERE key > :first AND key < :end AND {live} ORDER BY key"
        )
        self._with_index = (
            f"SELECT newest, rev, {small} FROM (SELECT ifnull(max(rev), 0) AS newest FROM {log})"
            f" LEFT JOIN {pairs} ON key = :key AND {live}"
        )
        self._at_once = (
            f"SELECT key, CASE WHEN length(value) <= {_SHORT} THEN CAST(value AS BLOB) END, rev FROM {pairs}"
            f" WHERE key > :first AND key < :end AND {live} ORDER BY key LIMIT {_PAGE_ROWS + 1}"
        )
        below = f"FROM {pairs} WHERE key > :first AND key < :end AND {live}"
        self._keys = f"SELECT key {below} ORDER BY key"
        self._page = f"SELECT key, rev, {small}, rowid {below} ORDER BY key LIMIT :limit"
        self._first = f"SELECT key FROM {pairs} WHERE key >= :first AND key < :end AND {live} ORDER BY key LIMIT 1"
        self._before = f"SELECT key {below} AND rev < :rev ORDER BY rev DESC LIMIT 1"
        self._from = f"SELECT rev, last, key, {small}, value IS NULL FROM {log} WHERE rev >= ? ORDER BY rev LIMIT ?"
        self._newest = f"SELECT ifnull(max(rev), 0) FROM {log}"
        self._next_end = (
            f"SELECT min(at) FROM (SELECT min(expires) AS at FROM {pairs} WHERE expires IS NOT NULL"
            f" UNION ALL SELECT min(expires) FROM {sessions})"
        )
        self._owners = f"SELECT DISTINCT owner FROM {sessions}"
        self._main = self._open()
        self._quickly = self._main.cursor()

    def glance(self, path: str) -> KVPair | Unseen | None:
        """Return a live pair or None; UNSEEN when it is the turn of others, or it takes more than one quick read."""
        if self._reads >= _READS_AT_ONCE:
            return UNSEEN
        self._reads += 1
        now = self._clock.now()
        try:
            self._check_now_and_then(now)
            row = self._quickly.execute(self._quick, (now, path)).fetchone()
        except (sqlite3.Error, StoreError):
            return UNSEEN
        if row is None:
            return None
        rev, value = row
        return UNSEEN if value is None else KVPair(path, value, rev)

    async def get(self, path: str) -> KVPair | None:
        """Return a live pair, or None."""
        await self._give_way()
        pair = self.glance(path)
        if pair is not UNSEEN:
            return pair
        state = await self.state(path, tree=False)
        return state.pairs[0] if state.pairs else None

    async def exists(self, path: str) -> bool:
        """Tell whether there is a live pair."""
        await self._give_way()
        now = self._clock.now()
        self._check_now_and_then(now)
        return self._find(self._main, path, now) is not None

    async def pairs_below(self, directory: str, paged: Callable[[], None]) -> Listing:
        """Return the pairs strictly below a directory, at one snapshot.

        Args:
            directory: see above.
            paged: called after each page of a long list.
        """
        await self._give_way()
        now = self._clock.now()
        self._check_now_and_then(now)
        rows = self._try(lambda: self._main.execute(self._at_once, _below(directory, now)).fetchall())
        self._reads += len(rows) // _ROWS_PER_READ
        if 0 < len(rows) <= _PAGE_ROWS and all(value is not None for _, value, _ in rows):
            return Listing([KVPair(*row) for row in rows], exists=True)
        state = await self.state(directory, tree=True, paged=paged)
        return Listing(state.pairs, state.exists)

    async def state(self, path: str, *, tree: bool, paged: Callable[[], None] | None = None) -> State:
        """Return a pair, or the pairs strictly below a directory, at one snapshot.

        Args:
            path: the key or directory.
            tree: see above.
            paged: called after each page of a long list.
        """
        await self._give_way()
        if not tree:
            now = self._clock.now()
            self._check_now_and_then(now)
            index, *own = self._row(self._main, self._with_index, {"key": path, "now": now})
            if own[0] is None or own[1] is not None:
                return State([] if own[0] is None else [KVPair(path, own[1], own[0])], own[0] is not None, index)
        async with self._snapshot() as connection:
            index = int(self._row(connection, self._newest, ())[0])
            now = self._clock.now()
            own = self._find(connection, path, now)
            if not tree:
                pairs = [] if own is None else [await self._pair(connection, path, *own)]
                return State(pairs, own is not None, index)
            with self._rows(connection, self._below, _below(path, now)) as cursor:
                return State(await self._pages(connection, cursor, paged), own is not None, index)

    async def pairs(self, paths: Sequence[str]) -> list[KVPair | None]:
        """Return the live pair of each path or None, at one snapshot."""
        await self._give_way()
        found: list[KVPair | None] = []
        async with self._snapshot() as connection:
            now = self._clock.now()
            for path in paths:
                row = self._find(connection, path, now)
                found.append(None if row is None else await self._pair(connection, path, *row))
                if len(found) % _PAGE_ROWS == 0:
                    await asyncio.sleep(0)
        return found

    async def keys(self, directory: str, paged: Callable[[], None]) -> Names:
        """Return the keys strictly below a directory, at one snapshot; ``paged`` as for ``pairs_below``."""
        await self._give_way()
        keys: list[str] = []
        async with self._snapshot() as connection:
            now = self._clock.now()
            exists = self._find(connection, directory, now) is not None
            with self._rows(connection, self._keys, _below(directory, now)) as cursor:
                while page := self._try(lambda: cursor.fetchmany(_PAGE_KEYS)):
                    keys.extend(key for (key,) in page)
                    await asyncio.sleep(0)
                    paged()
        return Names(keys, exists)

    async def children(self, directory: str) -> Names:
        """Return the names one level below a directory, at one snapshot, passing over what is below them."""
        await self._give_way()
        names: list[str] = []
        start = len(directory) + 1 if directory else 0
        async with self._snapshot() as connection:
            now = self._clock.now()
            exists = self._find(connection, directory, now) is not None
            place = _below(directory, now)
            while (row := self._row(connection, self._first, place)) is not None:
                name, slash, _ = row[0][start:].partition("/")
                names.append(name + slash)
                path = row[0][:start] + name
                place["first"] = bounds(path)[1] if slash else f"{path}\0"
                if len(names) % _PAGE_ROWS == 0:
                    await asyncio.sleep(0)
        return Names(names, exists)

    async def page(self, directory: str, after: str, limit: int) -> Page:
        """Return the first pairs below a directory above a path: at most so many, and not many bytes."""
        await self._give_way()
        pairs: list[KVPair] = []
        size = 0
        async with self._snapshot() as connection:
            now = self._clock.now()
            exists = self._find(connection, directory, now) is not None
            place = _below(directory, now)
            place |= {"first": max(place["first"], after), "limit": limit + 1}
            with self._rows(connection, self._page, place) as cursor:
                while (row := self._try(cursor.fetchone)) is not None:
                    if len(pairs) == limit or size >= _PAGE_BYTES:
                        return Page(pairs, more=True, exists=exists)
                    key, *rest = row
                    pairs.append(await self._pair(connection, key, *rest))
                    size += len(pairs[-1].value)
                    if len(pairs) % _PAGE_ROWS == 0:
                        await asyncio.sleep(0)
        return Page(pairs, more=False, exists=exists)

    async def before(self, directory: str, path: str) -> str | None:
        """Return the key below a directory that was written last before another one, None when that is the first.

        Raises:
            KeyNotFoundError: there is no such key.
        """
        await self._give_way()
        async with self._snapshot() as connection:
            now = self._clock.now()
            own = self._find(connection, path, now)
            if own is None:
                raise KeyNotFoundError
            row = self._row(connection, self._before, _below(directory, now) | {"rev": own[0]})
        return None if row is None else str(row[0])

    async def log(self, after: int) -> list[Logged]:
        """Return the next rows of the log after a rev; none when there are none.

        Raises:
            CompactedError: that rev is not there any more, or belongs to a history that was lost.
        """
        self._check(self._clock.now())
        rows = self._try(lambda: self._main.execute(self._from, (after, _PAGE_ROWS + 1)).fetchall())
        if not after and not rows:
            return []
        if not rows or rows[0][0] != after:
            raise CompactedError
        page = []
        for rev, last, key, small, deleted in rows[1:]:
            value = small
            if small is None and not deleted:
                async with self._snapshot() as connection:
                    value = await self._blob(connection, self._tables.log_name, rev)
            page.append(Logged(rev, last, key, value))
        return page

    def until_next_end(self) -> float | None:
        """Return the seconds until the next key or session expires."""
        end: float | None = self._row(self._main, self._next_end, ())[0]
        return None if end is None else end - self._clock.now()

    def owners(self) -> set[str]:
        """Return the owners of sessions."""
        self._check(self._clock.now())
        return {owner for (owner,) in self._try(lambda: self._main.execute(self._owners).fetchall())}

    def close(self, reason: StoreError) -> list[sqlite3.Connection]:
        """Refuse whatever is read from now on, in reads under way as well, and return all connections, for closing.

        Args:
            reason: what is raised.
        """
        self._end = reason
        for cursor in self._cursors:
            # A connection lives on, though it was closed, while a statement of it is not at its end.
            cursor.close()
        return self._opened

    async def _give_way(self) -> None:
        # A read does not wait for anything, and a task that only reads would keep all others from running.
        self._reads += 1
        if self._reads > _READS_AT_ONCE:
            await asyncio.sleep(0)
            self._reads = 0

    @asynccontextmanager
    async def _snapshot(self) -> AsyncIterator[sqlite3.Connection]:
        async with self._snapshots:
            end = time.monotonic() + LONGEST_PAUSE
            while self._files.gate.is_shut() and time.monotonic() < end:
                await asyncio.sleep(_GATE_INTERVAL)
                self._refuse_at_end()
            self._check(self._clock.now())
            connection = self._idle.pop() if self._idle else self._open()
            try:
                self._try(lambda: connection.execute("BEGIN"))
                yield connection
            finally:
                # Closing is the writer's: it could be the last one, which is to be done under the write lock.
                if self._end is None:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    self._idle.append(connection)

    @contextmanager
    def _rows(
        self, connection: sqlite3.Connection, statement: str, parameters: dict[str, Any]
    ) -> Iterator[sqlite3.Cursor]:
        cursor = self._try(lambda: connection.execute(statement, parameters))
        self._cursors.add(cursor)
        try:
            yield cursor
        finally:
            self._cursors.discard(cursor)
            if self._end is None:
                cursor.close()

    def _find(self, connection: sqlite3.Connection, path: str, now: float) -> Any:
        """Return rev, value unless it is large, and rowid of a live pair, or None."""
        return self._row(connection, self._one, {"key": path, "now": now})

    def _open(self) -> sqlite3.Connection:
        self._check(self._clock.now())
        connection: sqlite3.Connection = self._try(lambda: open_for_reading(self._files.path))
        self._opened.append(connection)
        return connection

    def _check(self, now: float) -> None:
        """Raise StoreError when nothing may be read any more."""
        self._refuse_at_end()
        try:
            self._files.check()
        except ReplacedError as error:
            self._replaced(error)
            raise
        self._checked = now

    def _check_now_and_then(self, now: float) -> None:
        if abs(now - self._checked) > _TRUSTED_TIME:
            self._check(now)

    def _refuse_at_end(self) -> None:
        if self._end is not None:
            raise type(self._end)(self._end.message)

    async def _pages(
        self, connection: sqlite3.Connection, cursor: sqlite3.Cursor, paged: Callable[[], None] | None
    ) -> list[KVPair]:
        pairs: list[KVPair] = []
        rows = size = 0
        while (row := self._try(cursor.fetchone)) is not None:
            key, *rest = row
            pair = await self._pair(connection, key, *rest)
            pairs.append(pair)
            rows += 1
            size += len(pair.value)
            if rows >= _PAGE_ROWS or size >= _PAGE_BYTES:
                rows = size = 0
                await asyncio.sleep(0)
                if paged is not None:
                    paged()
        return pairs

    async def _pair(
        self, connection: sqlite3.Connection, key: str, rev: int, value: bytes | None, rowid: int
    ) -> KVPair:
        if value is None:
            value = await self._blob(connection, self._tables.pairs_name, rowid)
        return KVPair(key, value, rev)

    async def _blob(self, connection: sqlite3.Connection, table: str, rowid: int) -> bytes:
        value = bytearray()
        try:
            with connection.blobopen(table, "value", rowid, readonly=True) as blob:
                while piece := blob.read(_SLICE):
                    value += piece
                    await asyncio.sleep(0)
                    self._refuse_at_end()
        except sqlite3.Error as error:
            self._refuse_at_end()
            if primary_code(error) == sqlite3.SQLITE_ERROR:  # no such row
                raise CompactedError from error
            raise meaning(error, self._files.path) from error
        return bytes(value)

    def _row(self, connection: sqlite3.Connection, statement: str, parameters: Any) -> Any:
        return self._try(lambda: connection.execute(statement, parameters).fetchone())

    def _try(self, read: Callable[[], Any]) -> Any:
        self._refuse_at_end()
        try:
            return read()
        except sqlite3.Error as error:
            if primary_code(error) == sqlite3.SQLITE_ERROR:
                # The tables that were there are not: another database was restored into this one.
                replaced = ReplacedError(f"{self._files.path} was replaced while it was open: {error}")
                self._replaced(replaced)
                raise replaced from error
            raise meaning(error, self._files.path) from error


def _below(directory: str, now: float) -> dict[str, Any]:
    first, end = bounds(directory)
    return {"first": first, "end": end or _LAST_KEY, "now": now}

"""A database that a store has open: its files, the thread that writes, the reading side, and what follows the log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from aiolibkv.backends.sqlite.clock import Clock
from aiolibkv.backends.sqlite.files import Files, ReplacedError
from aiolibkv.backends.sqlite.presence import Presence
from aiolibkv.backends.sqlite.reading import Reader
from aiolibkv.backends.sqlite.schema import Tables
from aiolibkv.backends.sqlite.signals import Signals
from aiolibkv.backends.sqlite.watching import Tail
from aiolibkv.backends.sqlite.writing import Writer
from aiolibkv.errors import StoreError
from aiolibkv.store import Feed, Tasks


class Database:
    """One opening of the files. When they are removed or replaced it is closed, and another one is opened.

    Attributes:
        reader: the reading side, once it is open.
        writer: the writing side.
    """

    reader: Reader
    _tail: Tail
    _signals: Signals

    def __init__(
        self,
        path: Path,
        tables: Tables,
        durability: str,
        *,
        create: bool,
        replaced: Callable[[Database, ReplacedError], None],
    ) -> None:
        """Open the files beside the database.

        Args:
            path: the database.
            tables: those of the bucket.
            durability: what SQLite calls "synchronous".
            create: whether to create the database if there is none.
            replaced: called when the files are found to be others.

        Raises:
            OSError: a file cannot be opened.
            StoreError: the database is where it cannot be shared.
        """
        self._files = Files(path, tables.pairs_name, create=create)
        self._tables = tables
        self._clock = Clock()
        self._tasks = Tasks()
        self._is_open = False
        self._tell_replaced = lambda error: replaced(self, error)
        self.writer: Writer = Writer(
            self._files, tables, self._clock, durability, written=self._written, replaced=self._tell_replaced
        )

    @property
    def owner_name(self) -> str:
        """Return the name under which this has sessions, "" when it has none."""
        return self._files.owner_name

    async def open(
        self,
        patience: float,
        former: str,
        *,
        expire: Callable[[], Awaitable[object]],
        end: Callable[[list[str]], Awaitable[object]],
    ) -> None:
        """Open the database.

        Args:
            patience: seconds to wait for the write lock.
            former: the name under which this store had sessions in the files before these, or "".
            expire: deletes what has expired.
            end: ends the sessions of owners.

        Raises:
            StoreError: that failed; ``close`` is needed all the same.
        """
        await self.writer.start(patience, former)
        self.reader = reader = Reader(self._files, self._tables, self._clock, replaced=self._tell_replaced)
        self._tail = tail = Tail(reader, expire)
        presence = Presence(reader, self._files, end)
        self._signals = signals = Signals(self._files, tail.wake, presence.suspect)
        self._is_open = True
        self._tasks.start(tail.run(signals))
        self._tasks.start(presence.run(signals))

    async def follow(self, feed: Feed) -> None:
        """Keep a feed up to date until cancelled; see ``Driver.follow``."""
        await self._tail.follow(feed, self._signals)

    async def close(self, reason: StoreError) -> None:
        """Close it; may be called again when it was cancelled.

        Args:
            reason: with which watches end, and calls that are under way.
        """
        connections = []
        if self._is_open:
            connections = self.reader.close(reason)
            await self._tail.close(reason)
            await self._tasks.close()
            self._signals.close()
        await self.writer.stop(connections, reason)

    def _written(self) -> None:
        if self._is_open and not self._signals.are_prompt:
            self._tail.wake()

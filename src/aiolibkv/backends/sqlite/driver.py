"""The SQLite store: writes in the writer's thread, reads and watches in the event loop."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from aiolibkv.backends.sqlite.clock import Clock
from aiolibkv.backends.sqlite.failures import meaning
from aiolibkv.backends.sqlite.files import Files
from aiolibkv.backends.sqlite.presence import Presence
from aiolibkv.backends.sqlite.reader import Reader
from aiolibkv.backends.sqlite.schema import Tables
from aiolibkv.backends.sqlite.signals import Signals
from aiolibkv.backends.sqlite.transaction import Transaction
from aiolibkv.backends.sqlite.watching import Tail
from aiolibkv.backends.sqlite.writer import Writer
from aiolibkv.config import Config
from aiolibkv.errors import CallNotSupportedError, RequestTimeoutError, StoreError
from aiolibkv.store import (
    Call,
    Driver,
    Feed,
    Guard,
    Lease,
    Lifetime,
    Listing,
    OwnCall,
    Removed,
    Step,
    Tasks,
    Unseen,
)
from aiolibkv.types import Capabilities, KVPair

_MAX_VALUE_BYTES = 16 * 1024 * 1024
"""A value is written twice, to its row and to the log: this much took 0.4 s on an ordinary disk, its reading 0.25 s."""

T = TypeVar("T")

_DURABILITIES = ("full", "normal")
_SESSION_BITS = 62


@dataclass(eq=False)
class SqliteLease(Lease):
    """A lease; one with a session has a row of its own, which is renewed, without one it is the key's expiry."""

    session: int | None = None


class SqliteDriver(Driver[SqliteLease]):
    """A store in one SQLite file, shared by the processes of one machine.

    Beside the database there is a directory ``<database>-shared`` with the files by which its users find each other.
    The directory of the database has to be on a local file system and writable.

    A write returns once it is on the disk (``durability="full"``), so that it survives a power failure; with
    ``durability="normal"`` it survives the death of the process at any moment, but a power failure or a crash of the
    operating system may undo the latest writes. Neither damages the database.

    Lifetimes count by the system's monotonic clock: it does not matter when the wall clock is set, and they stand
    still while the machine sleeps, as the holders of locks do. From one start of the machine to the next they count
    by the wall clock; on other systems than Linux they always do, so that setting it forward ends them early.

    On Linux a change is noticed by inotify; elsewhere it is looked for ten times a second.
    """

    name: ClassVar[str] = "sqlite"
    endpoint_is_path: ClassVar[bool] = True
    option_names: ClassVar[frozenset[str]] = frozenset({"durability"})
    capabilities = Capabilities(
        distributed=False,
        durable=True,
        survives_failover=False,
        linearizable_reads=True,
        exact_compare=True,
        atomic_list=True,
        atomic_delete_tree=True,
        every_change=True,
        lifetime_with_children=True,
        ttl_survives_client=True,
        min_ttl=0,
        max_value_bytes=_MAX_VALUE_BYTES,
        max_operations=20,
        max_commit_bytes=256 * 1024,
        ttl_overshoot=lambda _: 0.0,
    )

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        """Make a store.

        Args:
            endpoints: one, the path of the database; a relative one is below the current directory of this moment.
            config: settings; ``bucket`` is the table's name, the option ``durability`` is "full" (the default) or
                "normal".

        Raises:
            ValueError: not one path, a bucket that is no identifier, or an unknown durability.
        """
        super().__init__(endpoints, config)
        if len(self.endpoints) != 1 or not self.endpoints[0] or "\0" in self.endpoints[0]:
            raise ValueError("sqlite: exactly one endpoint, the path of the database")
        if self.endpoints[0] == ":memory:":
            raise ValueError("sqlite: a store in memory is the backend 'memory'")
        durability = self.config.options.get("durability", _DURABILITIES[0])
        if durability not in _DURABILITIES:
            raise ValueError(f"sqlite: durability is one of {', '.join(_DURABILITIES)}, not {durability!r}")
        self._durability = str(durability)
        self._tables = Tables(self.config.bucket)
        self._path_of_database = Path(self.endpoints[0]).absolute()
        self._tasks = Tasks()
        self._writing: Writer | None = None
        self._reading: Reader | None = None
        self._signals: Signals | None = None
        self._tail: Tail | None = None

    async def connect(self) -> None:
        files = self._open_files()
        clock = Clock()
        self._writing = Writer(files, self._tables, clock, self._durability, self._written)
        await self._writing.start(self.config.connection_timeout * 0.9)
        self._reading = reader = Reader(files, self._tables, clock)
        self._tail = tail = Tail(reader, files, lambda: self._in_time(self._expire))
        presence = Presence(reader, files, lambda owners: self._in_time(lambda call: self._end(call, owners)))
        self._signals = signals = Signals(files, tail.wake, presence.suspect)
        self._tasks.start(tail.run(signals))
        self._tasks.start(presence.run(signals))

    async def disconnect(self) -> None:
        await self._tasks.close()
        if self._tail is not None:
            await self._tail.close()
            self._tail = None
        if self._signals is not None:
            self._signals.close()
            self._signals = None
        reader, self._reading = self._reading, None
        writer, self._writing = self._writing, None
        if writer is not None:
            await writer.stop(reader.connections() if reader is not None else ())

    def read_at_once(self, path: str) -> KVPair | Unseen | None:
        assert self._reading is not None, "open"
        return self._reading.glance(path)

    async def get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
        return await self._reader.get(path)

    async def exists(self, call: Call, path: str, *, consistent: bool) -> bool:
        return await self._reader.exists(path)

    async def list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
        state = await self._reader.state(directory, tree=True, paged=call.extend)
        return Listing(state.pairs, state.exists)

    async def put(
        self,
        call: Call,
        path: str,
        value: bytes,
        *,
        expected: int | None,
        lease: SqliteLease | None,
        guard: Guard | None,
    ) -> int:
        ttl = session = None
        if lease is not None:
            ttl, session = (lease.ttl if lease.session is None else None), lease.session

        def put(transaction: Transaction) -> int:
            return transaction.put(path, value, expected=expected, ttl=ttl, session=session, guard=guard)

        return await self._writer.write(call, put, len(value))

    async def delete(self, call: Call, path: str, *, expected: int | None, guard: Guard | None) -> None:
        await self._writer.write(call, lambda transaction: transaction.delete(path, expected=expected, guard=guard))

    async def delete_tree(self, call: Call, directory: str, *, guard: Guard | None) -> Removed:
        hidden = self.hidden

        def delete(transaction: Transaction) -> Removed:
            return Removed(*transaction.delete_tree(directory, hidden, guard=guard))

        return await self._writer.write(call, delete)

    async def follow(self, feed: Feed) -> None:
        assert self._tail is not None, "open"
        assert self._signals is not None, "open"
        await self._tail.follow(feed, self._signals)

    def new_lease(self, lifetime: Lifetime) -> SqliteLease:
        session = secrets.randbits(_SESSION_BITS) + 1 if lifetime.keep_alive else None
        return SqliteLease(lifetime.ttl, session=session)

    async def grant(self, call: Call, lease: SqliteLease) -> None:
        session = lease.session
        if session is not None:
            own = self._writer.own
            await self._writer.write(call, lambda transaction: transaction.begin_session(session, own(), lease.ttl))

    async def renew(self, call: Call, lease: SqliteLease) -> bool:
        session = lease.session
        assert session is not None, "only keep_alive leases are renewed"
        return await self._writer.write(call, lambda transaction: transaction.renew_session(session, lease.ttl))

    async def revoke(self, call: Call, lease: SqliteLease) -> None:
        session = lease.session
        # A lease without a session is nothing but the expiry in its key's row: it ended when that was overwritten.
        if session is not None:
            await self._writer.write(call, lambda transaction: transaction.end_session(session))

    async def commit(
        self, call: Call, steps: Sequence[Step], *, lease: SqliteLease | None = None, guard: Guard | None = None
    ) -> Sequence[int]:
        raise CallNotSupportedError

    async def _in_time(self, work: Callable[[Call], Awaitable[T]]) -> T:
        """Do something of the store's own within request_timeout."""
        try:
            async with asyncio.timeout(self.config.request_timeout):
                return await work(OwnCall())
        except TimeoutError as error:
            raise RequestTimeoutError from error

    @property
    def _writer(self) -> Writer:
        assert self._writing is not None, "open"
        return self._writing

    @property
    def _reader(self) -> Reader:
        assert self._reading is not None, "open"
        return self._reading

    def _open_files(self) -> Files:
        path = Path(os.path.realpath(self._path_of_database))
        try:
            if path.is_dir():
                raise StoreError("the path of the database is a directory")
            return Files(path, self._tables.pairs_name)
        except OSError as error:
            raise meaning(error, path) from error

    def _written(self) -> None:
        if self._tail is not None and self._signals is not None and not self._signals.are_prompt:
            self._tail.wake()

    async def _expire(self, call: Call) -> None:
        # Every transaction deletes what has expired first.
        await self._writer.write(call, lambda _: None)

    async def _end(self, call: Call, owners: Sequence[str]) -> None:
        await self._writer.write(call, lambda transaction: transaction.end_sessions_of(owners))

"""The SQLite driver: writes run in a thread of their own, reads and watches in the event loop."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from aiolibkv.backends.sqlite.database import Database
from aiolibkv.backends.sqlite.failures import meaning
from aiolibkv.backends.sqlite.files import ReplacedError
from aiolibkv.backends.sqlite.schema import Tables
from aiolibkv.backends.sqlite.transaction import Transaction, token
from aiolibkv.config import Config
from aiolibkv.errors import (
    KeyExistsError,
    KeyNotFoundError,
    NotReachableError,
    RequestTimeoutError,
    StoreClosedError,
    StoreError,
)
from aiolibkv.store import (
    UNSEEN,
    Acquired,
    Call,
    Driver,
    Feed,
    Guard,
    Lease,
    LeaseLostError,
    Lifetime,
    Listing,
    Names,
    OwnCall,
    Page,
    Removal,
    Removed,
    Step,
    Tasks,
    Unseen,
    Write,
)
from aiolibkv.types import Capabilities, KVPair

_log = logging.getLogger("aiolibkv")

_MAX_VALUE_BYTES = 16 * 1024 * 1024
"""A value is written twice, to its row and to the log: this much took 0.2 s, during which other writers wait, and its
reading 0.03 s (the medians of seven, on two cores of a server)."""

_MAX_OPERATIONS = 1000
"""Of one commit: so many took 10 ms with 100 bytes each, 0.2 s with all that a commit may have (measured likewise)."""

T = TypeVar("T")

_DURABILITIES = ("full", "normal")
_SESSION_BITS = 62
_PATIENCE = 1.0
_PART = 0.5
"""Seconds, and at most what part of connection_timeout, to wait for the write lock. Then log and error have the reason,
and opening is tried again."""

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0


@dataclass(eq=False)
class SqliteLease(Lease):
    """A lease. With a session it has a row of its own, which is renewed; else it is the expiry in its key's row."""

    session: int | None = None
    database: Database | None = None
    """The database as it was open when the session was begun; once it was opened again, the session is lost."""


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
    keeps_line: ClassVar[bool] = True
    option_names: ClassVar[frozenset[str]] = frozenset({"durability"})
    capabilities: Capabilities = Capabilities(
        distributed=False,
        durable=True,
        survives_failover=False,
        min_ttl=0,
        max_value_bytes=_MAX_VALUE_BYTES,
        max_operations=_MAX_OPERATIONS,
        max_commit_bytes=_MAX_VALUE_BYTES,
        ttl_overshoot=lambda _: 0.0,
    )

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        """Make a driver.

        Args:
            endpoints: one, the path of the database; a relative one is below the current directory of this moment.
            config: settings; ``bucket`` is the table's name, the option ``durability`` is "full" (the default) or
                "normal".

        Raises:
            ValueError: not one path, a bucket that is no identifier, or an unknown durability.
        """
        super().__init__(endpoints, config)
        if len(self.endpoints) != 1 or not self.endpoints[0] or "\0" in self.endpoints[0]:
            raise ValueError("sqlite: there is exactly one endpoint, the path of the database")
        if self.endpoints[0] == ":memory:":
            raise ValueError("sqlite: for a store in memory use the backend 'memory'")
        durability = self.config.options.get("durability", _DURABILITIES[0])
        if durability not in _DURABILITIES:
            raise ValueError(f"sqlite: durability is one of {', '.join(_DURABILITIES)}, not {durability!r}")
        self._durability = str(durability)
        self._tables = Tables(self.config.bucket)
        self._path_of_database = Path(self.endpoints[0]).absolute()
        self._tasks = Tasks()
        self._database: Database | None = None
        self._unclosed: set[Database] = set()
        self._reason: StoreError = NotReachableError()

    async def connect(self) -> None:
        await self._open_database(create=True)

    async def disconnect(self) -> None:
        await self._tasks.close()
        self._database = None
        await self._close_databases(StoreClosedError())

    def read_at_once(self, path: str) -> KVPair | Unseen | None:
        return UNSEEN if self._database is None else self._database.reader.glance(path)

    async def get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
        return await self._current.reader.get(path)

    async def exists(self, call: Call, path: str, *, consistent: bool) -> bool:
        return await self._current.reader.exists(path)

    async def list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
        return await self._current.reader.pairs_below(directory, call.extend)

    async def get_many(self, call: Call, paths: Sequence[str], *, consistent: bool) -> Sequence[KVPair | None]:
        return await self._current.reader.pairs(paths)

    async def keys(self, call: Call, directory: str, *, consistent: bool) -> Names:
        return await self._current.reader.keys(directory, call.extend)

    async def children(self, call: Call, directory: str, *, consistent: bool) -> Names:
        return await self._current.reader.children(directory)

    async def page(self, call: Call, directory: str, after: str, limit: int) -> Page:
        return await self._current.reader.page(directory, after, limit)

    async def commit(
        self, call: Call, steps: Sequence[Step], *, lease: SqliteLease | None = None, guard: Guard | None = None
    ) -> Sequence[int]:
        database = self._current
        ttl, session = _lifetime(lease, database)
        size = sum([len(step.value) for step in steps if isinstance(step, Write)])
        return await database.writer.write(
            call, lambda transaction: transaction.carry_out(steps, ttl=ttl, session=session, guard=guard), size
        )

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
        database = self._current
        ttl, session = _lifetime(lease, database)
        return await database.writer.write(
            call,
            lambda transaction: transaction.put(path, value, expected, ttl=ttl, session=session, guard=guard),
            len(value),
        )

    async def acquire(self, call: Call, path: str, value: bytes, lease: SqliteLease, *, line: str | None) -> Acquired:
        database = self._current
        ttl, session = _lifetime(lease, database)

        def acquire(transaction: Transaction) -> Acquired:
            if line is not None and transaction.has_keys_below(line):
                raise KeyExistsError(key=line)
            index = transaction.put(path, value, 0, ttl=ttl, session=session, guard=None)
            return Acquired(index, token(index, session))

        return await database.writer.write(call, acquire, len(value))

    async def release(self, call: Call, path: str, index: int, place: str | None, lease: SqliteLease) -> None:
        places = [] if place is None else [Removal(place)]
        await self.commit(call, [Removal(path, index), *places])

    async def place_ahead(self, call: Call, line: str, place: str) -> str | None:
        try:
            return await self._current.reader.before(line, place)
        except KeyNotFoundError as error:
            raise LeaseLostError from error

    async def delete_tree(self, call: Call, directory: str, *, guard: Guard | None) -> Removed:
        hidden = self.hidden

        def delete(transaction: Transaction) -> Removed:
            return Removed(*transaction.delete_tree(directory, hidden, guard=guard))

        return await self._current.writer.write(call, delete)

    async def follow(self, feed: Feed) -> None:
        await self._current.follow(feed)

    async def follow_under(self, lease: SqliteLease, feed: Feed) -> None:
        if lease.database is None or lease.database is not self._database:
            raise LeaseLostError
        try:
            await lease.database.follow(feed)
        except ReplacedError as error:
            raise LeaseLostError from error

    def new_lease(self, lifetime: Lifetime) -> SqliteLease:
        session = secrets.randbits(_SESSION_BITS) + 1 if lifetime.keep_alive else None
        return SqliteLease(lifetime.ttl, session=session)

    async def grant(self, call: Call, lease: SqliteLease) -> None:
        session = lease.session
        if session is not None:
            database = self._current
            own = database.writer.own
            await database.writer.write(call, lambda transaction: transaction.begin_session(session, own(), lease.ttl))
            lease.database = database

    async def renew(self, call: Call, lease: SqliteLease) -> bool:
        session = lease.session
        assert session is not None, "only keep_alive leases are renewed"
        if lease.database is None or lease.database is not self._database:
            return False
        return await lease.database.writer.write(
            call, lambda transaction: transaction.renew_session(session, lease.ttl)
        )

    async def revoke(self, call: Call, lease: SqliteLease) -> None:
        session = lease.session
        # A lease without a session is nothing but the expiry in its key's row: it ended when that was overwritten.
        if session is not None:
            await self._current.writer.write(call, lambda transaction: transaction.end_session(session))

    async def _in_time(self, work: Callable[[Call], Awaitable[T]]) -> T:
        """Await work that no call asked for, for at most request_timeout."""
        try:
            async with asyncio.timeout(self.config.request_timeout):
                return await work(OwnCall())
        except TimeoutError as error:
            raise RequestTimeoutError from error

    @property
    def _current(self) -> Database:
        if self._database is None:
            raise type(self._reason)(self._reason.message)
        return self._database

    async def _open_database(self, *, create: bool, former: str = "") -> None:
        path = self._path_of_database
        try:
            database = Database(path, self._tables, self._durability, create=create, replaced=self._replaced)
        except OSError as error:
            raise meaning(error, path) from error
        self._unclosed.add(database)
        await database.open(
            min(_PATIENCE, self.config.connection_timeout * _PART),
            former,
            expire=lambda: self._in_time(self._expire),
            end=lambda owners: self._in_time(lambda call: self._end(call, owners)),
        )
        self._database = database
        self.connected(str(path))

    async def _close_databases(self, reason: StoreError) -> None:
        for database in list(self._unclosed):
            await database.close(reason)
            self._unclosed.discard(database)

    def _replaced(self, database: Database, error: ReplacedError) -> None:
        if database is self._database:
            _log.warning("%s: %s; the database is opened again, and locks are lost", self.name, error)
            self._database, self._reason = None, error
            self.disconnected(str(self._path_of_database), error.message)
            self._tasks.start(self._reopen(database.owner_name))

    async def _reopen(self, former: str) -> None:
        """Open the database again, with the files that are there now."""
        pause = _FIRST_PAUSE
        while True:
            await self._close_databases(self._reason)
            try:
                await self._open_database(create=False, former=former)
            except StoreError as failure:
                if not isinstance(failure.__cause__, FileNotFoundError) and failure.message != self._reason.message:
                    _log.warning("%s: the database cannot be opened again yet: %s", self.name, failure)
                    self._reason = NotReachableError(failure.message)
            else:
                break
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        _log.info("%s: the database %s is open again", self.name, self._path_of_database)

    async def _expire(self, call: Call) -> None:
        # Every transaction deletes what has expired first.
        await self._current.writer.write(call, lambda _: None)

    async def _end(self, call: Call, owners: Sequence[str]) -> None:
        await self._current.writer.write(call, lambda transaction: transaction.end_sessions_of(owners))


def _lifetime(lease: SqliteLease | None, database: Database) -> tuple[float | None, int | None]:
    """Return the ttl of the keys under a lease, or else their session."""
    if lease is None:
        return None, None
    if lease.session is None:
        return lease.ttl, None
    if lease.database is not database:
        raise LeaseLostError
    return None, lease.session

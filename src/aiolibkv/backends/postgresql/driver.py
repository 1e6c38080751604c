"""The PostgreSQL driver: each call as a statement for the database."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from aiolibkv.backends.postgresql.connection import Connections, Link
from aiolibkv.backends.postgresql.reading import Reader
from aiolibkv.backends.postgresql.schema import VERSION, Identifiers, Kind
from aiolibkv.backends.postgresql.statements import Statement
from aiolibkv.backends.postgresql.watching import Tail
from aiolibkv.backends.postgresql.writing import Instruction, Writer, new_id
from aiolibkv.config import Config
from aiolibkv.errors import AccessDeniedError, StoreError
from aiolibkv.store import (
    Acquired,
    Call,
    Driver,
    Endpoints,
    Feed,
    Guard,
    Lease,
    Lifetime,
    Listing,
    Names,
    OwnCall,
    Page,
    Removal,
    Removed,
    Step,
    Tasks,
    Write,
)
from aiolibkv.types import Capabilities, KVPair

_log = logging.getLogger("aiolibkv")

_PORT = 5432
_MAX_VALUE_BYTES = 4 * 1024 * 1024
_MAX_OPERATIONS = 1000
_MAX_COMMIT_BYTES = 8 * 1024 * 1024
_LONGEST_TTL = 100.0 * 365 * 86400
"""Seconds; the times of PostgreSQL reach much further."""

_CANNOT_BE_SENT = re.compile("[\0\ud800-\udfff]")
"""NUL, which ends a text in the protocol, and surrogates, which UTF-8 cannot encode."""

_THERE = Statement(
    """SELECT (to_regnamespace($1) IS NOT NULL)::integer::bigint,
    (SELECT count(*) FROM unnest($2::text[]) AS name
        WHERE NOT EXISTS (SELECT FROM pg_index WHERE indrelid = to_regclass(name) AND indisprimary))
    + (SELECT count(*) FROM unnest($3::text[]) AS name WHERE to_regproc(name) IS NULL)""",
    "ii",
)


@dataclass(eq=False)
class PostgresLease(Lease):
    """A lease. One that is renewed has a row of its own; the other is the expiry in its key's row.

    Attributes:
        id: of the row.
        maybe_granted: whether the database may know it.
    """

    id: int | None = None
    maybe_granted: bool = False


class PostgresDriver(Driver[PostgresLease]):
    """A store in a PostgreSQL database, version 13 or later.

    The options ``database``, ``schema`` ("public") and ``table`` ("aiolibkv") say where it is. What is missing there is
    created on first use; a role that may not do that is told what an administrator has to run. Of several endpoints the
    one that takes writes is used.

    Lifetimes count by the server's clock: setting it forward ends them early, setting it back prolongs them. Guards
    hold regardless. When another server takes over, or one was restarted, all leases begin anew.

    Writes that were acknowledged survive the loss of a server only when a commit waits for a standby
    (``synchronous_standby_names``); ``survives_failover`` says whether it does, once the store is open. Behind a pooler
    that gives each transaction another connection, changes are looked for some times a second instead of notified.
    """

    name: ClassVar[str] = "postgresql"
    path_option: ClassVar[str | None] = "database"
    option_names: ClassVar[frozenset[str]] = frozenset({"database", "schema", "table"})
    longest_ttl: ClassVar[float] = _LONGEST_TTL
    keeps_line: ClassVar[bool] = True
    capabilities: Capabilities = Capabilities(
        distributed=True,
        durable=True,
        survives_failover=False,
        min_ttl=0,
        max_value_bytes=_MAX_VALUE_BYTES,
        max_operations=_MAX_OPERATIONS,
        max_commit_bytes=_MAX_COMMIT_BYTES,
        ttl_overshoot=lambda _: 0.0,
    )

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        """Make a driver.

        Args:
            endpoints: "host:port" of the servers, or "unix:/run/postgresql/.s.PGSQL.5432"; the directory alone means
                the socket of port 5432.
            config: settings; the database is the user's own when not given.

        Raises:
            ValueError: an endpoint or option that cannot be used.
        """
        super().__init__(endpoints, config)
        options = {name: self.config.options.get(name) for name in self.option_names}
        for option, value in options.items():
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"postgresql: option {option!r} is a name, not {value!r}")
        names = {"database": options["database"], "username": self.config.username, "password": self.config.password}
        for what, text in names.items():
            if isinstance(text, str) and _CANNOT_BE_SENT.search(text):
                raise ValueError(f"postgresql: the {what} has a character that the protocol cannot carry")
        self._database = options["database"]
        self._schema = str(options["schema"] or "public")
        self._table = str(options["table"] or "aiolibkv")
        self._names = Identifiers(self._schema, self._table)
        self._endpoints = Endpoints(self.endpoints, _PORT, unix=True)
        self._tasks = Tasks()
        self._connections: Connections | None = None
        self._is_checked = self._is_open = False

    def hosts(self) -> str:
        return super().hosts() if self._connections is None else self._connections.server

    async def connect(self) -> None:
        database = None if self._database is None else str(self._database)
        self._connections = connections = Connections(
            self.config, self._endpoints, database, self._begin, self._missing, self.connected, self.disconnected
        )
        self._reader = Reader(self._names, connections, self._tasks)
        self._writer = Writer(self._names, connections, self._tasks)
        self._tail = Tail(self._names, connections, self._reader, self._tasks, self._writer.sweep)
        self._is_checked = self._is_open = False
        link = await connections.open()
        self._is_open = True
        connections.give(link)
        self.capabilities = dataclasses.replace(self.capabilities, survives_failover=link.server.is_replicated)

    async def disconnect(self) -> None:
        if self._connections is not None:
            await self._connections.close()
        await self._tasks.close()

    async def get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
        return await self._reader.get(path)

    async def get_many(self, call: Call, paths: Sequence[str], *, consistent: bool) -> Sequence[KVPair | None]:
        return await self._reader.get_many(paths)

    async def list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
        return await self._reader.list(directory, paged=call.extend)

    async def keys(self, call: Call, directory: str, *, consistent: bool) -> Names:
        return await self._reader.keys(directory)

    async def children(self, call: Call, directory: str, *, consistent: bool) -> Names:
        return await self._reader.children(directory)

    async def page(self, call: Call, directory: str, after: str, limit: int) -> Page:
        return await self._reader.page(directory, after, limit)

    async def commit(
        self,
        call: Call,
        steps: Sequence[Step],
        *,
        lease: PostgresLease | None = None,
        guard: Guard | None = None,
    ) -> Sequence[int]:
        conditions = [] if guard is None else [Instruction(Kind.GUARD, guard.path, number=guard.token)]
        changes = []
        for step in steps:
            conditions += _conditions(step)
            if isinstance(step, Write):
                changes.append(_write(step.path, step.value, lease))
            elif isinstance(step, Removal):
                changes.append(Instruction(Kind.DELETE, step.path))
        index = await self._writer.write(call, [*conditions, *_alive(lease), *changes])
        return [index if isinstance(step, Write) else 0 for step in steps]

    async def delete_tree(self, call: Call, directory: str, *, guard: Guard | None) -> Removed:
        conditions = [] if guard is None else [Instruction(Kind.GUARD, guard.path, number=guard.token)]
        deletion = Instruction(Kind.DELETE_TREE, directory, self.hidden.encode())
        number = await self._writer.write(call, [*conditions, deletion])
        exists = not number and bool(directory) and await self._reader.get(directory) is not None
        return Removed(number, exists)

    async def acquire(self, call: Call, path: str, value: bytes, lease: PostgresLease, *, line: str | None) -> Acquired:
        conditions = [
            Instruction(Kind.ABSENT, path),
            *([] if line is None else [Instruction(Kind.EMPTY, line)]),
            *_alive(lease),
        ]
        index = await self._writer.write(call, [*conditions, _write(path, value, lease)])
        return Acquired(index, index)

    async def release(self, call: Call, path: str, index: int, place: str | None, lease: PostgresLease) -> None:
        removals = [Removal(path, index), *([] if place is None else [Removal(place)])]
        await self.commit(call, removals)

    async def place_ahead(self, call: Call, line: str, place: str) -> str | None:
        return await self._reader.place_ahead(line, place)

    async def follow(self, feed: Feed) -> None:
        await self._tail.follow(feed)

    def new_lease(self, lifetime: Lifetime) -> PostgresLease:
        return PostgresLease(lifetime.ttl, id=new_id() if lifetime.keep_alive else None)

    async def grant(self, call: Call, lease: PostgresLease) -> None:
        if lease.id is None:
            return
        granting, before = OwnCall(), lease.maybe_granted
        lease.maybe_granted = True
        try:
            await self._writer.write(granting, [Instruction(Kind.BEGIN, number=lease.id, seconds=lease.ttl)])
        finally:
            lease.maybe_granted = before or granting.maybe_applied

    async def renew(self, call: Call, lease: PostgresLease) -> bool:
        assert lease.id is not None, "only keep_alive leases are renewed"
        return await self._writer.renew(lease.id)

    async def revoke(self, call: Call, lease: PostgresLease) -> None:
        # The expiry of a key without a lease ended when the key was overwritten.
        if lease.id is not None and lease.maybe_granted:
            await self._writer.write(call, [Instruction(Kind.END, number=lease.id)])

    async def _begin(self, link: Link) -> None:
        """Prepare a new connection, and create what is missing in the database."""
        if not self._is_checked:
            await self._check(link)
        await self._writer.prepare(link)
        await self._reader.prepare(link)

    def _missing(self) -> None:
        self._is_checked = False

    async def _check(self, link: Link) -> None:
        names = self._names
        ((has_schema, missing),) = await link.rows(_THERE, names.schema, names.tables, names.functions)
        versions = () if missing else await self._versions(link)
        if len(versions) != 1:
            await self._create(link, has_schema=bool(has_schema))
            if self._is_open:
                _log.warning(
                    "%s: tables or functions of the store were lost or damaged and are created again", self.name
                )
            versions = await self._versions(link)
        if versions[0][0] != VERSION:
            raise StoreError(f"the store has format {versions[0][0]}; this version of the library knows {VERSION}")
        self._is_checked = True

    async def _versions(self, link: Link) -> Sequence[tuple[int]]:
        return await link.rows(Statement(f"SELECT version::bigint FROM {self._names.state}", "i"))  # noqa: S608 - a checked name

    async def _create(self, link: Link, *, has_schema: bool) -> None:
        names = self._names
        try:
            await link.script(("" if has_schema else f"CREATE SCHEMA {names.schema};\n") + names.creation())
        except AccessDeniedError as error:
            # In an open store this can heal: somebody may be about to restore the tables.
            raise (StoreError if self._is_open else AccessDeniedError)(
                f"the store's tables are not in schema {self._schema!r}, and this role may not create them; an"
                f" administrator has to run what 'aiolibkv postgresql-schema' prints: {error.message}"
            ) from error


def _conditions(step: Step) -> Sequence[Instruction]:
    expected = step.expected
    must_exist = isinstance(step, Removal) or (expected is None and not isinstance(step, Write))
    conditions = [Instruction(Kind.PRESENT, step.path)] if must_exist else []
    if expected == 0:
        conditions.append(Instruction(Kind.ABSENT, step.path))
    elif expected is not None:
        conditions.append(Instruction(Kind.AT, step.path, number=expected))
    return conditions


def _alive(lease: PostgresLease | None) -> Sequence[Instruction]:
    return [] if lease is None or lease.id is None else [Instruction(Kind.LEASE, number=lease.id)]


def _write(path: str, value: bytes, lease: PostgresLease | None) -> Instruction:
    if lease is None:
        return Instruction(Kind.WRITE, path, value)
    return Instruction(Kind.WRITE, path, value, lease.id, lease.ttl if lease.id is None else None)

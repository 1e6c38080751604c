"""The tables of a bucket, and opening a database that has them."""

# ruff: noqa: S608 - what is put into statements are only the names of tables, made of a checked identifier

from __future__ import annotations

import re
import sqlite3
import sys
from pathlib import Path

from aiolibkv.errors import StoreError

APPLICATION = 0x616C6B76  # "alkv"
VERSION = 1

CLOCK = '".clock"'
"""The quoted name of the table with what the stores of all buckets know of their clock; no bucket's name has a dot."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_BUSY_TIME = 0.2
_STATEMENTS = 64
_KEPT_LOG = 4 * 1024 * 1024
"""Bytes of -wal that SQLite keeps when it begins it anew: about what it collects between two checkpoints."""


class Tables:
    """The quoted names of a bucket's tables.

    Attributes:
        pairs: key, rev (its index), expires, session, value.
        log: one row for each key changed: rev, last (the rev of the last row of the same modification), key, value
            (NULL: deleted). The revs are without a gap from the oldest kept to the newest, and the newest is the
            bucket's index.
        sessions: id, owner (the name of the file that it keeps locked), expires. A key with a session goes with it.
        pairs_name, log_name, sessions_name: the same, unquoted.
        ends_name: the index of the ends of sessions, unquoted.

    ``expires`` is a time of the database's ``Clock``.
    """

    def __init__(self, bucket: str) -> None:
        """Derive the names.

        Raises:
            ValueError: the bucket is no identifier of letters, digits and "_", or SQLite's own.
        """
        if not _NAME.fullmatch(bucket) or bucket.lower().startswith("sqlite_"):
            raise ValueError(f"sqlite: a bucket is an identifier of at most 64 letters, digits and _, not {bucket!r}")
        self.pairs_name = bucket
        # A dot cannot be in a bucket's name, so these are never another bucket.
        self.log_name: str = f"{bucket}.log"
        self.sessions_name: str = f"{bucket}.sessions"
        self.ends_name: str = f"{bucket}.by_end"
        self.pairs: str = f'"{bucket}"'
        self.log: str = f'"{self.log_name}"'
        self.sessions: str = f'"{self.sessions_name}"'

    def live(self) -> str:
        """Return the condition that a row of pairs has not expired, with the parameter ``:now``."""
        return (
            "(expires IS NULL OR expires > :now) AND (session IS NULL OR EXISTS "
            f"(SELECT 1 FROM {self.sessions} WHERE id = session AND expires > :now))"
        )

    def creation(self) -> list[str]:
        """Return the statements that create what is missing."""
        bucket = self.pairs_name
        return [
            f"""CREATE TABLE IF NOT EXISTS {self.pairs} (
                key TEXT NOT NULL PRIMARY KEY, rev INTEGER NOT NULL, expires REAL, session INTEGER, value BLOB NOT NULL
            )""",
            f'CREATE INDEX IF NOT EXISTS "{bucket}.by_expires" ON {self.pairs} (expires) WHERE expires IS NOT NULL',
            f'CREATE INDEX IF NOT EXISTS "{bucket}.by_session" ON {self.pairs} (session) WHERE session IS NOT NULL',
            f"""CREATE TABLE IF NOT EXISTS {self.log} (
                rev INTEGER PRIMARY KEY, last INTEGER NOT NULL, key TEXT NOT NULL, value BLOB
            )""",
            f"""CREATE TABLE IF NOT EXISTS {self.sessions} (
                id INTEGER PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL
            )""",
            f'CREATE INDEX IF NOT EXISTS "{self.ends_name}" ON {self.sessions} (expires)',
            f"CREATE TABLE IF NOT EXISTS {CLOCK} (id INTEGER PRIMARY KEY, boot TEXT NOT NULL, zero REAL NOT NULL)",
        ]


def open_for_writing(path: Path, tables: Tables, durability: str) -> sqlite3.Connection:
    """Open a database and create what is missing; the write lock must be held.

    Raises:
        sqlite3.Error: SQLite cannot.
        StoreError: it is another application's, of a newer version, or on a file system without shared memory.
    """
    connection = _connect(path, _BUSY_TIME)
    try:
        _check(connection)
        _share(connection)
        connection.execute(f"PRAGMA synchronous = {durability}")
        connection.execute(f"PRAGMA journal_size_limit = {_KEPT_LOG}")
        if sys.platform == "darwin":
            connection.execute("PRAGMA fullfsync = 1")
        if not _complete(connection, tables):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            for statement in tables.creation():
                connection.execute(statement)
            connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open a connection that writes nothing and waits for nobody.

    Raises:
        sqlite3.Error: SQLite cannot.
    """
    connection = _connect(path, 0)
    connection.execute("PRAGMA query_only = 1")
    return connection


def _connect(path: Path, timeout: float) -> sqlite3.Connection:
    # Used by one thread at a time, but closed by the writer's, under the write lock.
    connection = sqlite3.connect(
        path, timeout=timeout, isolation_level=None, check_same_thread=False, cached_statements=_STATEMENTS
    )
    connection.execute("PRAGMA mmap_size = 0")
    return connection


def _check(connection: sqlite3.Connection) -> None:
    if _number(connection, "application_id") != APPLICATION:
        if connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is not None:
            raise StoreError("the database belongs to another application")
    elif (version := _number(connection, "user_version")) > VERSION:
        raise StoreError(f"the database has format {version}; this version of the library reads up to {VERSION}")


def _share(connection: sqlite3.Connection) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(f"SQLite cannot share a database on this file system (journal mode {mode!r})")


def _complete(connection: sqlite3.Connection, tables: Tables) -> bool:
    names = (tables.pairs_name, tables.log_name, tables.sessions_name, tables.ends_name, CLOCK.strip('"'))
    found = connection.execute(
        f"SELECT count(*) FROM sqlite_schema WHERE lower(name) IN ({', '.join(['lower(?)'] * len(names))})", names
    )
    return int(found.fetchone()[0]) == len(names)


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])

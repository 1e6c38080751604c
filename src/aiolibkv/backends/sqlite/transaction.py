"""What a write transaction can do to a bucket. Only SQL: the writer says when, and under which locks."""

# ruff: noqa: S608 - what is put into statements are only the names of tables, made of a checked identifier

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from aiolibkv.backends.sqlite.schema import Tables
from aiolibkv.errors import KeyExistsError, KeyModifiedError, KeyNotFoundError, LockLostError
from aiolibkv.keys import below as bounds
from aiolibkv.store import Guard, LeaseLost

KEPT_ROWS = 10_000
"""Rows of the log that are kept for watches that lag behind; those that lag further list again."""

KEPT_BYTES = 64 * 1024 * 1024
"""Bytes of values in the log that are kept."""

_EXPIRED_AT_ONCE = 1000
_LAST_KEY = "\U0010ffff"
"""Above every key: none has a character outside the Basic Multilingual Plane."""


class Transaction:
    """One write transaction after the other, on one connection.

    A step that is refused has written nothing, so that the steps of other callers in the same transaction stand.
    """

    def __init__(self, connection: sqlite3.Connection, tables: Tables) -> None:
        self._connection = connection
        self._now = 0.0
        self._rev = 0
        self._began_at = 0
        self._logged_rows = 0
        self._logged_bytes = 0
        pairs, log, sessions, live = tables.pairs, tables.log, tables.sessions, tables.live()
        self._newest = f"SELECT ifnull(max(rev), 0) FROM {log}"
        self._current = f"SELECT rev FROM {pairs} WHERE key = :key AND {live}"
        self._write = (
            f"INSERT INTO {pairs} (key, rev, expires, session, value) VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO"
            " UPDATE SET rev = excluded.rev, expires = excluded.expires, session = excluded.session,"
            " value = excluded.value"
        )
        self._append = f"INSERT INTO {log} (rev, last, key, value) VALUES (?, ?, ?, ?)"
        self._erase = f"DELETE FROM {pairs} WHERE key = ?"
        self._due_keys = f"SELECT key FROM {pairs} WHERE expires <= ? ORDER BY expires LIMIT {_EXPIRED_AT_ONCE}"
        self._due_sessions = f"SELECT id FROM {sessions} WHERE expires <= ?"
        self._session = f"SELECT 1 FROM {sessions} WHERE id = ? AND expires > ?"
        self._begin_session = f"INSERT OR REPLACE INTO {sessions} (id, owner, expires) VALUES (?, ?, ?)"
        self._renew_session = f"UPDATE {sessions} SET expires = ? WHERE id = ? AND expires > ?"
        self._end_session = f"DELETE FROM {sessions} WHERE id = ?"
        self._of_owner = f"SELECT id FROM {sessions} WHERE owner = ?"
        self._of_session = f"{pairs} WHERE session = :session"
        self._of_tree = f"{pairs} WHERE key > :first AND key < :end AND NOT (key > :hidden AND key < :hidden_end)"
        self._log_deletion = (
            f"INSERT INTO {log} (rev, last, key, value)"
            " SELECT :rev + row_number() OVER (ORDER BY key), :last, key, NULL FROM "
        )
        self._sizes = f"SELECT rev, ifnull(length(value), 0) FROM {log} ORDER BY rev DESC"
        self._floor = f"SELECT rev FROM {log} WHERE rev <= ? AND rev = last AND rev < ? ORDER BY rev DESC LIMIT 1"
        self._compact = f"DELETE FROM {log} WHERE rev <= ?"
        self._live = live

    def begin(self) -> None:
        """Begin; ``expire`` comes before all else."""
        self._connection.execute("BEGIN IMMEDIATE")
        self._began_at = self._rev = self._connection.execute(self._newest).fetchone()[0]

    def expire(self, now: float) -> None:
        """Delete what has expired.

        Args:
            now: the clock's time, for all steps.
        """
        execute = self._connection.execute
        self._now = now
        for (path,) in execute(self._due_keys, (now,)).fetchall():
            self._erase_key(path)
        for (session,) in execute(self._due_sessions, (now,)).fetchall():
            self.end_session(session)

    def commit(self) -> bool:
        """Commit, having compacted the log if it is time; tell whether keys have changed."""
        changed = self._rev != self._began_at
        self._logged_rows += self._rev - self._began_at
        if self._logged_rows * 10 >= KEPT_ROWS:
            self._logged_rows = 0
            self._shorten_log(self._rev - KEPT_ROWS)
        if self._logged_bytes * 4 >= KEPT_BYTES:
            self._logged_bytes = 0
            self._shorten_log(self._rev_at(KEPT_BYTES))
        self._connection.execute("COMMIT")
        return changed

    def roll_back(self) -> None:
        """Undo everything since ``begin``, unless SQLite did already."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def put(
        self,
        path: str,
        value: bytes,
        *,
        expected: int | None,
        ttl: float | None,
        session: int | None,
        guard: Guard | None,
    ) -> int:
        """Write a pair if the conditions hold, and return its index; see ``Driver.put``."""
        self._check(guard)
        if expected is not None:
            current = self._index(path)
            if expected == 0 and current is not None:
                raise KeyExistsError
            if expected and current != expected:
                raise KeyModifiedError
        execute = self._connection.execute
        if session is not None and execute(self._session, (session, self._now)).fetchone() is None:
            raise LeaseLost
        self._rev = rev = self._rev + 1
        execute(self._write, (path, rev, None if ttl is None else self._now + ttl, session, value))
        execute(self._append, (rev, rev, path, value))
        self._logged_bytes += len(value)
        return rev

    def delete(self, path: str, *, expected: int | None, guard: Guard | None) -> None:
        """Delete a pair if the conditions hold; see ``Driver.delete``."""
        self._check(guard)
        current = self._index(path)
        if current is None:
            raise KeyNotFoundError
        if expected is not None and current != expected:
            raise KeyModifiedError
        self._erase_key(path)

    def delete_tree(self, directory: str, hidden: str, *, guard: Guard | None) -> tuple[int, bool]:
        """Delete what is below a directory but not below the hidden one; see ``Driver.delete_tree``."""
        self._check(guard)
        first, end = bounds(directory)
        hidden_first, hidden_end = bounds(hidden)
        deleted = self._erase_all(
            f"{self._of_tree} AND {self._live}",
            {
                "first": first,
                "end": end or _LAST_KEY,
                "hidden": hidden_first,
                "hidden_end": hidden_end,
                "now": self._now,
            },
        )
        return deleted, not deleted and self._index(directory) is not None

    def begin_session(self, session: int, owner: str, ttl: float) -> None:
        """Begin a session of an owner, or begin it anew."""
        self._connection.execute(self._begin_session, (session, owner, self._now + ttl))

    def renew_session(self, session: int, ttl: float) -> bool:
        """Renew a session; False when it is over."""
        return self._connection.execute(self._renew_session, (self._now + ttl, session, self._now)).rowcount > 0

    def end_session(self, session: int) -> None:
        """End a session, with its keys, if it is there."""
        self._erase_all(self._of_session, {"session": session})
        self._connection.execute(self._end_session, (session,))

    def end_sessions_of(self, owners: Iterable[str]) -> None:
        """End all sessions of owners."""
        for owner in owners:
            for (session,) in self._connection.execute(self._of_owner, (owner,)).fetchall():
                self.end_session(session)

    def has_sessions(self, owner: str) -> bool:
        """Tell whether an owner has a session."""
        return self._connection.execute(self._of_owner, (owner,)).fetchone() is not None

    def _check(self, guard: Guard | None) -> None:
        if guard is not None and self._index(guard.path) != guard.token:
            raise LockLostError

    def _index(self, path: str) -> int | None:
        row = self._connection.execute(self._current, {"key": path, "now": self._now}).fetchone()
        return None if row is None else int(row[0])

    def _erase_key(self, path: str) -> None:
        self._rev += 1
        self._connection.execute(self._erase, (path,))
        self._connection.execute(self._append, (self._rev, self._rev, path, None))

    def _erase_all(self, rows: str, parameters: dict[str, object]) -> int:
        """Delete rows of the pairs as one modification, which takes as many revs as it has rows."""
        execute = self._connection.execute
        count = int(execute(f"SELECT count(*) FROM {rows}", parameters).fetchone()[0])
        if count:
            last = self._rev + count
            execute(self._log_deletion + rows, parameters | {"rev": self._rev, "last": last})
            execute(f"DELETE FROM {rows}", parameters)
            self._rev = last
        return count

    def _rev_at(self, size: int) -> int:
        """Return the newest rev after which the log has so many bytes of values, 0 when it has less."""
        for rev, length in self._connection.execute(self._sizes):
            size -= length
            if size <= 0:
                return int(rev) - 1
        return 0

    def _shorten_log(self, rev: int) -> None:
        """Drop what is older than a rev, but neither a part of a modification nor the newest one."""
        row = self._connection.execute(self._floor, (rev, self._rev)).fetchone()
        if row is not None:
            self._connection.execute(self._compact, row)

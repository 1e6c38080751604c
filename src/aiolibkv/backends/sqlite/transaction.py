"""What a write transaction can do to a bucket. Only SQL: the writer says when, and under which locks."""

# ruff: noqa: S608 - what is put into statements are only the names of tables, made of a checked identifier

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterable, Sequence

from aiolibkv.backends.sqlite.schema import Tables
from aiolibkv.errors import KeyExistsError, KeyModifiedError, KeyNotFoundError, LockLostError
from aiolibkv.keys import below as bounds
from aiolibkv.store import Condition, Guard, LeaseLostError, Removal, Step, Write

KEPT_ROWS = 10_000
"""Rows of the log that are kept for watches that lag behind; those that lag further list again."""

KEPT_BYTES = 64 * 1024 * 1024
"""Bytes of values in the log that are kept."""

_EXPIRED_AT_ONCE = 1000
_LAST_KEY = "\U0010ffff"
"""Above every key: none has a character outside the Basic Multilingual Plane."""

_LEAP = 2**40
"""How far a new history begins above the old one, at most: by chance, so that no two have the same revs."""


def token(rev: int, session: int | None) -> int:
    """Return what guards of a lock compare: no other acquisition has it, not even one of another history."""
    return (session or 0) << 64 | rev


class Transaction:
    """One write transaction after the other, on one connection.

    A step that is refused has written nothing, so that the steps of other callers in the same transaction stand.
    """

    def __init__(self, connection: sqlite3.Connection, tables: Tables) -> None:
        self._connection = connection
        # A cursor that is used again: the statements of each write leave nothing open.
        self._execute = connection.cursor().execute
        self._now = 0.0
        self._rev = self._seen = 0
        self._began_at = 0
        self._rows = 0
        self._logged_rows = 0
        self._logged_bytes = 0
        pairs, log, sessions, live = tables.pairs, tables.log, tables.sessions, tables.live()
        self._head = (
            f"SELECT (SELECT ifnull(max(rev), 0) FROM {log}), EXISTS (SELECT 1 FROM {pairs} WHERE expires <= ?)"
            f" OR EXISTS (SELECT 1 FROM {sessions} WHERE expires <= ?)"
        )
        self._current = f"SELECT rev, session FROM {pairs} WHERE key = :key AND {live}"
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
        self._of_tree = (
            f"{pairs} WHERE key > :first AND key < :end AND key <> :own AND NOT (key > :hidden AND key < :hidden_end)"
        )
        self._any_below = f"SELECT 1 FROM {pairs} WHERE key > :first AND key < :end AND {live} LIMIT 1"
        self._log_deletion = (
            f"INSERT INTO {log} (rev, last, key, value)"
            " SELECT :rev + row_number() OVER (ORDER BY key), :last, key, NULL FROM "
        )
        self._sizes = f"SELECT rev, ifnull(length(value), 0) FROM {log} ORDER BY rev DESC"
        self._floor = f"SELECT rev FROM {log} WHERE rev <= ? AND rev = last AND rev < ? ORDER BY rev DESC LIMIT 1"
        self._drop_log = f"DELETE FROM {log}"
        self._compact = f"DELETE FROM {log} WHERE rev <= ?"
        self._live = live

    def begin(self) -> None:
        """Begin; ``look`` comes before all else."""
        self._connection.execute("BEGIN IMMEDIATE")

    def look(self, now: float, lost_rev: Callable[[int], int | None]) -> None:
        """Find out where the log ends, and delete what has expired.

        Args:
            now: the clock's time, for all steps.
            lost_rev: tells whether a log with this end is a restored one, and to which rev it had come before: then a
                new history begins.
        """
        execute = self._connection.execute
        self._now = now
        self._rev, is_due = execute(self._head, (now, now)).fetchone()
        self._began_at, self._rows = self._rev, 0
        lost = lost_rev(self._rev)
        if lost is not None or self._rev < self._seen:
            self._begin_history(max(lost or 0, self._seen))
        else:
            self._seen = self._rev
        if is_due:
            for (path,) in execute(self._due_keys, (now,)).fetchall():
                self._erase_key(path)
            for (session,) in execute(self._due_sessions, (now,)).fetchall():
                self.end_session(session)

    @property
    def rev(self) -> int:
        """Return the newest rev."""
        return self._rev

    @property
    def has_changed(self) -> bool:
        """Tell whether keys have changed."""
        return self._rev != self._began_at

    def commit(self) -> None:
        """Commit, having compacted the log if it is time."""
        self._logged_rows += self._rows
        if self._logged_rows * 10 >= KEPT_ROWS:
            self._logged_rows = 0
            self._shorten_log(self._rev - KEPT_ROWS)
        if self._logged_bytes * 4 >= KEPT_BYTES:
            self._logged_bytes = 0
            self._shorten_log(self._rev_at(KEPT_BYTES))
        self._connection.execute("COMMIT")
        self._seen = self._rev

    def roll_back(self) -> None:
        """Undo everything since ``begin``, unless SQLite did already."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def carry_out(
        self,
        steps: Sequence[Step],
        *,
        ttl: float | None = None,
        session: int | None = None,
        guard: Guard | None = None,
    ) -> Sequence[int]:
        """Carry out all steps if all conditions hold; see ``Driver.commit``.

        Args:
            steps: each of another key; together they are one change.
            ttl: seconds that the keys written live, unless they have a session.
            session: with which they go.
            guard: checked first.
        """
        self._check(guard)
        for step in steps:
            self._check_step(step)
        self._check_session(session)
        expires = None if ttl is None else self._now + ttl
        rev = self._rev
        last = rev + len([step for step in steps if not isinstance(step, Condition)])
        indexes = []
        for step in steps:
            if isinstance(step, Write):
                rev += 1
                self._set(step.path, step.value, rev, last, expires, session)
                indexes.append(rev)
                continue
            if isinstance(step, Removal):
                rev += 1
                self._execute(self._erase, (step.path,))
                self._execute(self._append, (rev, last, step.path, None))
            indexes.append(0)
        self._rows += last - self._rev
        self._rev = last
        return indexes

    def put(
        self,
        path: str,
        value: bytes,
        expected: int | None,
        *,
        ttl: float | None,
        session: int | None,
        guard: Guard | None,
    ) -> int:
        """Carry out one Write, as ``carry_out`` would, and return its index."""
        self._check(guard)
        if expected is not None:
            self._check_step(Write(path, value, expected))
        self._check_session(session)
        rev = self._rev + 1
        self._set(path, value, rev, rev, None if ttl is None else self._now + ttl, session)
        self._rows += 1
        self._rev = rev
        return rev

    def has_keys_below(self, directory: str) -> bool:
        """Tell whether there are keys below a directory."""
        first, end = bounds(directory)
        row = self._connection.execute(self._any_below, {"first": first, "end": end, "now": self._now}).fetchone()
        return row is not None

    def delete_tree(self, directory: str, hidden: str, *, guard: Guard | None) -> tuple[int, bool]:
        """Delete what is below a directory, but not the hidden one and what is below it; see ``Driver.delete_tree``."""
        self._check(guard)
        first, end = bounds(directory)
        hidden_first, hidden_end = bounds(hidden)
        deleted = self._erase_all(
            f"{self._of_tree} AND {self._live}",
            {
                "first": first,
                "end": end or _LAST_KEY,
                "own": hidden,
                "hidden": hidden_first,
                "hidden_end": hidden_end,
                "now": self._now,
            },
        )
        return deleted, not deleted and self._row(directory) is not None

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
        if guard is not None:
            row = self._row(guard.path)
            if row is None or token(*row) != guard.token:
                raise LockLostError

    def _check_session(self, session: int | None) -> None:
        if session is not None and self._execute(self._session, (session, self._now)).fetchone() is None:
            raise LeaseLostError

    def _check_step(self, step: Step) -> None:
        expected = step.expected
        if expected is None and isinstance(step, Write):
            return
        row = self._row(step.path)
        if row is None:
            if expected is None or isinstance(step, Removal):
                raise KeyNotFoundError(key=step.path)
            if expected:
                raise KeyModifiedError(key=step.path)
        elif expected == 0:
            raise KeyExistsError(key=step.path)
        elif expected is not None and expected != row[0]:
            raise KeyModifiedError(key=step.path)

    def _row(self, path: str) -> tuple[int, int | None] | None:
        row: tuple[int, int | None] | None = self._connection.execute(
            self._current, {"key": path, "now": self._now}
        ).fetchone()
        return row

    def _begin_history(self, lost: int) -> None:
        """Begin the log anew, so far above all that was that no index of a lost history comes again."""
        self._rev = max(self._rev, lost) + 1 + secrets.randbelow(_LEAP)
        self._rows += 1
        self._connection.execute(self._drop_log)
        self._connection.execute(self._append, (self._rev, self._rev, "", None))

    def _set(self, path: str, value: bytes, rev: int, last: int, expires: float | None, session: int | None) -> None:
        self._execute(self._write, (path, rev, expires, session, value))
        self._execute(self._append, (rev, last, path, value))
        self._logged_bytes += len(value)

    def _erase_key(self, path: str) -> None:
        self._rev += 1
        self._rows += 1
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
            self._rows += count
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

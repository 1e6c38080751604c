"""Keeping ``-wal`` small: SQLite begins it anew only at a moment in which nobody reads from it.

Where one list begins before the other ends there is no such moment. Then whoever writes shuts a gate, a lock beside the
database, and the stores of all processes wait a little before they begin to read more.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from aiolibkv.backends.sqlite.locks import LockFile

LARGE = 16 * 1024 * 1024
"""Bytes of -wal from which on it is emptied as soon as that can be."""

LONGEST_PAUSE = 1.0
"""Seconds that the gate is shut at most, and that anybody heeds it."""

_INTERVAL = 0.01
"""Seconds between two attempts while nothing is written."""


class Gate:
    """Shut while nobody is to begin reading."""

    def __init__(self, directory: Path, like: os.stat_result) -> None:
        """Open the lock's file twice: to shut the gate, and to look at it.

        Raises:
            OSError: it cannot be opened.
        """
        self._own = LockFile(directory / "gate", like)
        try:
            self._look = LockFile(directory / "gate", like)
        except BaseException:
            self._own.close()
            raise

    def shut(self) -> None:
        """Let nobody begin to read."""
        self._own.try_lock()

    def open(self) -> None:
        """Let them begin again."""
        self._own.unlock()

    def is_shut(self) -> bool:
        """Tell whether anybody has shut the gate."""
        if not self._look.try_lock(is_shared=True):
            return True
        self._look.unlock()
        return False

    def close(self) -> None:
        """Close the files, which opens the gate."""
        self._own.close()
        self._look.close()


class Shrinking:
    """Empties -wal when it is large; for the thread that writes, under the write lock."""

    def __init__(self, connection: sqlite3.Connection, gate: Gate) -> None:
        self._connection = connection
        self._gate = gate
        self._limit = LARGE
        self._shut_since: float | None = None

    @property
    def interval(self) -> float | None:
        """Seconds until ``look`` is to be called though nothing was written; None for ever."""
        return None if self._shut_since is None else _INTERVAL

    def look(self, size: int) -> None:
        """Empty -wal if it is large and nobody reads from it, or see to it that soon nobody does.

        Args:
            size: its bytes.
        """
        if self._shut_since is None and size < self._limit:
            return
        now = time.monotonic()
        if self._is_emptied():
            self._end(LARGE)
        elif self._shut_since is None:
            self._shut_since = now
            self._gate.shut()
        elif now - self._shut_since > LONGEST_PAUSE:
            # Somebody reads something very long: it is tried again when there is as much again.
            self._end(2 * size)

    def _end(self, limit: int) -> None:
        self._limit = limit
        if self._shut_since is not None:
            self._shut_since = None
            self._gate.open()

    def _is_emptied(self) -> bool:
        execute = self._connection.execute
        patience = execute("PRAGMA busy_timeout").fetchone()[0]
        execute("PRAGMA busy_timeout = 0")
        try:
            return bool(execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)
        except sqlite3.Error:
            return False
        finally:
            execute(f"PRAGMA busy_timeout = {patience}")

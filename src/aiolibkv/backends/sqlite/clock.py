"""The clock by which lifetimes end: one for all processes of the machine, and one that nobody sets."""

from __future__ import annotations

import re
import sqlite3
import time
from pathlib import Path

from aiolibkv.backends.sqlite.schema import CLOCK

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_OFFSETS = Path("/proc/self/timens_offsets")

_FIND = f"SELECT zero FROM {CLOCK} WHERE boot = ?"  # noqa: S608 - a constant
_SET = f"INSERT OR REPLACE INTO {CLOCK} (id, boot, zero) VALUES (1, ?, ?)"  # noqa: S608 - a constant


class Clock:
    """The system's monotonic clock, by which the holders of locks count too.

    Since it begins anew when the machine starts, the wall clock's time of its beginning is added. The first store that
    opens the database after a start looks at the wall clock for that; the others find it in the database, and what
    the wall clock does then concerns nobody.

    Where the system does not tell one start from another, this is the wall clock.
    """

    def __init__(self) -> None:
        self._zero: float | None = None

    def set(self, connection: sqlite3.Connection) -> None:
        """Agree with the other stores; the write lock must be held.

        Raises:
            sqlite3.Error: SQLite cannot.
        """
        try:
            boot = _BOOT.read_text().strip()
        except OSError:
            return
        offset = _offset()
        row = connection.execute(_FIND, (boot,)).fetchone()
        if row is None:
            row = (time.time() - (time.monotonic() - offset),)
            connection.execute(_SET, (boot, *row))
        self._zero = row[0] - offset

    def now(self) -> float:
        """Return the time; its differences are seconds, and it is about the wall clock's."""
        return time.time() if self._zero is None else self._zero + time.monotonic()


def _offset() -> float:
    """Return how far the monotonic clock is ahead of the machine's: a container may have its own time namespace."""
    try:
        found = re.search(r"^monotonic\s+(-?\d+)\s+(\d+)", _OFFSETS.read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    return int(found[1]) + int(found[2]) / 1e9 if found else 0.0

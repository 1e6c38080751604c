"""What the errors of SQLite and of the file system mean to the user of a store."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from aiolibkv.errors import AccessDeniedError, NotReachableError, StoreError

LOCKED = "the database is locked by another program"

_PRIMARY = 0xFF
_ROOM = 64 * 1024
"""Bytes; a file system with less free is called full, since SQLite reports some failed extensions as I/O errors."""

_MEANINGS = {
    sqlite3.SQLITE_NOTADB: "the file is not an SQLite database",
    sqlite3.SQLITE_CORRUPT: "the database is damaged",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "reading or writing the database failed",
    sqlite3.SQLITE_CANTOPEN: "the database file cannot be opened",
    sqlite3.SQLITE_INTERRUPT: "the operation was interrupted",
    sqlite3.SQLITE_NOMEM: "SQLite ran out of memory",
}
_DENIED = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def meaning(error: BaseException, path: Path) -> StoreError:
    """Return a new StoreError that says what an error of SQLite or the file system means, caused by it.

    Only what heals by waiting, a lock of somebody else, is a NotReachableError.

    Args:
        error: what was raised.
        path: the database.
    """
    failure = _of_sqlite(error, path) if isinstance(error, sqlite3.Error) else _of_system(error)
    failure.__cause__ = error
    return failure


def primary_code(error: BaseException) -> int:
    """Return SQLite's primary result code of an error, 0 when it has none."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & _PRIMARY


def _of_sqlite(error: sqlite3.Error, path: Path) -> StoreError:
    code = primary_code(error)
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return NotReachableError(LOCKED)
    if code in _DENIED:
        return AccessDeniedError(f"the database may not be written: {error}")
    if code == sqlite3.SQLITE_IOERR and _free(path) < _ROOM:
        code = sqlite3.SQLITE_FULL
    text = _MEANINGS.get(code)
    return StoreError(f"{text}: {error}" if text else f"SQLite failed: {error}")


def _of_system(error: BaseException) -> StoreError:
    if isinstance(error, OSError):
        if isinstance(error, BlockingIOError):
            return NotReachableError(LOCKED)
        if error.errno in _FORBIDDEN:
            return AccessDeniedError(
                f"{error.filename or 'a file beside the database'} may not be written: {error.strerror}"
            )
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return StoreError("the disk is full")
        if error.errno == errno.ENOENT:
            return StoreError(f"{_missing(error.filename)} does not exist")
        return StoreError(f"the files beside the database failed: {error}")
    return StoreError(f"the write failed: {error!r}")


def _missing(name: str | None) -> str:
    """Say what is missing of a file's path: the file, or the directory in which all the others would be."""
    if name is None:
        return "a file beside the database"
    directories = [directory for directory in Path(name).parents if not directory.exists()]
    return f"the directory {directories[-1]}" if directories else name


def _free(path: Path) -> int:
    if not hasattr(os, "statvfs"):
        return _ROOM
    try:
        system = os.statvfs(path.parent)
    except OSError:
        return _ROOM
    return system.f_bavail * system.f_frsize

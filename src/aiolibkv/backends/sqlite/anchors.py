"""Locks on the files that SQLite has open, which the process cannot lose by accident.

The locks that SQLite takes are POSIX's: they belong to the process, and when it closes any descriptor of the file, as
after a copy of it, all of them are gone. The next process that closes the database then believes to be the last one and
removes the files beside it under everybody. An anchor is a lock of the same bytes that belongs to a descriptor of our
own. It is shared by the stores of a process, since closing that descriptor drops SQLite's locks as well.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

SHARED = (0x40000002, 510)
"""Start and length of the bytes of a database that each of its users has a read lock of."""

DEAD_MAN = (128, 1)
"""Likewise of the -shm file. Who finds this byte free empties the file."""

_FLOCK = struct.Struct("hhqqi")
"""Linux's struct flock: type, whence, start, length, process."""

_IS_POSSIBLE = sys.platform == "linux"
_DESCRIPTORS = Path("/proc/self/fd")


class _File:
    """A file that this process has an anchor of."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.users = 0
        self.holders = 0


class Anchor:
    """One store's part in the lock of one file."""

    def __init__(self, path: Path, part: tuple[int, int]) -> None:
        """Open a file, without locking it.

        Args:
            path: the file.
            part: which bytes; see SHARED and DEAD_MAN.

        Raises:
            OSError: it cannot be opened.
        """
        self._part = part
        self._is_locked = False
        with _mutex:
            self._key = _identity(path.stat())
            if self._key not in _files:
                descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                self._key = _identity(os.fstat(descriptor))
                _files[self._key] = _File(descriptor)
            self._file: _File | None = _files[self._key]
            self._file.users += 1

    def is_of(self, path: Path) -> bool:
        """Tell whether a path still names the file."""
        try:
            return _identity(path.stat()) == self._key
        except FileNotFoundError:
            return False

    def read(self, size: int) -> bytes:
        """Return the beginning of what is in the file."""
        assert self._file is not None, "open"
        return os.pread(self._file.descriptor, size, 0)

    def is_locked_elsewhere(self) -> bool:
        """Tell whether anybody else has such a lock: another process, or another connection of this one."""
        assert self._file is not None, "open"
        if not _IS_POSSIBLE:
            return False
        with _mutex:
            if self._file.holders > self._is_locked:
                return True
            query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, *self._part, 0)
            answer = fcntl.fcntl(self._file.descriptor, fcntl.F_OFD_GETLK, query)
        return int(_FLOCK.unpack(answer)[0]) != fcntl.F_UNLCK

    def lock(self) -> None:
        """Take the lock.

        Raises:
            BlockingIOError: somebody has the bytes for himself.
        """
        assert self._file is not None, "open"
        with _mutex:
            if _IS_POSSIBLE and not self._is_locked and not self._file.holders:
                self._set(fcntl.F_RDLCK)
            self._file.holders += not self._is_locked
            self._is_locked = True

    def unlock(self) -> None:
        """Free the lock, unless another store of this process has a part in it."""
        if self._file is None or not self._is_locked:
            return
        with _mutex:
            self._is_locked = False
            self._file.holders -= 1
            if _IS_POSSIBLE and not self._file.holders:
                self._set(fcntl.F_UNLCK)

    def close(self) -> None:
        """Give up the part; when this process does not use the file any more, its descriptor is closed."""
        self.unlock()
        if self._file is None:
            return
        with _mutex:
            self._file.users -= 1
            self._file = None
            _close_unused()

    def _set(self, kind: int) -> None:
        assert self._file is not None, "open"
        request = _FLOCK.pack(kind, os.SEEK_SET, *self._part, 0)
        fcntl.fcntl(self._file.descriptor, fcntl.F_OFD_SETLK, request)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _close_unused() -> None:
    """Close the files without users that this process does not have open besides, by SQLite for the application."""
    try:
        beside = _open_beside()
    except OSError:
        return  # no descriptor is left to look with: they are closed the next time
    for key, file in list(_files.items()):
        if not file.users and key not in beside:
            os.close(file.descriptor)
            del _files[key]


def _open_beside() -> set[tuple[int, int]]:
    """Return what this process has open by descriptors that are none of ours."""
    if not _DESCRIPTORS.exists():
        return set()
    own = {file.descriptor for file in _files.values()}
    opened = set()
    for descriptor in {int(entry.name) for entry in _DESCRIPTORS.iterdir()} - own:
        with suppress(OSError):
            opened.add(_identity(os.fstat(descriptor)))
    return opened


def _leave_to_parent() -> None:
    """In a forked process: close what the parent has, whose locks would outlive it otherwise."""
    for file in _files.values():
        os.close(file.descriptor)
    _files.clear()
    _mutex.release()


_mutex = threading.Lock()
_files: dict[tuple[int, int], _File] = {}

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_mutex.acquire, after_in_parent=_mutex.release, after_in_child=_leave_to_parent)

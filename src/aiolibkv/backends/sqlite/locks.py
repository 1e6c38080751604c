"""Locks of files beside a database.

They are flock's: the kernel frees them when their process dies, however it dies, and they belong to one open file, so
that two stores of one process exclude each other too. A process identifier would say neither.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from aiolibkv.errors import NotReachableError, StoreClosedError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_FIRST_PAUSE = 0.0002
_LONGEST_PAUSE = 0.005
_EAGER_TIME = 0.05
"""Seconds for which a lock is asked for at the shortest interval."""


class LockFile:
    """An advisory lock on a file."""

    def __init__(self, path: Path, like: os.stat_result | None = None) -> None:
        """Open the file, and create it if it has a model.

        Args:
            path: the file.
            like: the status of the file whose owner and mode a new one gets; None to read one that exists.

        Raises:
            OSError: it cannot be opened.
        """
        self.path = path
        self._descriptor = _open(path, os.O_RDONLY) if like is None else _open_or_create(path, like)

    @property
    def name(self) -> str:
        """Return the file's name, without its directory."""
        return self.path.name

    def try_lock(self, *, is_shared: bool = False) -> bool:
        """Take the lock unless somebody has it; a shared one also when others share it."""
        try:
            if sys.platform == "win32":
                msvcrt.locking(self._descriptor, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(self._descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def unlock(self) -> None:
        """Free the lock."""
        if sys.platform == "win32":
            msvcrt.locking(self._descriptor, msvcrt.LK_UNLCK, 1)
        else:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def is_linked(self) -> bool:
        """Tell whether the file is still the one of its name."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def read(self, size: int) -> bytes:
        """Return the beginning of what is in the file."""
        if sys.platform == "win32":
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            return os.read(self._descriptor, size)
        else:  # noqa: RET505 - so that it is checked for each system
            return os.pread(self._descriptor, size, 0)

    def write(self, content: bytes) -> None:
        """Overwrite the beginning of the file, which those who watch it see."""
        if sys.platform == "win32":
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, content)
        else:
            os.pwrite(self._descriptor, content, 0)

    def remove(self) -> None:
        """Remove the file's name."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, which frees the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class WriteLock:
    """The lock around write transactions, checkpoints and closing, fair between the stores that want it.

    SQLite before 3.51.3 may corrupt a database when two connections checkpoint and commit at once; under this lock
    they do not. It is asked for again and again rather than waited for, since nothing could interrupt that wait. It
    is fair because of a second lock, which only the next one in line has: who frees the lock and wants it again
    stands behind everybody who asks for that one.
    """

    def __init__(self, directory: Path, like: os.stat_result) -> None:
        """Open the files, and create those that are missing.

        Raises:
            OSError: they cannot be opened.
        """
        self._next = LockFile(directory / "next", like)
        try:
            self._current = LockFile(directory / "lock", like)
        except BaseException:
            self._next.close()
            raise

    @property
    def path(self) -> Path:
        """Return the file without which there is no lock."""
        return self._current.path

    def acquire(self, patience: float, stopping: Callable[[], bool]) -> None:
        """Take the lock.

        Args:
            patience: seconds.
            stopping: asked while it waits.

        Raises:
            NotReachableError: others had it all the time.
            StoreClosedError: stopping was true.
        """
        began = time.monotonic()
        self._wait(self._next, began, patience, stopping)
        try:
            self._wait(self._current, began, patience, stopping)
        finally:
            self._next.unlock()

    def is_intact(self) -> bool:
        """Tell whether the others ask for the same lock."""
        return self._current.is_linked()

    def read(self, size: int) -> bytes:
        """Return what was last written into the lock's file."""
        return self._current.read(size)

    def write(self, content: bytes) -> None:
        """Leave word to who has the lock next."""
        self._current.write(content)

    def release(self) -> None:
        """Free the lock."""
        self._current.unlock()

    def close(self) -> None:
        """Close the files."""
        self._next.close()
        self._current.close()

    @staticmethod
    def _wait(lock: LockFile, began: float, patience: float, stopping: Callable[[], bool]) -> None:
        pause = _FIRST_PAUSE
        while not lock.try_lock():
            if stopping():
                raise StoreClosedError
            waited = time.monotonic() - began
            if waited > patience:
                raise NotReachableError("another process keeps the database's write lock")
            if waited > _EAGER_TIME:
                pause = min(pause * 2, _LONGEST_PAUSE)
            time.sleep(pause)


def match_mode(path: Path | int, like: os.stat_result) -> None:
    """Give a new file or directory the mode and, as far as allowed, the owner of another one."""
    mode = like.st_mode & 0o666
    if not isinstance(path, int):
        mode |= (mode & 0o444) >> 2
    if hasattr(os, "chown"):
        for owner in (like.st_uid, -1):
            with suppress(PermissionError):
                os.chown(path, owner, like.st_gid)
                break
    os.chmod(path, mode)  # noqa: PTH101 - a descriptor as well


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o600)


def _open_or_create(path: Path, like: os.stat_result) -> int:
    while True:
        with suppress(FileNotFoundError):
            return _open(path, os.O_RDWR)
        with suppress(FileExistsError):
            descriptor = _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                match_mode(descriptor, like)
            except BaseException:
                os.close(descriptor)
                raise
            return descriptor

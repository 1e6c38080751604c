"""The files beside a database, in ``<database>-shared``: locks, the notify file, and a file for each living owner.

Locks are flock's: the kernel frees them when their process dies, however it dies, and they belong to one open file, so
that two stores of one process exclude each other too. A process identifier would say neither.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path

from aiolibkv.errors import NotReachableError, StoreClosedError, StoreError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

OWNER = "owner-"

_FIRST_PAUSE = 0.0002
_LONGEST_PAUSE = 0.005
_EAGER_TIME = 0.05
"""Seconds for which a lock is asked for at the shortest interval."""


class LockFile:
    """An exclusive advisory lock on a file."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open the file, and create it if asked.

        Raises:
            OSError: it cannot be opened.
        """
        self._path = path
        flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
        self._descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o666)

    @property
    def name(self) -> str:
        """Return the file's name, without its directory."""
        return self._path.name

    def try_lock(self) -> bool:
        """Take the lock unless somebody has it."""
        try:
            if sys.platform == "win32":
                msvcrt.locking(self._descriptor, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def touch(self) -> None:
        """Write to the file, for those who watch it."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, b"\0")

    def remove(self) -> None:
        """Remove the file's name."""
        self._path.unlink(missing_ok=True)

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

    def __init__(self, directory: Path) -> None:
        self._next = LockFile(directory / "next")
        try:
            self._current = LockFile(directory / "lock")
        except BaseException:
            self._next.close()
            raise

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


class Files:
    """The database's file and those beside it, as one store has them open.

    Attributes:
        path: the database, absolute and without symbolic links, so that all its users find the same files beside it.
        directory: where the others are.
    """

    def __init__(self, path: Path, bucket: str) -> None:
        """Create what is missing of the files beside the database, and open them.

        Args:
            path: see above.
            bucket: the one that the store uses; an owner's sessions are in its own bucket, and only there.

        Raises:
            OSError: that failed.
            StoreError: the process was forked while a store had the database open.
        """
        self.path = path
        self.directory = path.with_name(f"{path.name}-shared")
        self._refuse_inherited()
        self.directory.mkdir(exist_ok=True)
        self.write_lock = WriteLock(self.directory)
        try:
            self._notify = LockFile(self.directory / "notify")
        except BaseException:
            self.write_lock.close()
            raise
        self._owner: LockFile | None = None
        self._owner_name = ""
        # SQLite does not tell upper from lower case in the names of tables.
        self._owner_prefix = f"{OWNER}{bucket.lower()}-"
        self._identity: tuple[int, int] | None = None
        _open.add(self)

    @property
    def notify_path(self) -> Path:
        """Return the file that is written after each commit."""
        return self.directory / "notify"

    @property
    def owner_name(self) -> str:
        """Return the name that ``own`` has made, "" before."""
        return self._owner_name

    def identify(self) -> None:
        """Remember which file the database is, once it exists."""
        self._identity = _identity(self.path)

    def check_identity(self) -> None:
        """Raise StoreError when the database's file is not the one that was opened: writes would go nowhere."""
        if self._identity != _identity(self.path):
            raise StoreError("the database file was removed or replaced while it was open")

    def notify(self) -> None:
        """Wake the watches of other stores; those who miss it look for themselves before long."""
        try:
            self._notify.touch()
        except OSError:
            pass

    def own(self) -> str:
        """Return the name of a file that is locked as long as this store lives; made at the first call."""
        while self._owner is None:
            name = self._owner_prefix + secrets.token_hex(8)
            file = LockFile(self.directory / name)
            # Between its creation and its lock somebody may have taken it for a dead owner's and removed it.
            if file.try_lock() and file.is_linked():
                self._owner, self._owner_name = file, name
            else:
                file.close()
        return self._owner_name

    def dead(self, owner: str) -> LockFile | None:
        """Return the locked file of an owner that died, None while it lives.

        None also when the file is not there, as with a database that was copied: then nothing is known, and what
        the owner had goes by its time.
        """
        if owner == self._owner_name:
            return None
        try:
            file = LockFile(self.directory / owner, create=False)
        except FileNotFoundError:
            return None
        if file.try_lock():
            return file
        file.close()
        return None

    def owners(self) -> list[str]:
        """Return the names of the files of this bucket's owners."""
        return [file.name for file in self.directory.glob(f"{self._owner_prefix}*")]

    def disown(self, *, remove: bool) -> None:
        """Give up the file that ``own`` made; without removing it, the others bury what this store had."""
        if self._owner is not None:
            if remove:
                self._owner.remove()
            self._owner.close()
            self._owner = None

    def close(self) -> None:
        """Close the files."""
        _open.discard(self)
        self.disown(remove=False)
        self._notify.close()
        self.write_lock.close()

    def leave_to_parent(self) -> None:
        """In a forked process: do not keep the parent's locks alive, and do not open what it had open."""
        if self._identity is not None:
            _inherited.add(self._identity)
        self.close()

    def _refuse_inherited(self) -> None:
        # SQLite keeps its locks of a file per process; after a fork it believes to have those of the parent.
        if _inherited and self.path.exists() and _identity(self.path) in _inherited:
            raise StoreError(
                "the process was forked while a store had the database open; start processes by spawn or exec"
            )


_open: set[Files] = set()
_inherited: set[tuple[int, int] | None] = set()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _after_fork() -> None:
    for files in list(_open):
        files.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

"""The files of a database, as one store has them open, and whether they are still those of their names.

Beside the database are SQLite's ``-wal`` and ``-shm``, and a directory ``<database>-shared`` with locks, of which all
stores share one, a file for each living owner, and for each bucket two notes: of the commit that is about to be, and of
the last one that was. The second wakes those who watch it. Who finds another state in the database than either says
knows that the database was restored; a writer may have died between them.
"""

from __future__ import annotations

import logging
import os
import secrets
import struct
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from aiolibkv.backends.sqlite.anchors import DEAD_MAN, SHARED, Anchor
from aiolibkv.backends.sqlite.locks import LockFile, WriteLock, match_mode
from aiolibkv.backends.sqlite.log import Log
from aiolibkv.backends.sqlite.placement import check_placement
from aiolibkv.backends.sqlite.shrinking import Gate
from aiolibkv.errors import NotReachableError, StoreError

OWNER = "owner-"

_log = logging.getLogger("aiolibkv")

_NOTE = struct.Struct("<qQ")
"""The newest rev of a bucket, and the inode of the database."""

_INODES = struct.Struct("<QQQ")
"""Those of the database, of -wal and of -shm, in the file of the write lock."""

_IMPOSSIBLE_REV = 2**62
_SPOILT = "was cut short or overwritten"


class ReplacedError(NotReachableError):
    """The files are not those that were opened: this heals by opening the database again."""


class Files:
    """The database's file and those beside it, as one store has them open.

    Attributes:
        path: the database, absolute and without symbolic links, so that all its users find the same files beside it.
        directory: where the locks are.
        write_lock: taken by who writes.
        gate: looked at by who reads.
    """

    def __init__(self, given: Path, bucket: str, *, create: bool) -> None:
        """Create what is missing of the files beside the database, and open them.

        Args:
            given: the path by which the database is known.
            bucket: the one that the store uses; an owner's sessions are in its own bucket, and only there.
            create: whether to create the database as well.

        Raises:
            OSError: that failed.
            StoreError: the database is where it cannot be shared, or the process was forked while a store had it open.
        """
        self._given = given
        path = Path(os.path.realpath(given))
        self.path: Path = path
        self.directory: Path = path.with_name(f"{path.name}-shared")
        self._wal, self._shm = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
        self._of_sqlite = (path, self._wal, self._shm)
        self._refuse_inherited()
        if path.is_dir():
            raise StoreError("the path of the database is a directory")
        if create:
            _create(path)
        self._status = path.stat()
        check_placement(path)
        if not self.directory.exists():
            self.directory.mkdir()
            match_mode(self.directory, self._status)
        # SQLite does not tell upper from lower case in the names of tables.
        self._bucket = bucket.lower()
        self._owner: LockFile | None = None
        self._owner_name = ""
        self._known: dict[str, tuple[int, int] | None] = {}
        self._inode = 0
        self._anchors: list[Anchor] = []
        self._log: Log | None = None
        with ExitStack() as opened:
            self.write_lock: WriteLock = WriteLock(self.directory, self._status)
            opened.callback(self.write_lock.close)
            self.gate: Gate = Gate(self.directory, self._status)
            opened.callback(self.gate.close)
            self._intention = LockFile(self.directory / f"intended-{self._bucket}", self._status)
            opened.callback(self._intention.close)
            self._note = LockFile(self.note_path, self._status)
            opened.callback(self._note.close)
            self._users = LockFile(self.directory / "users", self._status)
            opened.pop_all()
        _open.add(self)

    @property
    def note_path(self) -> Path:
        """Return the file that is written after each commit."""
        return self.directory / f"commits-{self._bucket}"

    @property
    def owner_name(self) -> str:
        """Return the name that ``own`` has made, "" before."""
        return self._owner_name

    # -- which files they are --------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Look whether the database may be opened; the write lock must be held.

        Raises:
            ReplacedError: somebody has it open with other files, which were removed or replaced; he will notice.
            OSError: a file cannot be opened.
        """
        if not self.write_lock.is_intact():
            raise ReplacedError(f"{self.write_lock.path} was removed or replaced")
        database = Anchor(self.path, SHARED)
        self._anchors.append(database)
        is_used = database.is_locked_elsewhere()
        has_stores = not self._users.try_lock()
        memory = None
        if self._shm.exists():
            memory = Anchor(self._shm, DEAD_MAN)
            self._anchors.append(memory)
            is_used = is_used or memory.is_locked_elsewhere()
        for path in (self._shm, self._wal):
            if is_used and not path.exists():
                raise ReplacedError(f"{path} was removed while others have the database open")
        if is_used and memory is not None:
            with closing(Log(self._wal, memory)) as log:
                if not log.is_intact():
                    raise ReplacedError(f"{self._wal} {_SPOILT} while others have the database open")
        self._compare_with_former(is_used=is_used, has_stores=has_stores)

    def identify(self) -> None:
        """Remember which files SQLite has opened, and lock them; the write lock must be held.

        Raises:
            ReplacedError: they are being replaced.
            OSError: they cannot be opened.
        """
        self._users.try_lock(is_shared=True)
        watched = (self._given, *self._of_sqlite, self.write_lock.path, self._users.path, self.note_path)
        self._known = {str(path): _identity(str(path)) for path in watched}
        if len(self._anchors) == 1:
            self._anchors.append(Anchor(self._shm, DEAD_MAN))
        for anchor, path in zip(self._anchors, (self.path, self._shm), strict=True):
            if not anchor.is_of(path):
                raise ReplacedError(f"{path} was replaced while it was opened")
            anchor.lock()
        self._log = Log(self._wal, self._anchors[1])
        inodes = self._inodes()
        self._inode = inodes[0]
        with suppress(OSError):
            self.write_lock.write(_INODES.pack(*inodes))

    def _compare_with_former(self, *, is_used: bool, has_stores: bool) -> None:
        """Compare the files with those that a store opened last.

        Args:
            is_used: whether anybody has them open. A program that is no store may have others, since SQLite removes
                those beside the database with its last user.
            has_stores: whether another store has the database open, be it with these files or with the former ones.
        """
        content = self.write_lock.read(_INODES.size)
        if len(content) < _INODES.size:
            return
        former, current = _INODES.unpack(content), self._inodes()
        is_log_foreign = former[0] != current[0] and former[1] == current[1] != 0
        if (has_stores and former != current) or (is_used and is_log_foreign):
            raise ReplacedError(f"{self.path} or a file beside it was replaced while others have the former one open")
        if is_log_foreign:
            _log.warning("%s is removed: it belongs to another file than %s", self._wal, self.path)
            while self._anchors[1:]:
                self._anchors.pop().close()
            for path in (self._wal, self._shm):
                path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise ReplacedError when a file is not the one that was opened: what is written to it would be lost."""
        for path, identity in self._known.items():
            try:
                status = os.stat(path)  # noqa: PTH116 - before each commit: faster than Path's
            except FileNotFoundError:
                raise ReplacedError(f"{path} was removed while the database was open") from None
            except OSError as error:
                raise ReplacedError(f"{path} is out of reach: {error.strerror}") from error
            if (status.st_dev, status.st_ino) != identity:
                raise ReplacedError(f"{path} was replaced while the database was open")
        try:
            is_intact = self._log is None or self._log.is_intact()
        except OSError as error:
            raise ReplacedError(f"{self._wal} is out of reach: {error.strerror}") from error
        if not is_intact:
            raise ReplacedError(f"{self._wal} {_SPOILT} while the database was open")

    def log_size(self) -> int:
        """Return the bytes of -wal."""
        try:
            return os.stat(self._of_sqlite[1]).st_size  # noqa: PTH116 - see above
        except OSError:
            return 0

    def is_log_lost(self) -> bool:
        """Tell whether -wal was removed, and nobody has opened the database since: then we have all that is in it."""
        return not self._wal.exists() and self._known.get(str(self.path)) == _identity(str(self.path))

    # -- the notes of commits --------------------------------------------------------------------------------------

    def lost_rev(self, rev: int) -> int | None:
        """Return the highest rev that was noted, if a log that ends with ``rev`` is that of a restored database.

        The write lock must be held.

        Returns:
            None when either note says that the last commit to this file had this rev.
        """
        noted = _read_note(self._note)
        if noted == (rev, self._inode):
            return None
        intended = _read_note(self._intention)
        if intended != (rev, self._inode):
            return max(noted, intended)[0]
        # Its writer died beside the commit. The next one may die too, having written another intention.
        self.note(rev)
        return None

    def intend(self, rev: int) -> None:
        """Note a commit that is about to be."""
        self._write_note(self._intention, rev)

    def note(self, rev: int) -> None:
        """Note a commit, which wakes the watches of other stores; those who miss it look before long."""
        self._write_note(self._note, rev)

    def _write_note(self, file: LockFile, rev: int) -> None:
        with suppress(OSError):
            file.write(_NOTE.pack(rev, self._inode))

    def _inodes(self) -> tuple[int, ...]:
        identities = (self._known.get(str(path)) or _identity(str(path)) for path in self._of_sqlite)
        return tuple(0 if identity is None else identity[1] for identity in identities)

    # -- owners ----------------------------------------------------------------------------------------------------

    def own(self) -> str:
        """Return the name of a file that is locked as long as this store lives; made at the first call."""
        while self._owner is None:
            name = f"{OWNER}{self._bucket}-{secrets.token_hex(8)}"
            file = LockFile(self.directory / name, self._status)
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
            file = LockFile(self.directory / owner)
        except FileNotFoundError:
            return None
        if file.try_lock():
            return file
        file.close()
        return None

    def owners(self) -> list[str]:
        """Return the names of the files of this bucket's owners."""
        return [file.name for file in self.directory.glob(f"{OWNER}{self._bucket}-*")]

    def disown(self, *, remove: bool) -> None:
        """Give up the file that ``own`` made; without removing it, the others bury what this store had."""
        if self._owner is not None:
            if remove:
                self._owner.remove()
            self._owner.close()
            self._owner = None

    # -- the end ---------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Let SQLite's next close be the last one, which empties -wal and removes it; the write lock must be held."""
        self._users.unlock()
        for anchor in self._anchors:
            anchor.unlock()

    def close(self) -> None:
        """Close the files, after SQLite's connections."""
        _open.discard(self)
        self.disown(remove=False)
        if self._log is not None:
            self._log.close()
            self._log = None
        for anchor in self._anchors:
            anchor.close()
        self._anchors.clear()
        self._users.close()
        self._note.close()
        self._intention.close()
        self.gate.close()
        self.write_lock.close()

    def leave_to_parent(self) -> None:
        """In a forked process: do not keep the parent's locks alive, and do not open what it had open."""
        identity = _identity(str(self.path))
        for inherited in (self._known.get(str(self.path)), identity):
            if inherited is not None:
                _inherited.add(inherited)
        self._anchors.clear()
        self.close()

    def _refuse_inherited(self) -> None:
        # SQLite keeps its locks of a file per process; after a fork it believes to have those of the parent.
        if _inherited and _identity(str(self.path)) in _inherited:
            raise StoreError(
                "the process was forked while a store had the database open; start processes by spawn or exec"
            )


_open: set[Files] = set()
_inherited: set[tuple[int, int]] = set()


def _create(path: Path) -> None:
    # Only a new file may be closed again: that drops the locks which SQLite has of it in this process.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o644))


def _read_note(file: LockFile) -> tuple[int, int]:
    content = file.read(_NOTE.size)
    rev, database = _NOTE.unpack(content) if len(content) == _NOTE.size else (0, 0)
    return rev if 0 <= rev < _IMPOSSIBLE_REV else 0, database


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - see above
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _after_fork() -> None:
    for files in list(_open):
        files.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

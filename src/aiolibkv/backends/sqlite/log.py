"""Whether -wal is still what SQLite has written.

SQLite notes in -shm how much of -wal counts, and does not look whether the file still has it: in one that was cut short
it goes on behind the gap, and the next recovery finds nothing there.
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

from aiolibkv.backends.sqlite.anchors import Anchor

_INDEX = struct.Struct("=I10xHI12x8s8x")
"""The beginning of -shm: version, size of a page, frames of -wal that count, and what stands in -wal's header since
SQLite began it anew last. https://sqlite.org/walformat.html describes both files."""

_VERSION = 3_007_000
_HEADER = struct.Struct("16x8s8x")
"""The header of -wal."""

_FRAME = 24
"""Bytes of a frame before its page."""


class Log:
    """The file -wal, and what -shm tells of it."""

    def __init__(self, path: Path, index: Anchor) -> None:
        """Open the file, of which SQLite has no locks that closing it could drop.

        Args:
            path: of -wal.
            index: of -shm.

        Raises:
            OSError: it cannot be opened.
        """
        self._index = index
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def is_intact(self) -> bool:
        """Tell whether the file has all that counts of it, also while others write."""
        if sys.platform != "linux":
            # SQLite writes -shm by a mapping, of which a read elsewhere may know nothing.
            return True
        index = self._index.read(_INDEX.size)
        while not self._has(index):
            before, index = index, self._index.read(_INDEX.size)
            if index == before:
                return False
        return True

    def _has(self, index: bytes) -> bool:
        if len(index) < _INDEX.size:
            return True
        version, page, frames, salts = _INDEX.unpack(index)
        if version != _VERSION or not frames:
            return True
        header = os.pread(self._descriptor, _HEADER.size, 0)
        if len(header) < _HEADER.size or _HEADER.unpack(header) != (salts,):
            return False
        # 65536 does not fit into the two bytes of the page's size, and is written as 1.
        size: int = _HEADER.size + frames * (_FRAME + (65536 if page == 1 else page))
        return os.fstat(self._descriptor).st_size >= size

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

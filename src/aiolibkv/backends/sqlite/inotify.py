"""Linux's inotify: a file descriptor that becomes readable when a file is written or closed."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

MODIFIED = 0x2
CLOSED_AFTER_WRITING = 0x8

_EVENT = struct.Struct("iIII")
_BUFFER = 64 * 1024


class Inotify:
    """One inotify instance.

    Attributes:
        descriptor: readable when there are events; non-blocking.
    """

    def __init__(self) -> None:
        """Open an instance.

        Raises:
            OSError: this system has none, or the user's instances are used up (128 by default).
        """
        if sys.platform != "linux":
            raise OSError("no inotify on this system")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor: int = self._checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, path: Path, mask: int) -> int:
        """Watch a file, or the files of a directory, and return the watch's number."""
        return self._checked(self._libc.inotify_add_watch(self.descriptor, os.fsencode(path), mask))

    def remove(self, watch: int) -> None:
        """End a watch; one that ended with its file is no error."""
        self._libc.inotify_rm_watch(self.descriptor, watch)

    def events(self) -> Iterator[tuple[int, str]]:
        """Give what has happened since the last call: the watch, -1 when events were dropped, and the file's name."""
        try:
            data = os.read(self.descriptor, _BUFFER)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, _, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            yield watch, os.fsdecode(data[at : at + length].rstrip(b"\0"))
            at += length

    def close(self) -> None:
        """Close the instance with its watches."""
        os.close(self.descriptor)

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

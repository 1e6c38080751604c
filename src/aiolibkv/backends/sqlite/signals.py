"""What wakes a store: commits of other stores, and the end of other stores."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from aiolibkv.backends.sqlite.files import OWNER, Files
from aiolibkv.backends.sqlite.inotify import CLOSED_AFTER_WRITING, MODIFIED, Inotify

_POLLING_INTERVAL = 0.1
_BACKSTOP_INTERVAL = 1.0

_log = logging.getLogger("aiolibkv")


class Signals:
    """The signals of one database's files.

    On Linux they come from inotify. The database's own files would be the wrong ones to watch: they are written before
    a commit can be seen. Without inotify, the store looks for itself at intervals.

    Attributes:
        interval: seconds after which the store looks for itself all the same. With inotify that is for a writer that
            died between its commit and its signal.
    """

    def __init__(self, files: Files, committed: Callable[[], None], ended: Callable[[str], None]) -> None:
        """Listen for ends of stores.

        Args:
            files: those beside the database.
            committed: called after a commit, while ``listen`` is in force.
            ended: called with the owner's name after a store ended, properly or not.
        """
        self._files = files
        self._committed = committed
        self._ended = ended
        self._listeners = 0
        self._watch = self._directory = -1
        self._inotify: Inotify | None = None
        self.interval: float = _POLLING_INTERVAL
        try:
            self._inotify = Inotify()
            self._directory = self._inotify.add(files.directory, CLOSED_AFTER_WRITING)
        except OSError as error:
            self._do_without(error)
        else:
            asyncio.get_running_loop().add_reader(self._inotify.descriptor, self._read)
            self.interval = _BACKSTOP_INTERVAL

    @property
    def are_prompt(self) -> bool:
        """Tell whether there is inotify."""
        return self._inotify is not None

    def listen(self) -> None:
        """Hear of commits, until as many calls of ``ignore``."""
        self._listeners += 1
        if self._inotify is not None and self._listeners == 1:
            try:
                self._watch = self._inotify.add(self._files.note_path, MODIFIED)
            except OSError as error:
                self._do_without(error)

    def ignore(self) -> None:
        """Do not hear of commits any more."""
        self._listeners -= 1
        if self._inotify is not None and self._listeners == 0:
            self._inotify.remove(self._watch)
            self._watch = -1

    def close(self) -> None:
        """Stop."""
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.descriptor)
            self._inotify.close()
            self._inotify = None

    def _do_without(self, error: OSError) -> None:
        """Look at intervals: there is no inotify, or the instances or watches of this user are used up."""
        _log.debug("changes are looked for every %g s: %s", _POLLING_INTERVAL, error)
        self.close()
        self.interval = _POLLING_INTERVAL

    def _read(self) -> None:
        assert self._inotify is not None, "read while open"
        events = set(self._inotify.events())
        if any(watch != self._directory for watch, _ in events):
            self._committed()
        for watch, name in events:
            if watch == self._directory and name.startswith(OWNER):
                self._ended(name)

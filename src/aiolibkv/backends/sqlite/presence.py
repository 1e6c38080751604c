"""Noticing that another store has died, and ending what it kept alive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiolibkv.backends.sqlite.files import Files
from aiolibkv.backends.sqlite.locks import LockFile
from aiolibkv.backends.sqlite.reading import Reader
from aiolibkv.backends.sqlite.signals import Signals
from aiolibkv.backends.sqlite.watching import Wakeup
from aiolibkv.errors import StoreError

_PAUSES = (0.0, 0.002, 0.01, 0.05)
"""Seconds before each look: a dying process closes its files, which is heard, a moment before their locks are free."""

_log = logging.getLogger("aiolibkv")


class Presence:
    """Who owns sessions, and whether they live."""

    def __init__(self, reader: Reader, files: Files, end: Callable[[list[str]], Awaitable[object]]) -> None:
        """Make it.

        Args:
            reader: tells who owns sessions.
            files: tell who lives.
            end: ends the sessions of owners.
        """
        self._reader = reader
        self._files = files
        self._end = end
        self._wakeup = Wakeup()
        self._suspects: set[str] = set()

    def suspect(self, owner: str) -> None:
        """Note that an owner has closed its file."""
        self._suspects.add(owner)
        self._wakeup.set()

    async def run(self, signals: Signals) -> None:
        """End what dead stores have left, until cancelled."""
        while True:
            await self._wakeup.wait(signals.interval)
            suspects, self._suspects = self._suspects, set()
            try:
                for pause in _PAUSES:
                    await asyncio.sleep(pause)
                    await self._bury()
                    if not suspects & self._reader.owners():
                        break
            except (StoreError, OSError) as error:
                _log.debug("what dead owners had could not be deleted yet: %s", error)

    async def _bury(self) -> None:
        graves: list[LockFile] = []
        try:
            for owner in self._reader.owners():
                grave = self._files.dead(owner)
                if grave is not None:
                    graves.append(grave)
            if graves:
                await self._end([grave.name for grave in graves])
            for grave in graves:
                grave.remove()
        finally:
            for grave in graves:
                grave.close()

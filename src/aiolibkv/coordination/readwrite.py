"""Many readers or one writer, first come, first served."""

from __future__ import annotations

from collections.abc import Sequence

from aiolibkv.coordination.line import DEFAULT_TTL, PlaceLock
from aiolibkv.keys import normalize_key
from aiolibkv.protocol import AsyncStore, Lock
from aiolibkv.types import KVPair

_READ = "read"
_WRITE = "write"


class ReadWriteLock:
    """A lock that readers share and a writer has alone.

    One object serves many tasks. Who came first is served first: a waiting writer comes before later readers, and a
    waiting reader before later writers. Each holder has a HeldLock of its own, for guards, tokens and losses. There is
    no upgrade: whoever reads and wants to write leaves, and enters again. The line is below ``<name>/line``.
    """

    def __init__(self, store: AsyncStore, name: str, *, ttl: float = DEFAULT_TTL) -> None:
        """Make a lock; nothing is sent until somebody enters.

        Args:
            store: where it is.
            name: the directory that it is kept in.
            ttl: seconds after which a dead reader or writer is not waited for any more.

        Raises:
            ValueError: the ttl is not valid.
        """
        self._store = store
        self._name = normalize_key(name)
        self._ttl = ttl
        self.reading()

    def reading(self) -> Lock:
        """Make a lock for one reader, for ``async with``: it waits until no writer is ahead."""
        return _Reading(self._store, self._name, kind=_READ, ttl=self._ttl)

    def writing(self) -> Lock:
        """Make a lock for one writer, for ``async with``: it waits until nobody is ahead."""
        return _Writing(self._store, self._name, kind=_WRITE, ttl=self._ttl)


class _Reading(PlaceLock):
    async def _is_admitted(self, pairs: Sequence[KVPair], ahead: Sequence[KVPair], *, is_current: bool) -> bool:
        return not any(pair.value.startswith(_WRITE.encode()) for pair in ahead)


class _Writing(PlaceLock):
    async def _is_admitted(self, pairs: Sequence[KVPair], ahead: Sequence[KVPair], *, is_current: bool) -> bool:
        return not ahead

"""Permits: at most so many holders at once, first come, first served."""

from __future__ import annotations

from collections.abc import Sequence

from aiolibkv.coordination.line import DEFAULT_TTL, PlaceLock
from aiolibkv.errors import KeyExistsError, KeyNotFoundError
from aiolibkv.protocol import AsyncStore, HeldLock
from aiolibkv.types import KVPair


class Semaphore(PlaceLock):
    """One of so many permits, among all processes that give the same name and number; used like a Lock.

    One object holds one permit at a time; they are cheap: make one for each task. A permit is a lock of its own: its
    HeldLock tells when it is lost, guards writes, and has a fencing token that increases with each grant. Permits are
    granted in the order in which they were asked for. A holder or waiter that is cancelled, dead or cut off keeps no
    permit and blocks nobody. The number is at ``<name>/permits``, the line below ``<name>/line``.
    """

    def __init__(self, store: AsyncStore, name: str, permits: int, *, ttl: float = DEFAULT_TTL) -> None:
        """Make a semaphore; nothing is sent until it is acquired.

        Args:
            store: where it is.
            name: the directory that it is kept in.
            permits: how many may hold one; acquiring raises ValueError when the store has another number.
            ttl: seconds after which a dead holder's permit is free.

        Raises:
            ValueError: there is less than one permit, or the ttl cannot be.
        """
        self._permits = _checked(permits)
        self._is_agreed = False
        super().__init__(store, name, kind="permit", ttl=ttl)
        self._record = f"{self._name}/permits"

    async def resize(self, permits: int) -> None:
        """Change the number of permits for all, running processes included; whom it lets in is woken.

        Holders beyond a smaller number keep their permits until they give them up.

        Args:
            permits: how many may hold one from now on.

        Raises:
            ValueError: there is less than one permit.

        Cancellation: leaves open whether the number was changed.
        Cost: one put.
        """
        await self._store.put(self._record, b"%d" % _checked(permits))
        self._permits, self._is_agreed = permits, True

    async def _is_admitted(self, pairs: Sequence[KVPair], ahead: Sequence[KVPair], held: HeldLock) -> bool:
        record = next((pair for pair in pairs if pair.key == self._record), None)
        if record is None:
            try:
                record = await self._store.atomic_put(self._record, b"%d" % self._permits, None)
            except KeyExistsError:
                return await self._is_next(await self._list(), held)
        if len(ahead) >= self._agree(record):
            return False
        # The places ahead only become fewer: if the number is still that, the place is admitted at this moment.
        try:
            if await self._store.get(self._record) == record:
                return True
        except KeyNotFoundError:
            pass
        return await self._is_next(await self._list(), held)

    def _agree(self, record: KVPair) -> int:
        """Return the number in the store; refuse another than was given, until both were the same once."""
        if not record.value.isdigit() or int(record.value) < 1:
            raise ValueError(f"{record.key!r} is {record.value!r}, and no number of permits")
        permits = int(record.value)
        if not self._is_agreed and permits != self._permits:
            raise ValueError(f"{self._name!r} has {permits} permits in the store, and {self._permits} were given")
        self._permits, self._is_agreed = permits, True
        return permits


def _checked(permits: int) -> int:
    if permits < 1:
        raise ValueError(f"there is at least one permit, not {permits}")
    return permits

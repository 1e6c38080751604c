"""Permits: at most so many holders at once, first come, first served."""

from __future__ import annotations

from collections.abc import Sequence

from aiolibkv.coordination.line import DEFAULT_TTL, PlaceLock
from aiolibkv.coordination.update import update
from aiolibkv.errors import KeyExistsError, KeyNotFoundError
from aiolibkv.protocol import AsyncStore
from aiolibkv.types import KVPair


class Semaphore(PlaceLock):
    """A number of permits, shared by all processes that give the same name and number; used like a Lock.

    One object holds one permit at a time. Objects are cheap: make one for each task. A permit is a lock of its own: its
    HeldLock tells when it is lost, guards writes, and has a fencing token that increases with each grant. Permits are
    granted in the order in which they were asked for. A holder or waiter that is cancelled, dead or cut off keeps no
    permit and blocks nobody. The line of waiters is below ``<name>/line``. The number of permits is at
    ``<name>/permits``, followed by the numbers that it has replaced: programs that still give one of those use the
    current number.
    """

    def __init__(self, store: AsyncStore, name: str, permits: int, *, ttl: float = DEFAULT_TTL) -> None:
        """Make a semaphore; nothing is sent until it is acquired.

        Args:
            store: where it is.
            name: the directory that it is kept in.
            permits: how many may hold one, unless it was resized. Acquiring raises ValueError when the store has
                another number, and this one was never in force before a ``resize``.
            ttl: seconds after which a dead holder's permit is free.

        Raises:
            ValueError: permits is less than 1, or the ttl is not valid.
            TypeError: permits is not an int.
        """
        self._permits = _checked(permits)
        self._is_agreed = False
        super().__init__(store, name, kind="permit", ttl=ttl)
        self._record = f"{self._name}/permits"

    async def resize(self, permits: int) -> None:
        """Change the number of permits for all processes, running ones too; waiters that it lets in are woken.

        When the new number is smaller, those who hold a permit keep it until they give it up. Programs that still give
        the old number use the new one.

        Args:
            permits: how many may hold one from now on.

        Raises:
            ValueError: permits is less than 1.

        Cancellation: leaves open whether the number was changed.
        Cost: get and atomic_put, again when somebody else resizes it at the same time.
        """
        number = _checked(permits)

        def resized(value: bytes | None) -> bytes:
            replaced = [self._permits] if value is None else _numbers(value)
            return _value([number, *(each for each in replaced if each != number)])

        await update(self._store, self._record, resized)
        self._permits, self._is_agreed = number, True

    async def _is_admitted(self, pairs: Sequence[KVPair], ahead: Sequence[KVPair], *, is_current: bool) -> bool:
        record = next((pair for pair in pairs if pair.key == self._record), None)
        if record is not None and len(ahead) >= self._agree(record):
            return False
        if record is None or not is_current:
            record = await self._read()
        # The places ahead only become fewer: the place is admitted at the moment of which the number is.
        return len(ahead) < self._agree(record)

    async def _read(self) -> KVPair:
        """Return the number as it is now; the first one to ask for it sets it."""
        while True:
            try:
                return await self._store.get(self._record)
            except KeyNotFoundError:
                pass
            try:
                return await self._store.atomic_put(self._record, _value([self._permits]), None)
            except KeyExistsError:
                continue

    def _agree(self, record: KVPair) -> int:
        """Return the number in the store; refuse another than was given, until both were the same once."""
        numbers = _numbers(record.value)
        if not numbers:
            raise ValueError(f"the value of {record.key!r} is {record.value!r}, which is no number of permits")
        if not self._is_agreed and self._permits not in numbers:
            raise ValueError(
                f"{self._name!r} has {numbers[0]} permits in the store, not {self._permits};"
                " resize changes the number for all"
            )
        self._permits, self._is_agreed = numbers[0], True
        return numbers[0]


def _checked(permits: int) -> int:
    if isinstance(permits, bool) or not isinstance(permits, int):
        raise TypeError(f"permits is an int, not {type(permits).__name__}")
    if permits < 1:
        raise ValueError(f"permits is at least 1, not {permits}")
    return permits


def _value(numbers: Sequence[int]) -> bytes:
    return " ".join(map(str, numbers)).encode()


def _numbers(value: bytes) -> list[int]:
    """Return the number of permits, and those that it has replaced; nothing when that cannot be read."""
    words = value.split()
    return [int(word) for word in words] if all(word.isdigit() and int(word) > 0 for word in words) else []

"""Change a value by a function of it."""

from __future__ import annotations

from collections.abc import Callable

from aiolibkv.errors import KeyExistsError, KeyModifiedError, KeyNotFoundError
from aiolibkv.protocol import AsyncStore, HeldLock
from aiolibkv.types import KVPair


async def update(
    store: AsyncStore,
    key: str,
    fn: Callable[[bytes | None], bytes],
    *,
    ttl: float | None = None,
    keep_alive: bool = False,
    guard: HeldLock | None = None,
) -> KVPair:
    """Read a value, compute the new one, and write it if nobody was faster; else begin again.

    The key's lifetime is then what this call says, whatever it was.

    Args:
        store: where the key is.
        key: the key.
        fn: gives the new value; is called with the present one, None when there is none, and perhaps several times.
        ttl: seconds that the key lives from then on; for ever when not given.
        keep_alive: as for ``put``.
        guard: a lock that must be held.

    Returns:
        The pair as written.

    Raises:
        LockLostError: the guard is not held any more.
        NotReachableError, RequestTimeoutError: with ``maybe_applied``, as for ``atomic_put``.

    Cancellation: leaves open whether the last attempt was applied.
    Cost: get and atomic_put, once per attempt.
    """
    while True:
        try:
            previous = await store.get(key)
        except KeyNotFoundError:
            previous = None
        value = fn(None if previous is None else previous.value)
        try:
            return await store.atomic_put(key, value, previous, ttl=ttl, keep_alive=keep_alive, guard=guard)
        except (KeyExistsError, KeyModifiedError):
            continue

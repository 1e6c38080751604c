"""Removal of what was kept alive, again and again until a server does it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from aiolibkv.coordination.attempts import Attempts
from aiolibkv.errors import KeyModifiedError, KeyNotFoundError, StoreClosedError, StoreError
from aiolibkv.protocol import AsyncStore
from aiolibkv.starting import start
from aiolibkv.types import KVPair

_LONGEST_PAUSE = 5.0
"""Seconds between two attempts that a server refuses."""

_log = logging.getLogger("aiolibkv")


async def remove(
    store: AsyncStore, key: str, last: KVPair | None, values: Collection[bytes], attempts: Attempts
) -> None:
    """Delete a key, also when it is not there: else the store creates again what a lost lease took away.

    Args:
        store: where it is.
        key: the key.
        last: the pair that is known to have been there.
        values: it is left alone with any other one.
        attempts: what a server refuses is tried again with them.

    Raises:
        StoreError: it cannot heal.
    """
    pair = last
    while True:
        try:
            pair = pair or await store.get(key)
            if pair.value in values:
                await store.atomic_delete(key, pair)
            return
        except KeyNotFoundError:
            if pair is not None or last is None:
                return
            pair = last
        except KeyModifiedError:
            pair = None
        except StoreError as error:
            await attempts.failed(error)


class Removal:
    """The removal of one key that was kept alive, in the background, at the latest until the store is closed."""

    def __init__(self, store: AsyncStore, pair: KVPair) -> None:
        """Begin it.

        Args:
            store: where the key is.
            pair: what was written last.
        """
        self._store = store
        self._pair = pair
        self.start()

    def start(self) -> None:
        """Begin it, or begin it again."""
        self._task = start(self._run())
        _removals.add(self)

    def stop(self) -> None:
        """Stop it; a request that is under way deletes nothing that is written from now on."""
        _removals.discard(self)
        self._task.cancel()

    async def wait(self) -> None:
        """Wait until it has ended; it goes on though the caller is cancelled."""
        await asyncio.wait({self._task})

    def is_of(self, store: AsyncStore, keys: Collection[str]) -> bool:
        """Tell whether it is about one of these keys."""
        return self._store is store and self._pair.key in keys

    async def _run(self) -> None:
        store, pair = self._store, self._pair
        attempts = Attempts(store, pair.key, f"the removal of {pair.key!r}", _LONGEST_PAUSE)
        try:
            await remove(store, pair.key, pair, {pair.value}, attempts)
        except StoreClosedError:
            pass
        except StoreError as error:
            _log.warning("the key %r, which was kept alive, was not removed: %s", pair.key, error)
        _removals.discard(self)


_removals: set[Removal] = set()
"""What goes on behind closed namespaces."""


@contextmanager
def instead_of_removal(store: AsyncStore, keys: Collection[str]) -> Iterator[None]:
    """Write keys anew: they are not removed any more, unless the block fails."""
    # Event loops of other threads have removals too, and may begin or end one meanwhile.
    stopped = [removal for removal in tuple(_removals) if removal.is_of(store, keys)]
    for removal in stopped:
        removal.stop()
    try:
        yield
    except BaseException:
        for removal in stopped:
            removal.start()
        raise

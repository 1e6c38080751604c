"""What a server refuses for a time is tried again, with growing pauses."""

from __future__ import annotations

import asyncio
import logging
import random

from aiolibkv.errors import (
    AccessDeniedError,
    BackendNotSupportedError,
    CallNotSupportedError,
    CannotLockError,
    NotReachableError,
    RequestTimeoutError,
    StoreClosedError,
    StoreError,
)
from aiolibkv.protocol import AsyncStore

_FIRST_PAUSE = 0.1
_OUTAGE_PAUSE = 1.0
"""Seconds of the longest pause while no server can be reached: one that comes back is not kept waiting."""
_DENIED_PAUSE = 0.5
"""Seconds of the longest pause during which the store's close could not be noticed."""

_log = logging.getLogger("aiolibkv")


class Attempts:
    """Attempts at one thing, again and again until a server does it.

    A pause ends with the store's close, which a watch of the key tells.
    """

    def __init__(self, store: AsyncStore, key: str, what: str, longest: float) -> None:
        """Begin without a failure.

        Args:
            store: whose server is asked.
            key: of what is attempted.
            what: is attempted, for the log.
            longest: seconds of the longest pause after a refusal.
        """
        self._store = store
        self._key = key
        self._what = what
        self._longest = longest
        self._pause = _FIRST_PAUSE

    def succeeded(self) -> None:
        """Begin with short pauses again."""
        self._pause = _FIRST_PAUSE

    async def failed(self, error: StoreError) -> None:
        """Wait until the next attempt is due.

        Raises:
            StoreError: the error itself, when it cannot heal.
            StoreClosedError: the store was closed meanwhile.
        """
        if not may_heal(error):
            raise error
        is_outage = isinstance(error, NotReachableError | RequestTimeoutError)
        pause = min(self._pause, self._longest, _OUTAGE_PAUSE if is_outage else self._longest)
        self._pause = 2 * pause
        pause *= random.uniform(0.5, 1)
        level = logging.DEBUG if is_outage else logging.WARNING
        _log.log(level, "%s is tried again in %.2g s: %s", self._what, pause, error)
        try:
            async with asyncio.timeout(pause) as bound, self._store.watch(self._key) as watch:
                async for _ in watch:
                    pass
        except TimeoutError:
            if not bound.expired():
                raise
        except AccessDeniedError:
            await asyncio.sleep(min(pause, _DENIED_PAUSE))


def may_heal(error: StoreError) -> bool:
    """Tell whether the same call may succeed later: not so what the library itself refuses."""
    lasting = (StoreClosedError, CannotLockError, CallNotSupportedError, BackendNotSupportedError, ValueError)
    return not isinstance(error, lasting)

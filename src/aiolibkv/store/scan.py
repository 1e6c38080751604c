"""A directory read in pages."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from aiolibkv.errors import KeyNotFoundError
from aiolibkv.iteration import ClosableIterator
from aiolibkv.parts import in_parts
from aiolibkv.store.driver import Page
from aiolibkv.types import KVPair


class StoreScan(ClosableIterator):
    """The scan of every backend; see ``aiolibkv.Scan``."""

    def __init__(
        self,
        read: Callable[[str], Awaitable[Page]],
        visible: Callable[[Sequence[KVPair]], Sequence[KVPair]],
        missing: Callable[[], KeyNotFoundError | None],
    ) -> None:
        """Make a scan; nothing is read.

        Args:
            read: reads the page after a path.
            visible: gives pairs their keys in place of their paths, and leaves out those that users do not see.
            missing: makes the error for a directory that does not exist; None for the root.
        """
        self._read = read
        self._visible = visible
        self._missing = missing
        self._pairs: deque[KVPair] = deque()
        self._after = ""
        self._more = True
        self._is_empty = True
        self._iterating = False

    async def __anext__(self) -> KVPair:
        if self._iterating:
            raise RuntimeError("a scan is iterated by one task at a time")
        self._iterating = True
        try:
            while not self._pairs and self._more:
                page = await self._read(self._after)
                pairs = await in_parts(self._visible, page.pairs)
                if self._more:  # it was not closed meanwhile
                    self._take(page, pairs)
        finally:
            self._iterating = False
        if not self._pairs:
            raise StopAsyncIteration
        return self._pairs.popleft()

    async def aclose(self) -> None:
        """End the scan; a pending or later ``anext`` ends the iteration."""
        self._more = False
        self._pairs.clear()

    def _take(self, page: Page, pairs: Sequence[KVPair]) -> None:
        if page.pairs:
            self._after = page.pairs[-1].key
        self._pairs.extend(pairs)
        self._is_empty = self._is_empty and not pairs
        self._more = page.more
        if self._is_empty and not self._more and not page.exists:
            error = self._missing()
            if error is not None:
                raise error

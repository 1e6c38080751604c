"""A watch seen through a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Self, TypeVar

from aiolibkv.iteration import ClosableIterator
from aiolibkv.protocol import Watch

S = TypeVar("S")
T = TypeVar("T")

_NOTHING = object()


class View(ClosableIterator, Generic[S, T]):
    """What a function makes of a watch's items; a result equal to the one before is left out.

    What is handed out is a copy: its user may change it.
    """

    def __init__(self, watch: Watch[S], function: Callable[[S], T], copy: Callable[[T], T]) -> None:
        """Make a view; the watch starts with it.

        Args:
            watch: what is seen.
            function: makes of each item what is yielded.
            copy: makes a copy that shares with what it is made of nothing that can be changed.
        """
        self._watch = watch
        self._function = function
        self._copy = copy
        self._last: object = _NOTHING

    @property
    def is_stale(self) -> bool:
        """Tell whether the watch is cut off from the server, so that the last item may be out of date."""
        return self._watch.is_stale

    async def __anext__(self) -> T:
        while True:
            item = self._function(await anext(self._watch))
            if item != self._last:
                self._last = item
                return self._copy(item)

    async def __aenter__(self) -> Self:
        await self._watch.__aenter__()
        return self

    async def aclose(self) -> None:
        """Release the watch."""
        await self._watch.aclose()

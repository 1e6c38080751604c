"""Work on long sequences, a part at a time, so that other tasks run meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 2000
"""Items; about 2 ms, where each is looked at."""


async def in_parts(work: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]) -> Sequence[R]:
    """Apply work to a sequence, to a long one in parts; return what it returns, joined."""
    if len(items) <= AT_ONCE:
        return work(items)
    made: list[R] = []
    for start in range(0, len(items), AT_ONCE):
        made += work(items[start : start + AT_ONCE])
        await asyncio.sleep(0)
    return made

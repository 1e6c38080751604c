"""Pauses between attempts."""

from __future__ import annotations

from collections.abc import Iterator
from random import uniform

FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5


def growing_pauses(first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE) -> Iterator[float]:
    """Yield the seconds to wait before each next attempt: exponential backoff with jitter.

    After a success begin with a new iterator.

    Args:
        first: seconds; the first pause is this long at most, and half of it at least.
        longest: seconds; no pause is longer.
    """
    pause = min(first, longest)
    while True:
        yield pause * uniform(0.5, 1.0)
        pause = min(pause * 2, longest)

"""What a measurement is, and what it is given."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from subjects import Subject

Figures = dict[str, float]
"""Numbers by their names, which end with the unit, as in "CPU, us". The first is what subjects are compared by."""


@dataclass(frozen=True)
class Measurement:
    """Something that is measured on each subject that can do it.

    Attributes:
        name: what it is called in the results.
        needs: the method that a subject must have.
        unit: what there is more of at a larger size: task, watch, waiter, key.
        sizes: what is measured.
        measure: takes the bench, a size and about how many seconds there are.
        is_fresh: measured in a new process each time, by a subject that has not connected.
        most_rounds: as many rounds are enough, since one is long.
    """

    name: str
    needs: str
    unit: str
    sizes: Sequence[int]
    measure: Callable[[Bench, int, float], Awaitable[Figures]]
    is_fresh: bool = False
    most_rounds: int = 1_000

    def counted(self, size: int) -> str:
        """Return a size in words."""
        plural = "es" if self.unit.endswith("ch") else "s"
        return f"{size} {self.unit}{plural if size != 1 else ''}"


class Bench:
    """A subject in a process of its own, and what measurements keep from round to round.

    Attributes:
        subject: what is measured.
        root: the directory of its keys, so that subjects do not meet.
        value: what is written.
        first_key: a key that is there, where another process can see it.
        rates: how many operations a second there were last, by operation and size.
        swapped: what the last compare-and-swap of a key has returned.
    """

    def __init__(self, subject: Subject, value: bytes) -> None:
        """Take a subject."""
        self.subject = subject
        self.root = subject.name
        self.value = value
        self.first_key = f"{subject.name}/first"
        self.rates: dict[tuple[object, int], float] = {}
        self.swapped: dict[str, object] = {}
        self._others: list[Subject] = []

    async def others(self, count: int) -> Sequence[Subject]:
        """Return so many more of the same kind, connected, as other processes would have."""
        while len(self._others) < count:
            other = type(self.subject)(self.subject.url)
            self._others.append(await self.subject.stack.enter_async_context(other))
        return self._others[:count]


class Spent:
    """What a block has taken.

    Attributes:
        seconds: by the clock.
        cpu: seconds of this process's CPU, all its threads.
    """

    seconds: float
    cpu: float


@contextmanager
def spending() -> Iterator[Spent]:
    """Measure a block; what it has taken is known when it ends."""
    spent = Spent()
    cpu, began = time.process_time(), time.perf_counter()
    yield spent
    spent.seconds, spent.cpu = time.perf_counter() - began, time.process_time() - cpu

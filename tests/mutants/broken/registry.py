"""The list of the mutants."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.backends.memory.space import Space
from aiolibkv.testing.conformance.suite import Suite

Mutant = Callable[[pytest.MonkeyPatch], None]

MUTANTS: dict[str, Mutant] = {}
"""The mutants by name; each breaks the memory backend through the patch that it is given."""

FIRST: dict[str, type[Suite]] = {}
"""The part of the suite that a mutant is run against first; the others follow."""


def mutant(first: type[Suite]) -> Callable[[Mutant], Mutant]:
    """Add a mutant to the list."""

    def register(break_it: Mutant) -> Mutant:
        MUTANTS[break_it.__name__] = break_it
        FIRST[break_it.__name__] = first
        return break_it

    return register


def space_of(driver: MemoryDriver) -> Space:
    """Return what a connected driver works on."""
    assert driver.space is not None
    return driver.space

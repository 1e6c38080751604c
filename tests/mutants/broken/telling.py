"""What a store tells its listener, broken."""

from __future__ import annotations

from typing import Any

import pytest

from aiolibkv.events import CallEnded, Event, LockAcquired
from aiolibkv.store.calls import Calls
from aiolibkv.store.locks import Locks
from aiolibkv.testing.conformance.telling import Telling
from mutants.broken.registry import mutant


def _patch_tell(patch: pytest.MonkeyPatch, kind: type[Event], times: int) -> None:
    tell = Calls.tell

    def other(self: Calls, told: type[Event], *values: object, endpoint: str | None = None) -> None:
        for _ in range(times if told is kind else 1):
            tell(self, told, *values, endpoint=endpoint)

    patch.setattr(Calls, "tell", other)


@mutant(Telling)
def calls_are_told_twice(patch: pytest.MonkeyPatch) -> None:
    """A call is told when it ended, and once more."""
    _patch_tell(patch, CallEnded, 2)


@mutant(Telling)
def acquiring_is_not_told(patch: pytest.MonkeyPatch) -> None:
    """Nobody hears that a lock is held."""
    _patch_tell(patch, LockAcquired, 0)


@mutant(Telling)
def closing_is_told_as_a_loss(patch: pytest.MonkeyPatch) -> None:
    """The locks that a store gives up when it is closed are told as lost."""

    def lose_all(self: Locks) -> None:
        for held in tuple(self._held):
            held.lose("the store is closed")

    patch.setattr(Locks, "lose_all", lose_all)


@mutant(Telling)
def listeners_break_calls(patch: pytest.MonkeyPatch) -> None:
    """What a listener raises comes out of the call."""

    def tell(self: Calls, kind: Any, *values: object, endpoint: str | None = None) -> None:
        if self.listener is not None:
            self.listener(kind(self.driver.name, endpoint or self.driver.hosts(), *values))

    patch.setattr(Calls, "tell", tell)

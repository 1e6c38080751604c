"""What an outage does to stores, broken."""

# ruff: noqa: ARG001, ARG005 - what is patched keeps its signature

from __future__ import annotations

import pytest

from aiolibkv import KVPair
from aiolibkv.store import Feed
from aiolibkv.store.calls import Deadlines
from aiolibkv.store.outages import Outages, _Outage
from aiolibkv.testing.conformance.outages import Outages as Suite
from mutants.broken.registry import mutant


@mutant(Suite)
def outages_are_told_again_and_again(patch: pytest.MonkeyPatch) -> None:
    """What waits is told each time that it has failed."""
    failed = Outages.failed

    def again(self: Outages, waiter: object, error: object) -> None:
        failed(self, waiter, error)  # type: ignore[arg-type]
        outage = self._outages[self._reason_of[waiter]]
        if outage.told_since is not None:
            self._tell(outage)

    patch.setattr(Outages, "failed", again)


@mutant(Suite)
def ends_of_outages_are_not_told(patch: pytest.MonkeyPatch) -> None:
    """Nobody hears that an outage is over."""
    patch.setattr(Outages, "healed", Outages.ended)
    patch.setattr(Outages, "call_answered", lambda self: None)


@mutant(Suite)
def who_begins_again_is_in_another_outage(patch: pytest.MonkeyPatch) -> None:
    """An outage ends with the first call that fails."""
    patch.setattr(Outages, "call_failed", lambda self, error, since: None)

    def note(self: _Outage, error: object, since: float) -> None:
        self.error = error or self.error  # type: ignore[assignment]

    patch.setattr(_Outage, "note", note)


@mutant(Suite)
def calls_take_longer_than_their_timeout(patch: pytest.MonkeyPatch) -> None:
    """A call may take ten times its request_timeout."""
    init = Deadlines.__init__
    patch.setattr(Deadlines, "__init__", lambda self, limit: init(self, 10 * limit))


@mutant(Suite)
def watches_are_never_stale(patch: pytest.MonkeyPatch) -> None:
    """A watch does not tell that it is cut off."""
    patch.setattr(Feed, "is_stale", property(lambda self: False, lambda self, is_stale: None), raising=False)


@mutant(Suite)
def what_goes_in_an_outage_stays_in_the_watch(patch: pytest.MonkeyPatch) -> None:
    """A deletion that a watch has missed is missing for good."""
    push = Feed._push

    def without_deletions(self: Feed, changed: dict[str, KVPair | None], index: int) -> None:
        push(self, {key: pair for key, pair in changed.items() if pair is not None or not self.is_stale}, index)

    patch.setattr(Feed, "_push", without_deletions)

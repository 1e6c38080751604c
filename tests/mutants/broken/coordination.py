"""Elections, discovery and mirrors, broken."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiolibkv import Candidate, Discovery, HeldLock, KVPair, LockLostError, Mirror, Registration, Snapshot
from aiolibkv.coordination import mirror, view
from aiolibkv.coordination.election import Campaign, Election
from aiolibkv.coordination.holding import WhileHeld
from aiolibkv.testing.conformance.coordinating import Coordinating
from aiolibkv.testing.conformance.electing import Electing
from aiolibkv.testing.conformance.mirroring import Mirroring
from mutants.broken.registry import mutant


@mutant(Electing)
def candidates_lead_from_the_start(patch: pytest.MonkeyPatch) -> None:
    """Every candidate believes that it leads."""
    patch.setattr(Candidate, "is_leader", property(lambda _: True))


@mutant(Electing)
def who_resigns_goes_on(patch: pytest.MonkeyPatch) -> None:
    """The body of a leadership that is lost, or given up by another task, is not told."""
    patch.setattr(WhileHeld, "cancel", lambda _: None)


@mutant(Electing)
def stopped_leaders_stay(patch: pytest.MonkeyPatch) -> None:
    """A candidate that resigns keeps the lock."""

    async def stay(self: Candidate) -> None:
        """Do nothing."""

    patch.setattr(Candidate, "resign", stay)


@mutant(Electing)
def ghost_leaders(patch: pytest.MonkeyPatch) -> None:
    """A campaign goes on when nobody refers to its election any more."""
    patch.setattr(Campaign, "leave_from_anywhere", lambda _: None)


@mutant(Electing)
def closed_elections_lead(patch: pytest.MonkeyPatch) -> None:
    """A campaign goes on when its election is closed."""

    async def forget(self: Election) -> None:
        self._is_closed = True

    patch.setattr(Election, "aclose", forget)


@mutant(Electing)
def lost_work_is_not_awaited(patch: pytest.MonkeyPatch) -> None:
    """The next campaign begins while work still ends whose leadership was lost."""

    async def run(self: Candidate, work: Callable[[HeldLock], Awaitable[Any]]) -> Any:
        while True:
            try:
                async with self.lead() as held:
                    working = asyncio.ensure_future(work(held))
                    try:
                        return await asyncio.shield(working)
                    except asyncio.CancelledError:
                        working.cancel()
                        raise
            except LockLostError:
                if self._is_stopped:
                    raise

    patch.setattr(Candidate, "run", run)


@mutant(Electing)
def leadership_is_given_up_before_its_work_ends(patch: pytest.MonkeyPatch) -> None:
    """Who resigns lets another one lead at once."""

    async def resign(self: Candidate) -> None:
        if self.is_leader:
            await self._lock.release()

    patch.setattr(Candidate, "resign", resign)


@mutant(Electing)
def who_waits_to_lead_is_not_stopped(patch: pytest.MonkeyPatch) -> None:
    """A stopped candidate is elected later."""
    stop = Candidate.stop

    async def later(self: Candidate) -> None:
        self._waits.clear()
        await stop(self)

    patch.setattr(Candidate, "stop", later)


@mutant(Coordinating)
def registrations_do_not_heal(patch: pytest.MonkeyPatch) -> None:
    """A registration that was deleted stays deleted."""

    async def leave(self: Registration) -> None:
        """Do nothing."""

    patch.setattr(Registration, "_register_again", leave)


@mutant(Coordinating)
def what_is_compared_is_handed_out(patch: pytest.MonkeyPatch) -> None:
    """A consumer that changes its list of instances misses what happens next."""
    patch.setattr(view, "copy", lambda item: item)


@mutant(Coordinating)
def unreadable_registrations_are_told_again_and_again(patch: pytest.MonkeyPatch) -> None:
    """A warning at each look."""
    read = Discovery._read

    def forget(self: Discovery, pair: KVPair) -> Any:
        self._unreadable.clear()
        return read(self, pair)

    patch.setattr(Discovery, "_read", forget)


@mutant(Mirroring)
def mirrors_do_not_wait(patch: pytest.MonkeyPatch) -> None:
    """A mirror that has not seen a write yet is said to reflect it."""

    async def at_once(self: Mirror, index: int) -> None:
        """Do nothing."""

    patch.setattr(Mirror, "_reach", at_once)


@mutant(Mirroring)
def mirrors_that_are_left_are_read(patch: pytest.MonkeyPatch) -> None:
    """A mirror that was left goes on to answer."""
    patch.setattr(Mirror, "_check", lambda _: None)


@mutant(Mirroring)
def changes_are_those_of_the_mirror(patch: pytest.MonkeyPatch) -> None:
    """A slow consumer is told of the last change only."""

    def last(_: Snapshot, after: Snapshot) -> Any:
        return list(after.changes)

    patch.setattr(mirror, "_differences", last)

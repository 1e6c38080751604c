"""What is made of a store, broken."""

# ruff: noqa: ARG001, ARG005 - what is patched keeps its signature

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import pytest

from aiolibkv import (
    Candidate,
    Discovery,
    HeldLock,
    KVPair,
    LockLostError,
    Mirror,
    PeriodicJob,
    Registration,
    Semaphore,
    Snapshot,
)
from aiolibkv.coordination import discovery, mirror, periodic, readwrite, semaphore
from aiolibkv.coordination.election import Campaign, Election
from aiolibkv.coordination.holding import WhileHeld
from aiolibkv.coordination.line import PlaceLock
from aiolibkv.testing.conformance.coordinating import Coordinating
from aiolibkv.testing.conformance.electing import Electing
from aiolibkv.testing.conformance.mirroring import Mirroring
from aiolibkv.testing.conformance.permitting import Permitting
from aiolibkv.testing.conformance.repeating import Repeating
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
    patch.setattr(discovery, "_copies", lambda instances: instances)


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


@mutant(Permitting)
def permits_are_kept_after_a_cancellation(patch: pytest.MonkeyPatch) -> None:
    """Who is cancelled while it waits leaves its place in the line."""

    async def stay(self: PlaceLock, held: HeldLock) -> bool:
        try:
            return await wait(self, held)
        except asyncio.CancelledError:
            self._held = held
            raise

    wait = PlaceLock._wait
    patch.setattr(PlaceLock, "_wait", stay)


@mutant(Permitting)
def one_permit_too_many(patch: pytest.MonkeyPatch) -> None:
    """The number of permits counts who is ahead and not who holds."""

    async def admit(self: Semaphore, pairs: Sequence[KVPair], ahead: Sequence[KVPair], *, is_current: bool) -> bool:
        return await admitted(self, pairs, ahead[1:], is_current=is_current)

    admitted = Semaphore._is_admitted
    patch.setattr(Semaphore, "_is_admitted", admit)


@mutant(Permitting)
def who_waits_is_passed(patch: pytest.MonkeyPatch) -> None:
    """The last one in the line is served first."""

    async def reverse(self: PlaceLock, pairs: Sequence[KVPair], held: HeldLock, **options: bool) -> bool:
        turned = [KVPair(pair.key, pair.value, -pair.last_index) for pair in pairs]
        return await in_order(self, turned, held, **options)

    in_order = PlaceLock._is_next
    patch.setattr(PlaceLock, "_is_next", reverse)


@mutant(Permitting)
def numbers_of_permits_may_differ(patch: pytest.MonkeyPatch) -> None:
    """Each process has a number of its own."""
    patch.setattr(Semaphore, "_agree", lambda self, _: self._permits)


@mutant(Permitting)
def programs_of_a_replaced_number_fail(patch: pytest.MonkeyPatch) -> None:
    """Who has not heard of a resize is refused."""
    numbers = semaphore._numbers
    patch.setattr(semaphore, "_numbers", lambda value: numbers(value)[:1])


@mutant(Permitting)
def a_writer_does_not_wait(patch: pytest.MonkeyPatch) -> None:
    """A writer enters while readers are ahead."""

    async def admit(self: PlaceLock, pairs: Sequence[KVPair], ahead: Sequence[KVPair], *, is_current: bool) -> bool:
        return not any(pair.value.startswith(b"write") for pair in ahead)

    patch.setattr(readwrite._Writing, "_is_admitted", admit)


@mutant(Permitting)
def readers_pass_a_writer_that_waits(patch: pytest.MonkeyPatch) -> None:
    """A reader enters whenever another one is ahead."""

    async def admit(self: PlaceLock, pairs: Sequence[KVPair], ahead: Sequence[KVPair], *, is_current: bool) -> bool:
        return not ahead or any(pair.value.startswith(b"read") for pair in ahead)

    patch.setattr(readwrite._Reading, "_is_admitted", admit)


@mutant(Repeating)
def slots_are_claimed_afterwards(patch: pytest.MonkeyPatch) -> None:
    """A slot whose work was cut short begins again."""

    async def run(self: PeriodicJob, work: Callable[[datetime, HeldLock], Awaitable[object]]) -> None:
        async def lead(held: HeldLock) -> None:
            while True:
                record = await self._read()
                slot = await self._wait_until_due(periodic._slot_of(record) or periodic._now() - self._due_at_first)
                await work(slot, held)
                await self._store.put(self._key, json.dumps({"slot": slot.isoformat()}).encode(), guard=held)

        await Candidate(self._store, self._leader, "one", ttl=self._ttl).run(lead)

    patch.setattr(PeriodicJob, "run", run)


@mutant(Repeating)
def each_missed_slot_is_made_up_for(patch: pytest.MonkeyPatch) -> None:
    """After a pause, every slot of it runs."""
    patch.setattr(PeriodicJob, "_latest", lambda self, slot, now: slot)


@mutant(Repeating)
def the_last_slot_is_not_asked_for(patch: pytest.MonkeyPatch) -> None:
    """Who is elected runs the present slot, whoever ran it before."""

    async def forget(self: PeriodicJob, last: datetime) -> datetime:
        return await wait(self, min(last, periodic._now() - self._due_at_first))

    wait = PeriodicJob._wait_until_due
    patch.setattr(PeriodicJob, "_wait_until_due", forget)

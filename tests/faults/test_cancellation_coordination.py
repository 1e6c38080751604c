"""Election, discovery and update, cancelled at each of their suspensions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from datetime import datetime
from typing import TypeVar

import pytest
import pytest_asyncio

from aiolibkv import (
    Candidate,
    Discovery,
    Follower,
    HeldLock,
    KVPair,
    Lock,
    Mirror,
    PeriodicJob,
    ReadWriteLock,
    Semaphore,
    update,
)
from aiolibkv.coordination import election as elections
from aiolibkv.testing.scale import eventually, scaled
from faults.single import Ground, Scene, on_scene
from faults.stepping import MOMENTS, every_step, steps

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]

T = TypeVar("T")

TTL = 60.0
SHORT_TTL = 2.0
"""Seconds, of registrations: for so long a store looks after what it gave up, lest it appears late."""
IDLE = 0.15
"""Seconds without a suspension after which a call has come to rest."""


@pytest_asyncio.fixture
async def scene(ground: Ground) -> AsyncIterator[Scene]:
    async with on_scene(ground, delete=False) as made:
        # Sessions of these lifetimes stay as long as the store.
        for each in (made.store, made.other):
            await each.put("alive", b"", ttl=SHORT_TTL, keep_alive=True)
            await each.delete("alive")
        await made.begin()
        yield made


async def awaited(call: Awaitable[T]) -> T:
    return await call


async def another_leads(scene: Scene) -> None:
    """Check that another candidate is elected, and that nothing is left when it has stopped."""
    candidate = Candidate(scene.other, "leader", "other", ttl=TTL)
    async with asyncio.timeout(scaled(10)), candidate.lead():
        assert candidate.is_leader
    await eventually(lambda: scene.is_free("leader"), within=10, message="nobody stands in line, and the key is gone")


# -- election ----------------------------------------------------------------------------------------------------------


async def test_an_iterator_of_an_election(scene: Scene) -> None:
    """The campaign goes on whoever asks for it, and the next anext tells what a cancelled one would have told."""
    for step in every_step():
        candidate = Candidate(scene.store, "leader", "me", ttl=TTL)
        election = candidate.run_for_election()
        assert await anext(election) is False
        if await step(awaited(anext(election))) is None:
            assert await asyncio.wait_for(anext(election), scaled(10)) is True
        await candidate.stop()
        await another_leads(scene)


async def test_a_campaign_that_waits(scene: Scene) -> None:
    for step in every_step():
        async with Candidate(scene.other, "leader", "other", ttl=TTL).lead() as held:
            candidate = Candidate(scene.store, "leader", "me", ttl=TTL)
            election = candidate.run_for_election()
            assert await anext(election) is False
            waiting = asyncio.ensure_future(awaited(anext(election)))
            await step(candidate.stop())
            with pytest.raises(StopAsyncIteration):
                await asyncio.wait_for(anext(election), scaled(10))
            await asyncio.wait({waiting})
            assert isinstance(waiting.exception(), StopAsyncIteration | RuntimeError)
            assert held.is_held
        await another_leads(scene)


async def test_stop_of_a_leader(scene: Scene) -> None:
    for step in every_step():
        candidate = Candidate(scene.store, "leader", "me", ttl=TTL)
        election = candidate.run_for_election()
        while not await anext(election):
            pass
        await step(candidate.stop())
        await eventually(lambda: not candidate.is_leader, within=10, message="it does not lead any more")  # noqa: B023
        await another_leads(scene)


async def test_resign(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The campaign goes on behind the others; there is nobody to wait for."""
    monkeypatch.setattr(elections, "_STANDING_BACK", 0)
    for step in every_step():
        candidate = Candidate(scene.store, "leader", "me", ttl=TTL)
        election = candidate.run_for_election()
        while not await anext(election):
            pass
        await step(candidate.resign())
        async with asyncio.timeout(scaled(10)):
            while not candidate.is_leader:
                await anext(election)
        await candidate.stop()
        await another_leads(scene)


async def work_as_leader(scene: Scene, candidate: Candidate) -> None:
    async with candidate.lead() as held:
        await scene.store.put("work", b"", guard=held)
        await scene.store.delete("work", guard=held)


async def test_lead(scene: Scene) -> None:
    for step in every_step():
        candidate = Candidate(scene.store, "leader", "me", ttl=TTL)
        await step(work_as_leader(scene, candidate))
        assert not candidate.is_leader
        if await scene.other.exists("work"):
            await scene.other.delete("work")
        await another_leads(scene)


async def test_lead_behind_another(scene: Scene) -> None:
    for moment in MOMENTS:
        async with Candidate(scene.other, "leader", "other", ttl=TTL).lead() as held:
            for step in steps(moment):
                await step(Candidate(scene.store, "leader", "me", ttl=TTL).lead().__aenter__(), idle=IDLE)
            assert held.is_held
        await another_leads(scene)


async def test_run(scene: Scene) -> None:
    async def work(held: HeldLock) -> None:
        await scene.store.put("work", b"", guard=held)
        await scene.store.delete("work", guard=held)

    for step in every_step():
        candidate = Candidate(scene.store, "leader", "me", ttl=TTL)
        await step(candidate.run(work))
        assert not candidate.is_leader
        if await scene.other.exists("work"):
            await scene.other.delete("work")
        await another_leads(scene)


async def test_closing_an_election(scene: Scene) -> None:
    for step in every_step():
        candidate = Candidate(scene.store, "leader", "me", ttl=TTL)
        election = candidate.run_for_election()
        while not await anext(election):
            pass
        await step(election.aclose())
        await eventually(lambda: not candidate.is_leader, within=10, message="it does not lead any more")  # noqa: B023
        await another_leads(scene)


async def first_leader(follower: Follower) -> str | None:
    async with follower.follow_election() as leaders:
        return await anext(leaders)


async def test_a_follower(scene: Scene) -> None:
    async with Candidate(scene.other, "leader", "one", ttl=TTL).lead():
        for step in every_step():
            follower = Follower(scene.store, "leader")
            assert await step(first_leader(follower)) in ("one", None)
    await another_leads(scene)


# -- discovery ---------------------------------------------------------------------------------------------------------


async def nobody_is_registered(scene: Scene) -> bool:
    return not await Discovery(scene.other, "services").instances("web") and await scene.is_free("services")


async def test_registering(scene: Scene) -> None:
    """Whoever was cancelled while entering is not registered."""
    for step in every_step():
        registration = Discovery(scene.store, "services").register("web", "h:1", ttl=SHORT_TTL)
        if await step(registration.__aenter__()) is not None:
            await registration.__aexit__(None, None, None)
        await eventually(lambda: nobody_is_registered(scene), within=10, message="nobody is registered")


async def test_leaving(scene: Scene) -> None:
    for step in every_step():
        registration = Discovery(scene.store, "services").register("web", "h:1", ttl=SHORT_TTL)
        await registration.__aenter__()
        await step(registration.__aexit__(None, None, None))
        await eventually(lambda: nobody_is_registered(scene), within=10, message="nobody is registered")


async def test_the_whole_of_a_registration(scene: Scene) -> None:
    """Also while the key is put back that somebody deleted."""

    async def stand() -> None:
        async with Discovery(scene.store, "services").register("web", "h:1", id="a", ttl=SHORT_TTL):
            await scene.other.delete("services/web/a")
            while not await scene.other.exists("services/web/a"):
                await asyncio.sleep(0)

    for step in every_step(("waiting",)):
        await step(stand())
        await eventually(lambda: nobody_is_registered(scene), within=10, message="nobody is registered")


async def test_reading_services(scene: Scene) -> None:
    async with Discovery(scene.other, "services").register("web", "h:1", ttl=SHORT_TTL) as registration:
        here = Discovery(scene.store, "services")
        for step in every_step():
            assert await step(awaited(here.instances("web"))) in ([registration.instance], None)
        for step in every_step():
            assert await step(awaited(here.services())) in (["web"], None)


async def test_watching_services(scene: Scene) -> None:
    here, there = Discovery(scene.store, "services"), Discovery(scene.other, "services")
    for step in every_step():
        async with here.watch("web") as watch:
            assert await anext(watch) == []
            run = step.start(awaited(anext(watch)))
            async with there.register("web", "h:1", ttl=SHORT_TTL) as registration:
                if await run.end() is None:
                    assert await asyncio.wait_for(anext(watch), scaled(10)) == [registration.instance]


async def test_a_mirror(scene: Scene) -> None:
    async def reflect() -> None:
        async with Mirror(scene.store, "config") as mirror:
            await mirror.wait_for(pair.last_index)
            assert mirror.get("config/a") == pair

    pair = await scene.other.put("config/a", b"")
    for step in every_step():
        await step(reflect())
    await scene.other.delete("config/a")


# -- semaphores, readers and writers, jobs ----------------------------------------------------------------------------


async def hold(lock: Lock) -> None:
    async with lock as held:
        assert held.is_held


async def test_a_semaphore(scene: Scene) -> None:
    await scene.other.put("pool/permits", b"1")
    for step in every_step():
        await step(hold(Semaphore(scene.store, "pool", permits=1, ttl=TTL)))
        await eventually(lambda: scene.is_free("pool/line"), within=10, message="nobody stands in line")
    assert await Semaphore(scene.other, "pool", permits=1, ttl=TTL).try_acquire() is not None
    await scene.other.delete_tree("pool")


async def test_a_semaphore_that_is_full(scene: Scene) -> None:
    await scene.other.put("pool/permits", b"1")
    for moment in MOMENTS:
        async with Semaphore(scene.other, "pool", permits=1, ttl=TTL) as held:
            for step in steps(moment):
                await step(Semaphore(scene.store, "pool", permits=1, ttl=TTL).acquire(), idle=IDLE)
            assert held.is_held
        await eventually(lambda: scene.is_free("pool/line"), within=10, message="nobody stands in line")
    await scene.other.delete_tree("pool")


async def test_a_reader_and_a_writer(scene: Scene) -> None:
    here = ReadWriteLock(scene.store, "table", ttl=TTL)
    for make in (here.reading, here.writing):
        for step in every_step():
            await step(hold(make()))
            await eventually(lambda: scene.is_free("table"), within=10, message="nobody stands in line")


async def test_a_periodic_job(scene: Scene) -> None:
    slots: list[datetime] = []

    async def work(slot: datetime, held: HeldLock) -> None:
        slots.append(slot)
        await scene.store.put("work", b"", guard=held)
        raise ZeroDivisionError

    async def run() -> None:
        with pytest.raises(ZeroDivisionError):
            await PeriodicJob(scene.store, "job", every=0.01, ttl=TTL).run(work)

    for step in every_step():
        await step(run())
        await eventually(lambda: scene.is_free("job/leader"), within=10, message="nobody leads")
    assert slots == sorted(set(slots))
    for key in ("work", "job/slot"):
        await scene.other.delete(key)


# -- update ------------------------------------------------------------------------------------------------------------


async def test_update(scene: Scene) -> None:
    """A cancelled one counts once, or not at all."""

    def add(value: bytes | None) -> bytes:
        return b"%d" % (int(value or b"0") + 1)

    async def both() -> KVPair:
        """Update while another does, so that it begins again now and then."""
        return await update(scene.store, "counter", add)

    counted = 0
    for step in every_step():
        other = asyncio.ensure_future(update(scene.other, "counter", add))
        await step(both())
        await other
        # What was cancelled may be carried out late.
        pair = await update(scene.other, "counter", add)
        assert int(pair.value) - counted in (2, 3), (counted, pair)
        counted = int(pair.value)
    await scene.other.delete("counter")

"""Leader election: campaigns that live as long as who wants them, terms, and work that exactly one node does."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from aiolibkv import (
    AsyncStore,
    Candidate,
    CannotLockError,
    Election,
    Follower,
    HeldLock,
    KeyNotFoundError,
    LockLostError,
    StoreClosedError,
)
from aiolibkv.coordination import election as elections
from aiolibkv.testing.conformance.suite import Stores, Suite
from aiolibkv.testing.scale import eventually, scaled

_TTL = 15.0


class Electing(Suite):
    """Exactly one of many nodes."""

    async def test_candidates_lead_one_after_the_other(
        self, store: AsyncStore, other: AsyncStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who resigns is behind the others, also behind one that has just begun."""
        monkeypatch.setattr(elections, "_STANDING_BACK", scaled(0.5))
        one, two = Candidate(store, "leader", "one", ttl=_TTL), Candidate(other, "leader", "two", ttl=_TTL)
        follower = Follower(other, "leader")
        async with asyncio.timeout(scaled(20)), follower.follow_election() as leaders:
            assert await anext(leaders) is None
            first, second = one.run_for_election(), two.run_for_election()
            assert await anext(first) is False
            assert await anext(first) is True
            assert await anext(second) is False
            assert (one.is_leader, two.is_leader) == (True, False)
            assert await anext(leaders) == "one"
            await one.resign()
            assert await anext(first) is False
            assert await anext(second) is True
            while await anext(leaders) != "two":
                pass
            assert follower.leader == "two"
            await two.stop()
            with pytest.raises(StopAsyncIteration):
                await anext(second)
            assert await anext(first) is True
            await one.stop()
            while await anext(leaders) is not None:
                pass
        assert await store.list("") == []

    async def test_a_leader_that_is_deposed_is_told(self, store: AsyncStore, other: AsyncStore) -> None:
        candidate = Candidate(store, "leader", "one", ttl=_TTL)
        async with asyncio.timeout(scaled(20)):
            election = candidate.run_for_election()
            assert [await anext(election), await anext(election)] == [False, True]
            await other.delete("leader")
            assert await anext(election) is False
            assert await anext(election) is True
        await candidate.stop()
        with pytest.raises(LockLostError):
            async with Candidate(store, "leader", "one", ttl=_TTL).lead() as held:
                assert (await other.get("leader")).value == b"one"
                await other.put("leader", b"usurper")
                await asyncio.get_running_loop().create_future()
        assert not held.is_held

    @pytest.mark.parametrize("how", ["resign", "stop"])
    async def test_who_gives_up_the_leadership_leads_no_more(
        self, store: AsyncStore, other: AsyncStore, how: str
    ) -> None:
        """What the leader does ends before another one begins."""
        one, two = Candidate(store, "leader", "one", ttl=_TTL), Candidate(other, "leader", "two", ttl=_TTL)
        leading: list[str] = []

        async def lead(candidate: Candidate) -> None:
            async with candidate.lead():
                leading.append(candidate.node)
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    leading.remove(candidate.node)

        async def give_up(candidate: Candidate) -> None:
            await (candidate.resign() if how == "resign" else candidate.stop())

        tasks = []
        try:
            async with asyncio.timeout(scaled(20)):
                for candidate in (one, two):
                    tasks.append(asyncio.ensure_future(lead(candidate)))
                    while leading != [candidate.node]:
                        await asyncio.sleep(0.01)
                    await give_up(candidate)
                    assert not candidate.is_leader
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            with pytest.raises(LockLostError):
                task.result()

    async def test_an_election_ends_with_its_store(self, stores: Stores) -> None:
        store = await stores.open()
        candidate = Candidate(store, "leader", "one", ttl=_TTL)
        election = candidate.run_for_election()
        async with asyncio.timeout(scaled(20)):
            assert await anext(election) is False
            assert await anext(election) is True
            await store.close()
            assert await anext(election) is False
            with pytest.raises(StoreClosedError):
                await anext(election)
            await candidate.stop()

    async def test_many_followers_see_each_leader(self, store: AsyncStore, other: AsyncStore) -> None:
        """Three candidates, each stopped while it leads: always one leader, and a new one each time."""
        candidates = [
            Candidate(each, "leader", node, ttl=_TTL) for each, node in ((store, "a"), (other, "b"), (store, "c"))
        ]
        elections = [candidate.run_for_election() for candidate in candidates]
        seen: list[str | None] = []

        async def campaign(number: int) -> None:
            async for elected in elections[number]:
                if elected:
                    assert [candidate.is_leader for candidate in candidates].count(True) == 1
                    while seen[-1:] != [candidates[number].node]:
                        await asyncio.sleep(0.01)
                    await candidates[number].stop()

        async def follow() -> None:
            async for leader in Follower(other, "leader").follow_election():
                seen.append(leader)
                if leader is None and len({name for name in seen if name}) == len(candidates):
                    return

        async with asyncio.timeout(scaled(30)):
            await asyncio.gather(follow(), *(campaign(number) for number in range(len(candidates))))
        assert sorted(name for name in seen if name) == ["a", "b", "c"]

    @pytest.mark.parametrize("how", ["break", "cancelled", "failed", "aclose", "block"])
    async def test_a_campaign_ends_with_who_iterates(self, store: AsyncStore, other: AsyncStore, how: str) -> None:
        """A leader whose loop is over leads no more, whatever ended the loop."""
        candidate = Candidate(store, "leader", "one", ttl=_TTL)
        leads = asyncio.Event()

        async def follow() -> None:
            if how == "block":
                async with candidate.run_for_election() as election:
                    await _first_term(election)
                return
            if how == "aclose":
                async with aclosing(candidate.run_for_election()) as election:
                    await _first_term(election)
                return
            async for elected in candidate.run_for_election():
                if elected:
                    leads.set()
                    if how == "break":
                        break
                    if how == "failed":
                        raise ZeroDivisionError

        task = asyncio.ensure_future(follow())
        async with asyncio.timeout(scaled(20)):
            if how == "cancelled":
                await leads.wait()
                task.cancel()
            await asyncio.wait({task})
            assert task.cancelled() == (how == "cancelled")
            if how != "cancelled":
                assert isinstance(task.exception(), ZeroDivisionError | None)
            async with Candidate(other, "leader", "two", ttl=_TTL).lead():
                assert not candidate.is_leader
            # It may campaign again.
            async with candidate.run_for_election() as election:
                await _first_term(election)
        assert await store.list("") == []

    async def test_elections_of_a_candidate_share_its_campaign(self, store: AsyncStore, other: AsyncStore) -> None:
        candidate = Candidate(store, "leader", "one", ttl=_TTL)
        async with asyncio.timeout(scaled(20)), candidate.run_for_election() as first:
            await _first_term(first)
            async with candidate.run_for_election() as second:
                assert [await anext(second), await anext(second)] == [False, True]
            with pytest.raises(StopAsyncIteration):
                await anext(second)
            assert candidate.is_leader
            assert (await other.get("leader")).value == b"one"
        assert not candidate.is_leader

    async def test_stop_ends_who_waits_to_lead(self, store: AsyncStore, other: AsyncStore) -> None:
        async with asyncio.timeout(scaled(20)), Candidate(other, "leader", "two", ttl=_TTL).lead() as held:
            for way in (_lead_for_ever, _run_for_ever):
                candidate = Candidate(store, "leader", "one", ttl=_TTL)
                waiting = asyncio.ensure_future(way(candidate))
                await asyncio.sleep(scaled(0.05))
                assert not waiting.done()
                await candidate.stop()
                with pytest.raises(LockLostError):
                    await waiting
                with pytest.raises(LockLostError):
                    await way(candidate)
            assert held.is_held
        assert await store.list("") == []

    async def test_run_gives_up_the_leadership_with_its_work(self, store: AsyncStore, other: AsyncStore) -> None:
        candidate = Candidate(store, "leader", "one", ttl=_TTL)

        async def report(held: HeldLock) -> int:
            assert candidate.is_leader
            await store.put("report", b"done", guard=held)
            return held.fencing_token

        async def fail(_: HeldLock) -> None:
            raise ZeroDivisionError

        async with asyncio.timeout(scaled(20)):
            assert await candidate.run(report) > 0
            assert not await other.exists("leader")
            with pytest.raises(ZeroDivisionError):
                await candidate.run(fail)
            assert not await other.exists("leader")
            running = asyncio.ensure_future(candidate.run(_for_ever))
            await eventually(lambda: other.exists("leader"), within=10, message="it is elected")
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert not await other.exists("leader")
        assert not candidate.is_leader

    @pytest.mark.parametrize("how", ["deleted", "resigned"])
    async def test_work_ends_before_the_next_campaign(self, store: AsyncStore, other: AsyncStore, how: str) -> None:
        candidate = Candidate(store, "leader", "one", ttl=_TTL)
        begun, cancelled, may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()
        terms: list[HeldLock] = []

        async def work(held: HeldLock) -> str:
            terms.append(held)
            if len(terms) == 2:
                return "the second term"
            begun.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                cancelled.set()
                await may_end.wait()
            return "never"

        async with asyncio.timeout(scaled(20)):
            running = asyncio.ensure_future(candidate.run(work))
            await begun.wait()
            giving_up = asyncio.ensure_future(candidate.resign() if how == "resigned" else other.delete("leader"))
            await cancelled.wait()
            await asyncio.sleep(scaled(0.05))
            assert len(terms) == 1
            assert (how == "resigned") == await other.exists("leader")
            may_end.set()
            assert await running == "the second term"
            await giving_up
        assert terms[1].fencing_token > terms[0].fencing_token

    async def test_a_resignation_that_is_cancelled_is_one(self, store: AsyncStore, other: AsyncStore) -> None:
        """Work ends and is awaited before the leadership is given up, also when it resigns in a task of its own."""
        candidate = Candidate(store, "leader", "one", ttl=_TTL)
        terms: list[HeldLock] = []
        cancelled, may_end = asyncio.Event(), asyncio.Event()

        async def work(held: HeldLock) -> str:
            terms.append(held)
            if len(terms) == 2:
                return "the second term"
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(candidate.resign())
            finally:
                cancelled.set()
                await may_end.wait()
            return "never"

        async with asyncio.timeout(scaled(20)):
            running = asyncio.ensure_future(candidate.run(work))
            await cancelled.wait()
            assert await other.exists("leader")
            may_end.set()
            assert await running == "the second term"
        assert not await other.exists("leader")

    @pytest.mark.parametrize("in_a_group", [False, True])
    async def test_work_whose_guard_is_refused_campaigns_again(
        self, store: AsyncStore, other: AsyncStore, *, in_a_group: bool
    ) -> None:
        candidate = Candidate(store, "leader", "one", ttl=_TTL)
        terms: list[HeldLock] = []

        async def work(held: HeldLock) -> None:
            terms.append(held)
            if len(terms) == 1:
                await other.delete("leader")
            write = store.put("report", b"%d" % len(terms), guard=held)
            if not in_a_group:
                await write
                return
            async with asyncio.TaskGroup() as group:
                group.create_task(write)

        async with asyncio.timeout(scaled(20)):
            await candidate.run(work)
        assert len(terms) == 2
        assert (await other.get("report")).value == b"2"

    async def test_a_loss_of_another_lock_is_what_work_raises(self, store: AsyncStore, other: AsyncStore) -> None:
        async def work(_: HeldLock) -> None:
            async with store.new_lock("another", ttl=_TTL):
                await other.delete("another")
                await asyncio.get_running_loop().create_future()

        async with asyncio.timeout(scaled(20)):
            with pytest.raises(LockLostError):
                await Candidate(store, "leader", "one", ttl=_TTL).run(work)

    async def test_a_candidate_leads_once_at_a_time(self, store: AsyncStore, other: AsyncStore) -> None:
        """Also while a body ends whose leadership was lost."""
        candidate = Candidate(store, "leader", "one", ttl=_TTL)
        ended = asyncio.Event()

        async def lead() -> None:
            async with candidate.lead():
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    await ended.wait()

        async with asyncio.timeout(scaled(20)):
            leading = asyncio.ensure_future(lead())
            await eventually(lambda: candidate.is_leader, within=10, message="it leads")
            election = candidate.run_for_election()
            assert await anext(election) is False
            with pytest.raises(CannotLockError):
                # It is elected already: this is told, then that no second campaign is possible.
                [await anext(election) for _ in range(2)]
            await other.delete("leader")
            await eventually(lambda: not candidate.is_leader, within=10, message="it is told")
            with pytest.raises(CannotLockError):
                await candidate.lead().__aenter__()
            ended.set()
            with pytest.raises(LockLostError):
                await leading
            async with candidate.lead():
                pass

    async def test_a_leader_that_resigns_by_itself_goes_on(self, store: AsyncStore, other: AsyncStore) -> None:
        candidate = Candidate(store, "leader", "one", ttl=_TTL)
        async with asyncio.timeout(scaled(20)), candidate.lead() as held:
            await candidate.resign()
            assert not held.is_held
            with pytest.raises(KeyNotFoundError):
                await other.get("leader")


async def _first_term(election: Election) -> None:
    while not await anext(election):
        pass


async def _for_ever(_: HeldLock) -> None:
    await asyncio.get_running_loop().create_future()


async def _lead_for_ever(candidate: Candidate) -> None:
    async with candidate.lead() as held:
        await _for_ever(held)


async def _run_for_ever(candidate: Candidate) -> None:
    await candidate.run(_for_ever)

"""Every write, with the answer to each of its requests lost in turn.

Whoever wrote is told the truth: the write is done, or it is in doubt; never that somebody else did it. It has at most
one effect, and what others wrote after it stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from aiolibkv import (
    AsyncStore,
    Discovery,
    HeldLock,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    KVPair,
    NotReachableError,
    RequestTimeoutError,
    Snapshot,
    update,
)
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from faults.single import GROUNDS, NETWORKED, Ground, Scene, on_scene

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]

T = TypeVar("T")

TTL = 60.0
SHORT_TTL = 2.0
MOST_REQUESTS = 40
WARM = "warm"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=NETWORKED)
async def ground(request: pytest.FixtureRequest) -> AsyncIterator[Ground]:
    async with GROUNDS[request.param]() as running:
        yield running


@dataclass
class Lossy:
    """A scene whose store is behind a proxy.

    Attributes:
        scene: its ``other`` goes straight to the server.
        proxy: the proxy.
        ttl: seconds of keys.
    """

    scene: Scene
    proxy: FaultProxy
    ttl: float

    @property
    def store(self) -> AsyncStore:
        return self.scene.store

    @property
    def direct(self) -> AsyncStore:
        return self.scene.other


@pytest_asyncio.fixture
async def lossy(ground: Ground) -> AsyncIterator[Lossy]:
    # A put that is in doubt leaves its session to the end of its ttl, and a registration is looked after as long.
    ttl = SHORT_TTL
    async with ground.proxy() as proxy, on_scene(ground, delete=True, endpoint=proxy.endpoint) as scene:
        for store in (scene.store, scene.other):
            # The session that keys of this ttl share stays as long as the store.
            await store.put(WARM, b"", ttl=ttl, keep_alive=True)
            await store.delete(WARM)
        await scene.begin()
        yield Lossy(scene, proxy, ttl)


class Loss:
    """An answer that is lost, or not: it depends on how many requests there are.

    Attributes:
        was_sent: whether there was such a request.
        happened: whether its answer was lost; what is cancelled may have none.
    """

    def __init__(self, proxy: FaultProxy, number: int) -> None:
        self._proxy = proxy
        self._number = number
        self.was_sent = self.happened = False
        self._cut_before = 0

    def begin(self, *, cut_off: bool) -> None:
        """Lose the answer to the request of the given number, from now on.

        Args:
            cut_off: whether the client cannot connect again for the time being.
        """

        self._cut_before = self._proxy.answers_cut
        self.was_sent = self.happened = False

        sent = self._proxy.requests
        counted = 0

        def is_the_one(request: bytes) -> bool:
            nonlocal sent, counted
            # Of a request that comes in pieces only the first counts, of a poll none: it may go on as long as it likes.
            if self._proxy.requests == sent or b"&wait=" in request:
                return False
            sent = self._proxy.requests
            counted += 1
            if counted != self._number:
                return False
            self.was_sent = True
            if cut_off:
                self._proxy.refuse()
            return True

        self._proxy.cut_answers(matching=is_the_one)

    async def over(self, call: asyncio.Future[Any]) -> None:
        """Wait until the answer is lost or the call is done without that."""
        await eventually(lambda: self._is_cut or call.done(), within=10, message="the answer is lost")
        if not self._is_cut:
            self.end()
        self.happened = self._is_cut

    async def during(self, call: Awaitable[T]) -> T | BaseException:
        """Lose the answer during a call, and return what it returned, or the error that it raised."""
        self.begin(cut_off=False)
        outcome = await outcome_of(asyncio.ensure_future(call))
        self.end()
        return outcome

    def end(self) -> None:
        """Lose nothing from now on."""
        self.happened = self._is_cut
        self._proxy.cut_answers(0)

    @property
    def _is_cut(self) -> bool:
        return self._proxy.answers_cut > self._cut_before


async def each_loss(lossy: Lossy) -> AsyncIterator[Loss]:
    """Give a loss for the first, the second... request, until one did not happen."""
    happened = number = 0
    for _ in range(MOST_REQUESTS):
        number += 1
        await lossy.store.exists(WARM)
        loss = Loss(lossy.proxy, number)
        yield loss
        lossy.proxy.heal()
        happened += loss.happened
        if not loss.was_sent:
            if happened:
                return
            # What was counted was a renewal, whose answer came after the call had ended.
            number = 0
    raise AssertionError(f"nothing was ever lost, or a call makes more than {MOST_REQUESTS} requests")


# -- writes of keys ----------------------------------------------------------------------------------------------------

Write = Callable[[Lossy, str, KVPair], Awaitable[object]]
"""Writes a key that is at a pair; the key with "new" at the end is absent."""

PUTS: dict[str, Write] = {
    "put": lambda lossy, key, _: lossy.store.put(key, b"new"),
    "put with ttl": lambda lossy, key, _: lossy.store.put(key, b"new", ttl=lossy.ttl),
    "put and keep alive": lambda lossy, key, _: lossy.store.put(key, b"new", ttl=lossy.ttl, keep_alive=True),
    "swap": lambda lossy, key, pair: lossy.store.atomic_put(key, b"new", pair),
    "swap with ttl": lambda lossy, key, pair: lossy.store.atomic_put(key, b"new", pair, ttl=lossy.ttl),
    "swap and keep alive": lambda lossy, key, pair: lossy.store.atomic_put(
        key, b"new", pair, ttl=lossy.ttl, keep_alive=True
    ),
}
CREATIONS: dict[str, Write] = {
    "put a new key": lambda lossy, key, _: lossy.store.put(key, b"new"),
    "put a new key with ttl": lambda lossy, key, _: lossy.store.put(key, b"new", ttl=lossy.ttl),
    "create": lambda lossy, key, _: lossy.store.atomic_put(key, b"new", None),
    "create with ttl": lambda lossy, key, _: lossy.store.atomic_put(key, b"new", None, ttl=lossy.ttl),
    "create and keep alive": lambda lossy, key, _: lossy.store.atomic_put(
        key, b"new", None, ttl=lossy.ttl, keep_alive=True
    ),
}
DELETIONS: dict[str, Write] = {
    "delete": lambda lossy, key, _: lossy.store.delete(key),
    "atomic_delete": lambda lossy, key, pair: lossy.store.atomic_delete(key, pair),
    "delete_tree": lambda lossy, key, _: lossy.store.delete_tree(key.rpartition("/")[0]),
}
FOREIGN = (KeyExistsError, KeyModifiedError, KeyNotFoundError)
"""Errors that tell of another's write."""


async def current(store: AsyncStore, key: str) -> KVPair | None:
    try:
        return await store.get(key)
    except KeyNotFoundError:
        return None


@asynccontextmanager
async def seen(store: AsyncStore, directory: str, marker: str) -> AsyncIterator[list[Snapshot]]:
    """Collect all states of a directory, up to a marker that is written at the end."""
    states: list[Snapshot] = []

    async def follow() -> None:
        async with store.watch_tree(directory) as watch:
            async for snapshot in watch:
                states.append(snapshot)
                if snapshot.get(marker) is not None:
                    return

    following = asyncio.ensure_future(follow())
    await eventually(lambda: states, within=10, message="the watch has begun")
    try:
        yield states
        await store.put(marker, b"")
        await asyncio.wait_for(following, scaled(10))
    finally:
        following.cancel()
        await asyncio.wait({following})


async def outcome_of(call: asyncio.Future[T]) -> T | BaseException:
    """Return what a call returned, or the error that it raised."""
    await asyncio.wait({call})
    return call.exception() or call.result()


def check_doubt(error: BaseException) -> None:
    """Check that an error says that a write may have been applied."""
    assert isinstance(error, NotReachableError | RequestTimeoutError), repr(error)
    assert error.maybe_applied


@pytest.mark.parametrize("later", [False, True], ids=["", "overwritten"])
@pytest.mark.parametrize("name", [*PUTS, *CREATIONS, *DELETIONS])
async def test_a_write(lossy: Lossy, name: str, *, later: bool) -> None:
    number = 0
    async for loss in each_loss(lossy):
        number += 1
        key = f"{number}/key"
        await lossy.direct.put(f"{number}/neighbour", b"")
        pair = await lossy.direct.put(key, b"old")
        if name in CREATIONS:
            await lossy.direct.delete(key)
        before = None if name in CREATIONS else pair
        wanted = None if name in DELETIONS else b"new"
        async with seen(lossy.direct, str(number), f"{number}/marker") as states:
            loss.begin(cut_off=later)
            call = asyncio.ensure_future((PUTS | CREATIONS | DELETIONS)[name](lossy, key, pair))
            await loss.over(call)
            was_lost = loss.happened
            after = await current(lossy.direct, key)
            was_applied = after != before
            last = await lossy.direct.put(key, b"by another") if later and was_lost else None
            lossy.proxy.accept()
            outcome = await outcome_of(call)
            found = await current(lossy.direct, key)
        said = f"{name}, number {number}: {outcome!r}, found {found!r}"
        if isinstance(outcome, BaseException):
            assert was_lost, said
            if was_applied or last is None:
                check_doubt(outcome)
            else:
                # Another was faster, which may be said when nothing of our own was written.
                assert isinstance(outcome, (NotReachableError, RequestTimeoutError, *FOREIGN)), said
        if last is not None and (was_applied or isinstance(outcome, BaseException)):
            assert found == last, said
        elif not isinstance(outcome, BaseException):
            assert (None if found is None else found.value) == wanted, said
            assert wanted is None or found == outcome, said
        applied = {state.get(key) for state in states if (pair_ := state.get(key)) and pair_.value == b"new"}
        assert len(applied) <= 1, f"{said}: applied twice, {applied}"


async def check_guard(lossy: Lossy, held: HeldLock) -> None:
    """Check that the server takes a lock for held; what runs in the background may have lost the connection."""

    async def is_written() -> bool:
        outcome = await outcome_of(asyncio.ensure_future(lossy.store.put("guarded", b"", guard=held)))
        assert isinstance(outcome, KVPair | NotReachableError), outcome
        return isinstance(outcome, KVPair)

    await eventually(is_written, within=10, message="a guarded write is done")


@pytest.mark.parametrize("name", ["put", "create", "swap", "delete", "delete_tree", "put with ttl"])
async def test_a_guarded_write(lossy: Lossy, name: str) -> None:
    """Never that the lock is lost, which it is not."""
    lock = lossy.store.new_lock("lock", ttl=TTL)
    held = await lock.acquire()
    number = 0
    async for loss in each_loss(lossy):
        number += 1
        key = f"{number}/key"
        pair = await lossy.direct.put(key, b"old")
        if name == "create":
            await lossy.direct.delete(key)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "put": lambda: lossy.store.put(key, b"new", guard=held),  # noqa: B023 - called at once
            "create": lambda: lossy.store.atomic_put(key, b"new", None, guard=held),  # noqa: B023
            "swap": lambda: lossy.store.atomic_put(key, b"new", pair, guard=held),  # noqa: B023
            "delete": lambda: lossy.store.delete(key, guard=held),  # noqa: B023
            "delete_tree": lambda: lossy.store.delete_tree(str(number), guard=held),  # noqa: B023
            "put with ttl": lambda: lossy.store.put(key, b"new", ttl=lossy.ttl, guard=held),  # noqa: B023
        }
        outcome = await loss.during(calls[name]())
        if isinstance(outcome, BaseException):
            check_doubt(outcome)
        assert held.is_held
        await check_guard(lossy, held)
    await lock.release()


async def test_a_key_with_a_ttl_in_doubt_goes_on_time(lossy: Lossy) -> None:
    """Whatever became of its put, though the server would keep it longer."""
    number = 0
    async for loss in each_loss(lossy):
        number += 1
        await loss.during(lossy.store.put(str(number), b"", ttl=1))

    async def are_gone() -> bool:
        return not any([await lossy.direct.exists(str(each)) for each in range(1, number + 1)])

    await eventually(are_gone, within=6, message="all of them are gone")


# -- locks -------------------------------------------------------------------------------------------------------------


async def is_over(lossy: Lossy) -> None:
    """Check that nothing is left of a lock, and that another client acquires it."""
    await eventually(lambda: lossy.scene.is_free("lock"), within=12, message="the lock is free, nobody is in line")
    async with asyncio.timeout(scaled(10)), lossy.direct.new_lock("lock", ttl=TTL):
        pass


async def test_acquire(lossy: Lossy) -> None:
    async for loss in each_loss(lossy):
        lock = lossy.store.new_lock("lock", value=b"me", ttl=TTL)
        held = await loss.during(asyncio.wait_for(lock.acquire(), scaled(20)))
        assert isinstance(held, HeldLock)
        assert held.is_held
        assert (await lossy.direct.get("lock")).value == b"me"
        await check_guard(lossy, held)
        await lock.release()
        await is_over(lossy)


async def test_try_acquire(lossy: Lossy) -> None:
    """It is had, or in doubt; never another's, since there is nobody else."""
    async for loss in each_loss(lossy):
        lock = lossy.store.new_lock("lock", ttl=TTL)
        outcome = await loss.during(lock.try_acquire())
        if isinstance(outcome, BaseException):
            check_doubt(outcome)
        else:
            assert isinstance(outcome, HeldLock)
            assert outcome.is_held
            await check_guard(lossy, outcome)
            await lock.release()
        await is_over(lossy)


async def test_acquire_behind_another(lossy: Lossy) -> None:
    async for loss in each_loss(lossy):
        holder = lossy.direct.new_lock("lock", ttl=TTL)
        holding = await holder.acquire()
        lock = lossy.store.new_lock("lock", value=b"me", ttl=TTL)
        loss.begin(cut_off=False)
        waiting = asyncio.ensure_future(lock.acquire())
        await eventually(lambda: stands_in_line(lossy), within=20, message="one stands in line")
        assert holding.is_held
        await holder.release()
        held = await asyncio.wait_for(waiting, scaled(20))
        loss.end()
        assert held.fencing_token > holding.fencing_token
        assert (await lossy.direct.get("lock")).value == b"me"
        await lock.release()
        await is_over(lossy)


async def stands_in_line(lossy: Lossy) -> bool:
    keys = (await lossy.scene.state())["keys"]
    assert isinstance(keys, list)
    return any("/waiters/" in key for key in keys)


async def test_release(lossy: Lossy) -> None:
    async for loss in each_loss(lossy):
        lock = lossy.store.new_lock("lock", ttl=TTL)
        held = await lock.acquire()
        assert await loss.during(lock.release()) is None
        assert not held.is_held
        await is_over(lossy)


# -- coordination ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [False, True], ids=["", "overwritten"])
async def test_update(lossy: Lossy, *, later: bool) -> None:
    """It counts once, or is in doubt and counts once or not at all."""

    def add(value: bytes | None) -> bytes:
        return b"%d" % (int(value or b"0") + 1)

    number = 0
    async for loss in each_loss(lossy):
        number += 1
        key = f"counter/{number}"
        if number % 2:
            await lossy.direct.put(key, b"0")
        loss.begin(cut_off=later)
        call = asyncio.ensure_future(update(lossy.store, key, add))
        await loss.over(call)
        after = await current(lossy.direct, key)
        was_applied = after is not None and after.value == b"1"
        last = await lossy.direct.put(key, b"10") if later and loss.happened else None
        lossy.proxy.accept()
        outcome = await outcome_of(call)
        found = await current(lossy.direct, key)
        if isinstance(outcome, BaseException):
            check_doubt(outcome)
            assert found == last if last else found is None or found.value in (b"0", b"1")
        elif last is not None and was_applied:
            assert found == last
        else:
            assert found == outcome
            assert outcome.value == (b"1" if last is None else b"11")


async def test_registering(lossy: Lossy) -> None:
    """It stands, or it is in doubt and removed."""
    here, there = Discovery(lossy.store, "services"), Discovery(lossy.direct, "services")

    async def nobody() -> bool:
        return not await there.instances("web")

    async for loss in each_loss(lossy):
        registration = here.register("web", "h:1", ttl=lossy.ttl)
        outcome = await loss.during(registration.__aenter__())
        if isinstance(outcome, BaseException):
            check_doubt(outcome)
        else:
            assert await there.instances("web") == [registration.instance]
            await registration.__aexit__(None, None, None)
        await eventually(nobody, within=12, message="nobody is registered")


async def test_leaving(lossy: Lossy) -> None:
    here, there = Discovery(lossy.store, "services"), Discovery(lossy.direct, "services")

    async def nobody() -> bool:
        return not await there.instances("web")

    async for loss in each_loss(lossy):
        registration = here.register("web", "h:1", ttl=lossy.ttl)
        await registration.__aenter__()
        assert await loss.during(registration.__aexit__(None, None, None)) is None
        await eventually(nobody, within=12, message="nobody is registered")

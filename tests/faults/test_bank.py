"""Money moves between accounts by commits while the leader is killed: whoever looks at one instant sees all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from aiolibkv import AsyncStore, Config, KeyModifiedError, Put, StoreError, new_store
from aiolibkv.testing.scale import scaled
from faults.clusters import Nodes
from faults.standbys import replicated

pytestmark = pytest.mark.asyncio

_ACCOUNTS = [f"accounts/{number:02}" for number in range(20)]
_EACH = 100
_TASKS = 8
_MOVES = 12


async def _move(store: AsyncStore, random: Random) -> bool:
    """Move some money; False when somebody was faster, or in an outage."""
    source, target = random.sample(_ACCOUNTS, 2)
    try:
        found = await store.get_many([source, target])
        amount = random.randint(1, 9)
        await store.commit(
            Put(source, b"%d" % (int(found[source].value) - amount), previous=found[source]),
            Put(target, b"%d" % (int(found[target].value) + amount), previous=found[target]),
        )
    except KeyModifiedError:
        return False
    except StoreError:
        # Of an outage; all of it was applied, or nothing.
        return False
    return True


async def _bank(store: AsyncStore, other: AsyncStore, fail: Callable[[], Awaitable[None]]) -> None:
    """Move money through two stores, have something fail meanwhile, and look at the sum all the time."""
    total = len(_ACCOUNTS) * _EACH
    moved = looked = 0
    enough = asyncio.Event()
    await store.commit(*(Put(account, b"%d" % _EACH) for account in _ACCOUNTS))

    async def work(number: int) -> None:
        nonlocal moved
        random = Random(number)
        done = 0
        while done < _MOVES:
            if await _move((store, other)[number % 2], random):
                done += 1
                moved += 1
                if moved == _TASKS * _MOVES // 4:
                    enough.set()

    async def look() -> None:
        nonlocal looked
        while True:
            try:
                found = await other.get_many(_ACCOUNTS)
            except StoreError:
                continue
            if other.capabilities.atomic_list:
                assert sum(int(pair.value) for pair in found.values()) == total
            looked += 1

    async with asyncio.timeout(scaled(60)), asyncio.TaskGroup() as group:
        looking = group.create_task(look())
        working = [group.create_task(work(number)) for number in range(_TASKS)]
        await enough.wait()
        await fail()
        await asyncio.wait(working)
        looking.cancel()
    assert looked > 3
    assert sum(int(pair.value) for pair in await store.list("accounts")) == total


async def test_no_money_is_lost_or_made(nodes: Nodes) -> None:
    async def kill_the_leader() -> None:
        await nodes.servers[await nodes.leader()].kill()

    async with nodes.direct(request_timeout=scaled(3)) as store, nodes.direct(request_timeout=scaled(3)) as other:
        await _bank(store, other, kill_the_leader)


async def test_no_money_is_lost_or_made_when_a_standby_takes_over() -> None:
    """On PostgreSQL, whose commits wait for the standby."""
    async with replicated() as (primary, standby):
        username, password = primary.user
        config = Config(username=username, password=password, request_timeout=scaled(3))
        endpoints = (primary.endpoint, standby.endpoint)

        async def fail_over() -> None:
            await primary.kill()
            await standby.promote()

        async with (
            new_store("postgresql", endpoints, config) as store,
            new_store("postgresql", endpoints, config) as other,
        ):
            await _bank(store, other, fail_over)

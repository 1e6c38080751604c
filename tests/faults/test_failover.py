"""How long a store that knows three nodes is without one, when a node dies or freezes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from itertools import count

import pytest

from aiolibkv.testing.scale import scaled
from faults.clusters import Nodes
from faults.histories import History
from faults.linearizability import check

pytestmark = pytest.mark.asyncio

_OTHER_NODE = 5.0
"""Seconds; the aim, of which the tests allow a multiple."""
_OTHER_LEADER = 10.0
_LENIENCE = 4.0


async def _kill(nodes: Nodes, number: int) -> None:
    await nodes.servers[number].kill()


async def _pause(nodes: Nodes, number: int) -> None:
    nodes.servers[number].pause()


Strike = Callable[[Nodes, int], Awaitable[None]]
Note = Callable[[str, object], None]
strikes = pytest.mark.parametrize("strike", [_kill, _pause])


@strikes
async def test_the_connected_node_fails(nodes: Nodes, strike: Strike, record_property: Note) -> None:
    leader = await nodes.leader()
    order = [(leader + 1) % 3, (leader + 2) % 3, leader]
    await _outlast(nodes, order, order[0], strike, _OTHER_NODE, record_property)


@strikes
async def test_the_connected_leader_fails(nodes: Nodes, strike: Strike, record_property: Note) -> None:
    leader = await nodes.leader()
    order = [leader, (leader + 1) % 3, (leader + 2) % 3]
    await _outlast(nodes, order, leader, strike, _OTHER_LEADER, record_property)


@strikes
async def test_the_leader_behind_the_connected_node_fails(nodes: Nodes, strike: Strike, record_property: Note) -> None:
    leader = await nodes.leader()
    order = [(leader + 1) % 3, leader, (leader + 2) % 3]
    await _outlast(nodes, order, leader, strike, _OTHER_LEADER, record_property)


async def _outlast(
    nodes: Nodes, order: list[int], failing: int, strike: Strike, aim: float, record_property: Note
) -> None:
    """Read and write while a node fails, until both work again; what was said of failed writes must be true."""
    history = History()
    struck = math.inf

    async def again(call: Callable[[int], Awaitable[bool]]) -> float:
        """Call until one that began after the failure was answered; return the seconds since then."""
        for number in count():
            began = time.monotonic()
            is_done = await call(number)
            if is_done and began > struck:
                break
        return time.monotonic() - struck

    async with nodes.store(*order) as store:
        assert nodes.connected() == order[0]

        async def read(_: int) -> bool:
            return await history.call("reader", "key/0", "get", store.get("key/0"))

        async def write(number: int) -> bool:
            # A key for each, so that one which was given up can still be seen later.
            key, value = f"key/{number}", b"%d" % number
            return await history.call("writer", key, "put", store.put(key, value), value=value)

        async with asyncio.timeout(scaled(aim * _LENIENCE)), asyncio.TaskGroup() as group:
            reading = group.create_task(again(read))
            writing = group.create_task(again(write))
            await history.go_on(reads=3, writes=3)
            await strike(nodes, failing)
            struck = time.monotonic()
        await nodes.heal()
        failures = list(history.failures)
        for failure in failures:
            assert failure.key is not None
            await history.call("reader", failure.key, "get", store.get(failure.key))
    check(history.operations)
    times = {"get": reading.result(), "put": writing.result()}
    for kind, seconds in times.items():
        record_property(f"seconds until {kind} works again", seconds)
    known = ", ".join(f"{kind} after {seconds:.2f} s" for kind, seconds in times.items())
    print(f"{nodes.backend}, works again: {known} (aim: {aim:g} s); failed: {[str(failure) for failure in failures]}")

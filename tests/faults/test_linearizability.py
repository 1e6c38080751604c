"""Histories of concurrent clients while servers die, freeze and start again: each key behaves like one register."""

from __future__ import annotations

import asyncio

import pytest

from aiolibkv.testing.scale import eventually
from faults.clusters import Nodes
from faults.histories import History, check_history, stores_of

pytestmark = pytest.mark.asyncio


async def test_without_faults(nodes: Nodes) -> None:
    async def nothing(history: History) -> None:
        await history.go_on(reads=100, writes=100)

    await check_history(stores_of(nodes), nothing)


async def test_the_leader_is_killed(nodes: Nodes) -> None:
    async def kill(history: History) -> None:
        number = await nodes.leader()
        await nodes.servers[number].kill()
        await history.go_on(reads=40, writes=40)
        await nodes.servers[number].start()

    await check_history(stores_of(nodes), kill)


async def test_the_leader_is_paused(nodes: Nodes) -> None:
    """On until others lead; when it continues, it believes for a moment that it leads still."""

    async def pause(history: History) -> None:
        number = await nodes.leader()
        nodes.servers[number].pause()
        await history.go_on(reads=40, writes=40)
        nodes.servers[number].resume()

    await check_history(stores_of(nodes), pause)


async def test_a_connected_node_is_paused(nodes: Nodes) -> None:
    async def pause(history: History) -> None:
        number = (await nodes.leader() + 1) % len(nodes.servers)
        nodes.servers[number].pause()
        await history.suffer(1)
        await history.go_on(reads=40, writes=40)
        nodes.servers[number].resume()

    await check_history(stores_of(nodes), pause)


async def test_all_nodes_are_killed_and_started_again(nodes: Nodes) -> None:
    async def restart(history: History) -> None:
        await asyncio.gather(*(server.kill() for server in nodes.servers))
        await history.suffer(1)
        await nodes.cluster.start()

    await check_history(stores_of(nodes), restart)


async def test_a_node_that_lags_gives_no_old_state(nodes: Nodes) -> None:
    """What reached it while it stood still comes to it at once: the news from the others, and a question."""
    leader = await nodes.leader()
    number = (leader + 1) % len(nodes.servers)
    proxy = nodes.proxies[number]
    asked = 0

    def is_asked() -> bool:
        return proxy.requests > asked

    async with nodes.store(leader) as writer, nodes.store(number) as reader:
        for turn in range(10):
            value = b"%d" % turn
            nodes.servers[number].pause()
            await writer.put("key", value)
            asked = proxy.requests
            reading = asyncio.ensure_future(reader.get("key"))
            await eventually(is_asked, within=10, message="the question is sent")
            nodes.servers[number].resume()
            assert (await reading).value == value

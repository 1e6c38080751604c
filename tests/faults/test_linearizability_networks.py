"""Histories of concurrent clients while connections break and go mute: each key behaves like one register."""

from __future__ import annotations

import pytest

from faults.clusters import Nodes
from faults.histories import History, check_history, stores_of

pytestmark = pytest.mark.asyncio


async def test_connections_are_reset_again_and_again(nodes: Nodes) -> None:
    async def reset(history: History) -> None:
        for _ in range(10):
            for proxy in nodes.proxies:
                proxy.reset()
            await history.go_on(reads=6, writes=6)

    await check_history(stores_of(nodes), reset)


@pytest.mark.parametrize("to_server", [True, False], ids=["both directions", "only answers"])
async def test_networks_go_mute(nodes: Nodes, *, to_server: bool) -> None:
    """Two ways of three, then all; what clients gave up on reaches the servers when the network heals."""

    async def mute(history: History) -> None:
        for proxy in nodes.proxies[:2]:
            proxy.blackhole(to_server=to_server)
        await history.go_on(reads=40, writes=40)
        nodes.proxies[2].blackhole(to_server=to_server)
        await history.suffer(6)
        for proxy in nodes.proxies:
            proxy.heal()

    await check_history(stores_of(nodes), mute)

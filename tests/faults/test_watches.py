"""Watches while paths, nodes and whole clusters fail under a writer that goes on elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest

from aiolibkv import AsyncStore
from aiolibkv.testing.scale import eventually
from aiolibkv.testing.servers import EtcdServer
from faults.clusters import Nodes
from faults.following import Followers, Writer, followed, writing

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

_log = logging.getLogger("aiolibkv.tests")

_AIM = 5.0
"""Seconds from the end of a fault until all that was missed is seen."""
_BOUND = 4 * _AIM
_RESETS = 20
_MISSED = 20
"""Steps that are written at least while the watches are cut off."""


@dataclass(frozen=True)
class Scene:
    """A node that is to fail, a writer at the others, and watches that go through the node's proxy.

    Attributes:
        nodes: the cluster.
        number: of the node.
        writer: at the other nodes.
        direct: the writer's store.
        alone: watches of a store that knows this node only.
        free: watches of a store that knows the others, too, and begins with this one.
    """

    nodes: Nodes
    number: int
    writer: Writer
    direct: AsyncStore
    alone: Followers
    free: Followers

    async def are_cut_off(self) -> None:
        """See that who knows one node only waits, and who knows others moves on."""
        await eventually(lambda: self.alone.are_stale, within=15, message="the watches know that they are cut off")
        seen = self.alone.tree.number
        await self.writes_on()
        await self._catches_up(self.free, "the other nodes")
        assert self.alone.are_stale
        assert self.alone.tree.number == seen

    async def all_are_cut_off(self) -> None:
        """See that all watches know that there is nobody to move on to."""
        for followers in (self.alone, self.free):
            await eventually(partial(getattr, followers, "are_stale"), within=15, message="the watches know it")

    async def are_not_fooled(self) -> None:
        """See that who knows one node only goes on to hear of changes, or knows that it is cut off."""
        number = self.writer.number
        await self.writes_on()
        await eventually(
            lambda: self.alone.are_stale or self.alone.have_seen(number),
            within=6,
            message="the watches know that they are cut off, or are not",
        )
        await self._catches_up(self.free, "the other nodes")

    async def writes_on(self, steps: int = _MISSED) -> None:
        """Have more written."""
        goal = self.writer.number + steps
        await eventually(lambda: self.writer.number >= goal, within=30, message="the writer goes on")

    async def catch_up(self) -> None:
        """See that all watches arrive at the present state soon."""
        await self._catches_up(self.alone, "the only node")
        await self._catches_up(self.free, "any node")

    async def _catches_up(self, followers: Followers, name: str) -> None:
        clock = asyncio.get_running_loop().time
        began, number = clock(), self.writer.number
        await eventually(lambda: followers.have_seen(number), within=_BOUND, message=f"{name}: what was missed is seen")
        _log.info("%s, %s: %.2f s to catch up (aim: %g s)", self.nodes.backend, name, clock() - began, _AIM)


@asynccontextmanager
async def scene(nodes: Nodes, number: int) -> AsyncIterator[Scene]:
    """Set a scene, and compare what the watches have seen with what calls read when it is over."""
    others = [other for other in range(len(nodes.servers)) if other != number]
    direct = nodes.direct(*others)
    async with (
        writing(direct) as writer,
        followed(nodes.store(number), writer) as alone,
        followed(nodes.store(number, *others), writer) as free,
    ):
        yield Scene(nodes, number, writer, direct, alone, free)
        await writer.stop()
        for followers in (alone, free):
            await followers.agree_with(direct)


async def test_the_path_is_reset_again_and_again(nodes: Nodes) -> None:
    async with scene(nodes, 0) as playing:
        for _ in range(_RESETS):
            nodes.proxies[0].reset()
            await playing.writes_on(1)
        await playing.catch_up()
        await playing.writes_on()


@pytest.mark.parametrize("to_server", [True, False], ids=["both_ways", "answers"])
async def test_the_path_swallows(nodes: Nodes, *, to_server: bool) -> None:
    async with scene(nodes, 0) as playing:
        nodes.proxies[0].blackhole(to_server=to_server)
        await playing.are_cut_off()
        # Nothing that is written later makes up for what is missed.
        await playing.writer.stop()
        nodes.proxies[0].heal()
        await playing.catch_up()


async def test_the_path_swallows_requests(nodes: Nodes) -> None:
    """What the server tells of its own accord may still arrive."""
    async with scene(nodes, 0) as playing:
        nodes.proxies[0].blackhole(to_client=False)
        await playing.are_not_fooled()
        nodes.proxies[0].heal()
        await playing.catch_up()
        await playing.writes_on()


async def test_the_leader_is_paused(nodes: Nodes) -> None:
    leader = await nodes.leader()
    async with scene(nodes, leader) as playing:
        nodes.servers[leader].pause()
        await playing.are_cut_off()
        nodes.servers[leader].resume()
        await playing.catch_up()
        await playing.writes_on()


async def test_the_leader_is_killed_and_started_again(nodes: Nodes) -> None:
    leader = await nodes.leader()
    async with scene(nodes, leader) as playing:
        await nodes.servers[leader].kill()
        await playing.are_cut_off()
        await nodes.servers[leader].start()
        await playing.catch_up()
        await playing.writes_on()


async def test_all_nodes_are_restarted(nodes: Nodes) -> None:
    async with scene(nodes, 0) as playing:
        await nodes.cluster.stop()
        await playing.all_are_cut_off()
        await nodes.cluster.start()
        await playing.writes_on()
        await playing.catch_up()
        await playing.writes_on()


@pytest.mark.parametrize("backend", ["etcd"], indirect=True, scope="session")
async def test_the_history_is_compacted_meanwhile(nodes: Nodes) -> None:
    async with scene(nodes, 0) as playing:
        for proxy in nodes.proxies:
            proxy.refuse()
            proxy.reset()
        await playing.all_are_cut_off()
        await playing.writes_on()
        server = nodes.servers[1]
        assert isinstance(server, EtcdServer)
        await server.compact()
        for proxy in nodes.proxies:
            proxy.heal()
        await playing.catch_up()
        await playing.writes_on()

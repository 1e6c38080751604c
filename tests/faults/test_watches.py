"""Watches while paths, nodes and whole clusters fail under a writer that goes on elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from aiolibkv import AsyncStore
from aiolibkv.testing.scale import eventually
from aiolibkv.testing.servers import EtcdServer
from faults.clusters import Nodes
from faults.following import Followers, Writer, followed, writing

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

Record = Callable[[str, object], None]

_AIM = 5.0
"""Seconds from the end of a fault until all that was missed is seen."""
_BOUND = 4 * _AIM
_RESETS = 20
_PAUSE = 6.0
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
    record: Record

    async def are_cut_off(self) -> None:
        """See that who knows one node only waits, and who knows others moves on."""
        await eventually(lambda: self.alone.are_stale, within=15, message="the watches know that they are cut off")
        seen = self.alone.tree.number
        await self.writes_on()
        await self._catches_up(self.free, "the other nodes")
        assert self.alone.are_stale
        assert self.alone.tree.number == seen

    async def writes_on(self) -> None:
        """Have more written."""
        goal = self.writer.number + _MISSED
        await eventually(lambda: self.writer.number >= goal, within=30, message="the writer goes on")

    async def catch_up(self) -> None:
        """See that all watches arrive at the present state soon."""
        await self._catches_up(self.alone, "the only node")
        await self._catches_up(self.free, "any node")
        await self.writes_on()

    async def _catches_up(self, followers: Followers, name: str) -> None:
        clock = asyncio.get_running_loop().time
        began, number = clock(), self.writer.number
        await eventually(lambda: followers.have_seen(number), within=_BOUND, message=f"{name}: what was missed is seen")
        self.record(f"seconds to catch up, {name} (aim: {_AIM:g})", round(clock() - began, 2))


@asynccontextmanager
async def scene(nodes: Nodes, number: int, record: Record) -> AsyncIterator[Scene]:
    """Set a scene, and compare what the watches have seen with what calls read when it is over."""
    others = [other for other in range(len(nodes.servers)) if other != number]
    direct = nodes.direct(*others)
    async with writing(direct) as writer:
        async with (
            followed(nodes.store(number), writer) as alone,
            followed(nodes.store(number, *others), writer) as free,
        ):
            yield Scene(nodes, number, writer, direct, alone, free, record)
            await writer.stop()
            for followers in (alone, free):
                await followers.agree_with(direct)


async def test_the_path_is_reset_again_and_again(nodes: Nodes, record_property: Record) -> None:
    async with scene(nodes, 0, record_property) as playing:
        for _ in range(_RESETS):
            number = playing.writer.number
            nodes.proxies[0].reset()
            await eventually(lambda number=number: playing.writer.number > number, within=20, message="a step")  # type: ignore[misc]
        await playing.catch_up()

"""An election among processes that are killed, on a server that is restarted in between."""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio

from aiolibkv import Follower, open_store
from aiolibkv.testing.scale import eventually, scaled
from locks.services import SERVICES, Service

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

CANDIDATE = Path(__file__).parent / "candidate.py"
KILLS = 5


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SERVICES)
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    make = SERVICES[request.param]
    async with make() as running:
        yield running


class Node:
    """A candidate in a process of its own, and the times at which it led."""

    def __init__(self, url: str, name: str, ttl: float) -> None:
        self.name = name
        self.terms: list[tuple[float, float]] = []
        self._arguments = (url, name, str(ttl))
        self._began: float | None = None
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def is_leader(self) -> bool:
        return self._began is not None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, str(CANDIDATE), *self._arguments, stdout=PIPE
        )
        self._reading = asyncio.create_task(self._read(self._process))

    async def kill(self) -> None:
        assert self._process is not None
        assert self._reading is not None
        if self._process.returncode is None:
            self._process.kill()
        killed = time.monotonic()
        await self._process.wait()
        await self._reading
        self._end(killed)

    def _end(self, moment: float) -> None:
        if self._began is not None:
            self.terms.append((self._began, moment))
            self._began = None

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            elected, moment = line.decode().split()
            if elected == "1":
                self._began = float(moment)
            else:
                self._end(float(moment))


async def test_never_two_leaders_and_a_new_one_each_time(service: Service) -> None:
    url = service.url(service.endpoint, "election")
    nodes = [Node(url, f"node-{number}", service.ttl) for number in range(3)]
    seen: list[str | None] = []

    async def follow() -> None:
        async with open_store(url) as store:
            async for leader in Follower(store, "leader").follow_election():
                seen.append(leader)

    following = asyncio.create_task(follow())
    try:
        for node in nodes:
            await node.start()
        for number in range(KILLS):
            await eventually(lambda: any(node.is_leader for node in nodes), within=60, message="somebody leads")
            leader = next(node for node in nodes if node.is_leader)
            await eventually(partial(_is_last, seen, leader.name), within=30, message="the leader is seen")
            await leader.kill()
            if number == KILLS // 2:
                await service.restart()
            await leader.start()
        await eventually(lambda: any(node.is_leader for node in nodes), within=60, message="somebody leads at last")
    finally:
        following.cancel()
        await asyncio.wait({following}, timeout=scaled(10))
        for node in nodes:
            await node.kill()
    terms = sorted(term for node in nodes for term in node.terms)
    assert len(terms) > KILLS
    assert all(ended <= began for (_, ended), (began, _) in pairwise(terms))
    assert len([leader for leader in seen if leader]) >= KILLS


def _is_last(seen: list[str | None], name: str) -> bool:
    return bool(seen) and seen[-1] == name

"""Work that one of five processes does, which are killed and stopped, on a server that is restarted in between."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
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
NODES = 5
KILLS = 10
STOPS = (2, 7)
"""Which leaders are stopped, and go on when another one leads, instead of being killed."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SERVICES)
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    make = SERVICES[request.param]
    async with make() as running:
        yield running


class Node:
    """A candidate in a process of its own, and the times between which it worked.

    Attributes:
        name: the candidate's.
        terms: of each, when its work began and when the last write was sent that was carried out.
        is_up: whether the process runs.
    """

    def __init__(self, url: str, name: str, ttl: float) -> None:
        self.name = name
        self.terms: list[tuple[float, float]] = []
        self.is_up = False
        self._arguments = (url, name, str(ttl))
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, str(CANDIDATE), *self._arguments, stdout=PIPE
        )
        self._reading = asyncio.create_task(self._read(self._process))
        self.is_up = True

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self.is_up = number == signal.SIGCONT

    async def kill(self) -> None:
        assert self._process is not None
        assert self._reading is not None
        self.is_up = False
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            what, moment = line.decode().split()
            if what == "begin":
                self.terms.append((float(moment), float(moment)))
            else:
                self.terms[-1] = self.terms[-1][0], float(moment)


async def test_work_of_two_leaders_never_overlaps(service: Service) -> None:
    url = service.url(service.endpoint, "election")
    nodes = [Node(url, f"node-{number}", service.ttl) for number in range(NODES)]
    seen: list[str | None] = []

    async def follow() -> None:
        async with open_store(url) as store:
            async for leader in Follower(store, "leader").follow_election():
                seen.append(leader)

    following = asyncio.create_task(follow())
    last = 0.0
    try:
        await asyncio.gather(*(node.start() for node in nodes))
        for number in range(KILLS):
            await eventually(partial(_works, nodes, last), within=60, message="somebody works")
            leader = max(nodes, key=lambda node: node.terms[-1:])
            await eventually(partial(_is_last, seen, leader.name), within=30, message="the leader is seen")
            last = leader.terms[-1][1]
            if number in STOPS:
                leader.send(signal.SIGSTOP)
                await eventually(partial(_works, nodes, last), within=60, message="another one works")
                leader.send(signal.SIGCONT)
                continue
            await leader.kill()
            if number == KILLS // 2:
                await service.restart()
            elif service.end_session is not None:
                # Consul frees a dead leader's lock after up to 21 s: this is waited for three times, not ten.
                await service.end_session("election/leader")
            await leader.start()
        await eventually(partial(_works, nodes, last), within=60, message="somebody works at last")
    finally:
        following.cancel()
        await asyncio.wait({following}, timeout=scaled(10))
        await asyncio.gather(*(node.kill() for node in nodes))
    terms = sorted(term for node in nodes for term in node.terms)
    assert len(terms) > KILLS
    assert [(one, two) for one, two in pairwise(terms) if one[1] > two[0]] == []
    assert len([leader for leader in seen if leader]) >= KILLS


def _works(nodes: Sequence[Node], after: float) -> bool:
    """Tell whether the work of a process that runs has begun and written something later than a time."""
    return any(term[0] > after and term[1] > term[0] for node in nodes if node.is_up for term in node.terms[-1:])


def _is_last(seen: list[str | None], name: str) -> bool:
    return bool(seen) and seen[-1] == name

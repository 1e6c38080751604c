"""What the fault tests share: one cluster of each backend for the whole run, healed after each test; single servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from aiolibkv.testing.servers import Cluster
from faults.clusters import CLUSTERS, Nodes, behind_proxies
from faults.single import GROUNDS, Ground, Scene, on_scene


@pytest.fixture(scope="session", params=sorted(CLUSTERS))
def backend(request: pytest.FixtureRequest) -> str:
    """Name a backend; tests of one backend run together, so that one cluster runs at a time."""
    return str(request.param)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster(backend: str) -> AsyncIterator[Cluster[Any]]:
    async with CLUSTERS[backend]() as running:
        yield running


@pytest_asyncio.fixture
async def nodes(backend: str, cluster: Cluster[Any]) -> AsyncIterator[Nodes]:
    async with behind_proxies(backend, cluster) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=sorted(GROUNDS))
async def ground(request: pytest.FixtureRequest) -> AsyncIterator[Ground]:
    """Run what the stores of a module's tests share."""
    async with GROUNDS[request.param]() as running:
        yield running


@pytest_asyncio.fixture
async def scene(ground: Ground) -> AsyncIterator[Scene]:
    """Set a scene of which nothing is left, though nobody deletes anything in the end."""
    async with on_scene(ground, delete=False) as made:
        yield made

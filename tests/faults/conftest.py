"""What the fault tests share: one cluster of each backend for the whole run, healed after each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from aiolibkv.testing.servers.base import Cluster
from faults.clusters import CLUSTERS, Nodes, behind_proxies


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

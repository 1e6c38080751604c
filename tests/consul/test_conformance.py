"""The Consul backend against the conformance suite, on one server for development and on three others."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from aiolibkv import AsyncStore, Config
from aiolibkv.testing.conformance import ConformanceSuite, CutOff, StoreFactory
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.servers import ConsulCluster, ConsulServer
from stores import ConsulStore


def _factory(endpoints: Sequence[str]) -> StoreFactory:
    def make(*, prefix: str | None = None, **overrides: Any) -> AsyncStore:
        return ConsulStore(endpoints, Config(**overrides, prefix=prefix or ""))

    return make


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[ConsulServer]:
    async with ConsulServer(dev=True) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[ConsulCluster]:
    async with ConsulCluster() as running:
        yield running


class TestOneServer(ConformanceSuite):
    """Every test of the suite."""

    @pytest.fixture
    def store_factory(self, server: ConsulServer) -> StoreFactory:
        return _factory([server.endpoint])

    @pytest_asyncio.fixture(loop_scope="function")
    async def cut_off(self, server: ConsulServer) -> AsyncIterator[CutOff]:
        """Make stores on the server through a proxy that delivers nothing on demand."""
        async with FaultProxy(server.host, server.port) as proxy:
            yield CutOff(_factory([proxy.endpoint]), proxy.blackhole, proxy.heal)


class TestThreeServers(ConformanceSuite):
    """Every test of the suite."""

    @pytest.fixture
    def store_factory(self, cluster: ConsulCluster) -> StoreFactory:
        return _factory(cluster.endpoints)

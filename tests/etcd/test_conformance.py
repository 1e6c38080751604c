"""The etcd backend against the conformance suite, on one server of 3.4 and on three of 3.5."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aiolibkv.testing.conformance import ConformanceSuite, CutOff, StoreFactory, factory_of
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.servers import EtcdCluster, EtcdServer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[EtcdServer]:
    """Run one server."""
    async with EtcdServer() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[EtcdCluster]:
    """Run three servers."""
    async with EtcdCluster(version="3.5") as running:
        yield running


class TestOneServer(ConformanceSuite):
    """Every test of the suite."""

    @pytest.fixture
    def store_factory(self, server: EtcdServer) -> StoreFactory:
        """Make stores on the server."""
        return factory_of("etcd", [server.endpoint])

    @pytest_asyncio.fixture(loop_scope="function")
    async def cut_off(self, server: EtcdServer) -> AsyncIterator[CutOff]:
        """Make stores on the server through a proxy that delivers nothing on demand."""
        async with FaultProxy(server.host, server.port) as proxy:
            yield CutOff(factory_of("etcd", [proxy.endpoint]), proxy.blackhole, proxy.heal)


class TestThreeServers(ConformanceSuite):
    """Every test of the suite."""

    @pytest.fixture
    def store_factory(self, cluster: EtcdCluster) -> StoreFactory:
        """Make stores on the cluster."""
        return factory_of("etcd", cluster.endpoints)

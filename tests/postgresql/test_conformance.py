"""The PostgreSQL backend against the conformance suite."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aiolibkv.testing.conformance import ConformanceSuite, CutOff, StoreFactory
from aiolibkv.testing.conformance.suite import factory_of
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.servers import PostgresServer


def _factory(server: PostgresServer, endpoint: str) -> StoreFactory:
    username, password = server.user
    return factory_of("postgresql", [endpoint], username=username, password=password)


class TestPostgres(ConformanceSuite):
    """Every test of the suite."""

    @pytest.fixture
    def store_factory(self, server: PostgresServer) -> StoreFactory:
        return _factory(server, server.endpoint)

    @pytest_asyncio.fixture(loop_scope="function")
    async def cut_off(self, server: PostgresServer) -> AsyncIterator[CutOff]:
        """Make stores on the server through a proxy that delivers nothing on demand."""
        async with FaultProxy(server.host, server.port) as proxy:
            yield CutOff(_factory(server, proxy.endpoint), proxy.blackhole, proxy.heal)

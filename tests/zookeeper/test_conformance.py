"""The ZooKeeper backend against the conformance suite, on one server of 3.8 and on three of 3.9."""

from collections.abc import AsyncIterator
from functools import partial

import pytest
import pytest_asyncio

from aiolibkv.testing.conformance import ConformanceSuite, CutOff, StoreFactory
from aiolibkv.testing.conformance.calls import Calls, CompareAndSwap
from aiolibkv.testing.conformance.cancelling import Cancelling
from aiolibkv.testing.conformance.closing import Closing, Errors
from aiolibkv.testing.conformance.directories import DeletingTrees, Directories
from aiolibkv.testing.conformance.keys import Keys, Values
from aiolibkv.testing.conformance.libkv import Libkv
from aiolibkv.testing.conformance.lifetimes import Lifetimes
from aiolibkv.testing.conformance.rooting import Rooting
from aiolibkv.testing.conformance.watching import Watching
from aiolibkv.testing.conformance.watching_trees import WatchingTrees
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.servers import ZooKeeperCluster, ZooKeeperServer
from zookeeper.conftest import OneShotStore, make_store


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[ZooKeeperCluster]:
    """Three servers that nobody stops."""
    async with ZooKeeperCluster(version="3.9") as running:
        yield running


class TestZooKeeper(ConformanceSuite):
    """Every test of the suite, on one server."""

    @pytest.fixture
    def store_factory(self, server: ZooKeeperServer) -> StoreFactory:
        """Make stores as users do."""
        return partial(make_store, [server.endpoint])

    @pytest_asyncio.fixture(loop_scope="function")
    async def cut_off(self, server: ZooKeeperServer) -> AsyncIterator[CutOff]:
        """Make stores on the server through a proxy that delivers nothing on demand."""
        async with FaultProxy(server.host, server.port) as proxy:
            yield CutOff(partial(make_store, [proxy.endpoint]), proxy.blackhole, proxy.heal)


class TestZooKeeper35(
    Lifetimes,
    Cancelling,
    Closing,
    Errors,
    WatchingTrees,
    Watching,
    Rooting,
    DeletingTrees,
    Directories,
    Keys,
    Values,
    CompareAndSwap,
    Calls,
    Libkv,
):
    """The suite with the watches and reads of servers before 3.6, but for keeping alive, which has nothing of them."""

    @pytest.fixture
    def store_factory(self, server: ZooKeeperServer) -> StoreFactory:
        """Make stores that use no operation of ZooKeeper 3.6."""
        return partial(make_store, [server.endpoint], kind=OneShotStore)


class TestThreeServers(ConformanceSuite):
    """Every test of the suite, on three servers, at two that follow.

    The leader answers a sync at once (3.8, 3.9): a read there may be older by the moment in which it applies what it
    has committed already, and a follower has applied.
    """

    @pytest_asyncio.fixture
    async def store_factory(self, cluster: ZooKeeperCluster) -> StoreFactory:
        """Make stores that begin at different servers."""
        leader = await cluster.leader()
        followers = [server.endpoint for server in cluster.servers if server is not leader]

        def make(**settings: object) -> object:
            followers.append(followers.pop(0))
            return make_store((*followers, leader.endpoint), **settings)  # type: ignore[arg-type]

        return make  # type: ignore[return-value]

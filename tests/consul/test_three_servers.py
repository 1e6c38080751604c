"""What is counted on one server, counted again through a follower of three."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aiolibkv.testing.servers import ConsulCluster, ConsulServer
from consul.test_polls import (
    test_a_thousand_watches_of_a_key_share_a_poll,
    test_cancelling_watches_and_making_new_ones,
    test_three_hundred_watches_within_the_limit,
)
from consul.test_requests import (
    test_equal_writers_have_one_winner,
    test_large_values,
    test_round_trips,
    test_transactions_and_urls_name_the_same_key,
)

__all__ = [
    "test_a_thousand_watches_of_a_key_share_a_poll",
    "test_cancelling_watches_and_making_new_ones",
    "test_equal_writers_have_one_winner",
    "test_large_values",
    "test_round_trips",
    "test_three_hundred_watches_within_the_limit",
    "test_transactions_and_urls_name_the_same_key",
]

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[ConsulServer]:
    """Run three servers, and give one that does not lead."""
    async with ConsulCluster() as cluster:
        leader = await cluster.leader()
        yield next(server for server in cluster.servers if server is not leader)


@pytest_asyncio.fixture
async def fresh() -> AsyncIterator[ConsulServer]:
    """Run three servers on which nothing is parked, and give one that does not lead."""
    async with ConsulCluster() as cluster:
        leader = await cluster.leader()
        yield next(server for server in cluster.servers if server is not leader)

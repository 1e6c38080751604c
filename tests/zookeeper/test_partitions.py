"""A server that is cut off from the others, and goes on answering its clients until it has noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import pytest_asyncio

from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers import Cluster, ZooKeeperServer
from zookeeper.conftest import make_store


class RemoteServer(ZooKeeperServer):
    """A server that finds those that lead it through proxies.

    Attributes:
        proxies: before the other servers, by the port that stands in the configuration.
    """

    proxies: dict[int, FaultProxy]

    def _config(self) -> Sequence[str]:
        lines = []
        for line in super()._config():
            ports = [port for port in self.proxies if f":{port}:" in line]
            lines.append(line.replace(f":{ports[0]}:", f":{self.proxies[ports[0]].port}:") if ports else line)
        return lines


@dataclass(frozen=True)
class Partition:
    """Three servers.

    Attributes:
        remote: one that follows.
        others: the leader and another follower.
    """

    remote: RemoteServer
    others: Sequence[ZooKeeperServer]

    def sever(self) -> None:
        """Cut the one off from its leader."""
        for proxy in self.remote.proxies.values():
            proxy.blackhole()


@pytest_asyncio.fixture
async def partition() -> AsyncIterator[Partition]:
    async with AsyncExitStack() as stack:
        remote, others = RemoteServer(), [ZooKeeperServer(), ZooKeeperServer()]
        members = [remote, *others]
        for number, member in enumerate(members, 1):
            member.join(number, members)
        remote.proxies = {
            port: await stack.enter_async_context(FaultProxy(other.host, port))
            for other in others
            for port in [other.port_of("peer")]
        }
        # Two are enough to elect a leader, whom the third one then follows.
        await stack.enter_async_context(Cluster(others))
        await stack.enter_async_context(remote)
        yield Partition(remote, others)


@pytest.mark.asyncio
async def test_a_lock_is_not_renewed_by_a_server_without_a_leader(partition: Partition) -> None:
    """It answers pings, while the others end the session for want of them."""
    async with (
        make_store([partition.remote.endpoint]) as store,
        make_store([other.endpoint for other in partition.others]) as other,
    ):
        held = await store.new_lock("lock", ttl=3).acquire()
        waiting = asyncio.ensure_future(other.new_lock("lock", ttl=3).acquire())
        partition.sever()
        before = held.is_held
        async with asyncio.timeout(scaled(15)):
            next_held = await waiting
        assert (before, held.is_held) == (True, False)
        assert next_held.fencing_token > held.fencing_token

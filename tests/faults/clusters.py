"""Three nodes of a service, each behind a proxy of its own, so that both can fail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

from aiolibkv import AsyncStore, Config, StoreError, new_store
from aiolibkv.testing.framing import Framing
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually
from aiolibkv.testing.servers import Cluster, ConsulCluster, EtcdCluster, Server, ZooKeeperCluster

CLUSTERS: dict[str, Callable[[], Cluster[Any]]] = {
    "consul": ConsulCluster,
    "etcd": EtcdCluster,
    "zookeeper": ZooKeeperCluster,
}
_FRAMINGS: dict[str, Framing] = {"consul": "http1", "etcd": "http2", "zookeeper": "zookeeper"}
_RECOVERY = 30.0


@dataclass(frozen=True)
class Nodes:
    """A cluster, for one test.

    Attributes:
        backend: the name of the backend.
        cluster: the servers.
        proxies: one before each server, in the same order.
        prefix: a directory that no other test uses.
    """

    backend: str
    cluster: Cluster[Any]
    proxies: Sequence[FaultProxy]
    prefix: str

    @property
    def servers(self) -> Sequence[Server]:
        return self.cluster.servers

    def store(self, *numbers: int, **settings: Any) -> AsyncStore:
        """Make a store that goes through the proxies of some nodes, of all when none is named."""
        proxies = [self.proxies[number] for number in numbers] if numbers else self.proxies
        return self._make([proxy.endpoint for proxy in proxies], settings)

    def direct(self, *numbers: int, **settings: Any) -> AsyncStore:
        """Make a store that goes straight to some nodes, to all when none is named."""
        servers = [self.servers[number] for number in numbers] if numbers else self.servers
        return self._make([server.endpoint for server in servers], settings)

    def connected(self) -> int:
        """Return the node that the only store of the test is connected to."""
        (number,) = (number for number, proxy in enumerate(self.proxies) if proxy.connections_open)
        return number

    async def leader(self) -> int:
        """Return the node that leads."""
        return self.servers.index(await self.cluster.leader())

    async def heal(self) -> None:
        """End all faults, and wait until each node can write."""
        for proxy in self.proxies:
            proxy.heal()
            proxy.accept()
        for server in self.servers:
            if server.running:
                server.resume()
        await self.cluster.start()
        await self.cluster.leader()
        for number, server in enumerate(self.servers):
            works = partial(self._can_write, number)
            await eventually(works, within=_RECOVERY, message=f"{self.backend} at {server.endpoint} can write")

    async def _can_write(self, number: int) -> bool:
        try:
            async with self.direct(number, connection_timeout=2.0, request_timeout=2.0) as store:
                await store.put("healed", b"")
                await store.delete("healed")
        except StoreError:
            return False
        return True

    def _make(self, endpoints: Sequence[str], settings: dict[str, Any]) -> AsyncStore:
        return new_store(self.backend, endpoints, Config(**{"prefix": self.prefix, **settings}))


@asynccontextmanager
async def behind_proxies(backend: str, cluster: Cluster[Any]) -> AsyncIterator[Nodes]:
    """Put proxies before a running cluster, and heal it afterwards."""
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(FaultProxy(server.host, server.port, protocol=_FRAMINGS[backend]))
            for server in cluster.servers
        ]
        nodes = Nodes(backend, cluster, proxies, f"t-{uuid4().hex[:12]}")
        stack.push_async_callback(nodes.heal)
        yield nodes

"""The servers on which locks are tried, one description for each backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from aiolibkv.testing.framing import Framing
from aiolibkv.testing.servers import EtcdServer


@dataclass(frozen=True)
class Service:
    """A running server.

    Attributes:
        scheme: of its URLs.
        host: where it listens.
        port: where it listens; 0 when it is no server.
        ttl: seconds; what a lock takes so that tests are short.
        framing: by which a proxy finds requests.
        restart: restarts it with its data.
    """

    scheme: str
    host: str
    port: int
    ttl: float
    restart: Callable[[], Awaitable[None]]
    framing: Framing = "raw"

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    def url(self, endpoint: str, name: str) -> str:
        """Return a URL for a directory of a test's own, through a given endpoint."""
        return f"{self.scheme}://{endpoint}/{name}"


@asynccontextmanager
async def etcd() -> AsyncIterator[Service]:
    async with EtcdServer() as server:
        yield Service("etcd", server.host, server.port, 2, server.restart, "http2")


SERVICES: dict[str, Callable[[], AbstractAsyncContextManager[Service]]] = {"etcd": etcd}

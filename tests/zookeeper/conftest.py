"""Servers that the tests share, and stores on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import pytest

from aiolibkv import Config
from aiolibkv.backends.zookeeper import ZooKeeperDriver
from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers import ZooKeeperCluster, ZooKeeperServer
from stores import ZooKeeperStore

MakeStore = Callable[..., ZooKeeperStore]


class OneShotDriver(ZooKeeperDriver):
    """A driver that uses what ZooKeeper 3.5 knows."""

    uses_operations_of_3_6: ClassVar[bool] = False


class OneShotStore(ZooKeeperStore):
    """A store that uses what ZooKeeper 3.5 knows."""

    kind: ClassVar[type[ZooKeeperDriver]] = OneShotDriver


def make_store(
    endpoints: Sequence[str], *, kind: type[ZooKeeperStore] = ZooKeeperStore, prefix: str | None = None, **settings: Any
) -> ZooKeeperStore:
    """Make a store whose sessions do not outlive it for long."""
    options = {"session_timeout": 4.0, **settings.pop("options", {})}
    settings = {"request_timeout": scaled(10), **settings}
    return kind(endpoints, Config(prefix=prefix or "", options=options, **settings))


@pytest.fixture(scope="session")
def server() -> Iterator[ZooKeeperServer]:
    """One server that nobody stops."""
    one = ZooKeeperServer()
    asyncio.run(one.start())
    yield one
    asyncio.run(one.close())


@pytest.fixture(scope="session")
def cluster() -> Iterator[ZooKeeperCluster]:
    """Three servers that nobody stops."""
    three = ZooKeeperCluster()
    asyncio.run(three.start())
    yield three
    asyncio.run(three.close())


@pytest.fixture
def make(server: ZooKeeperServer, prefix: str) -> MakeStore:
    """Make stores on the one server, below the test's own directory."""

    def make(**settings: Any) -> ZooKeeperStore:
        return make_store([server.endpoint], **{"prefix": prefix, **settings})

    return make

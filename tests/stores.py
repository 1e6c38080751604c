"""Stores whose driver's class is known, for tests that look inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from aiolibkv import Config
from aiolibkv.backends.consul import ConsulDriver
from aiolibkv.backends.etcd import EtcdDriver
from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.backends.postgresql import PostgresDriver
from aiolibkv.backends.sqlite import SqliteDriver
from aiolibkv.backends.zookeeper import ZooKeeperDriver
from aiolibkv.store import Store


class MemoryStore(Store[MemoryDriver]):
    """On the memory driver."""

    kind: ClassVar[type[MemoryDriver]] = MemoryDriver

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        super().__init__(self.kind(endpoints, config))


class SqliteStore(Store[SqliteDriver]):
    """On the SQLite driver."""

    kind: ClassVar[type[SqliteDriver]] = SqliteDriver

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        super().__init__(self.kind(endpoints, config))


class EtcdStore(Store[EtcdDriver]):
    """On the etcd driver."""

    kind: ClassVar[type[EtcdDriver]] = EtcdDriver

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        super().__init__(self.kind(endpoints, config))


class ConsulStore(Store[ConsulDriver]):
    """On the Consul driver."""

    kind: ClassVar[type[ConsulDriver]] = ConsulDriver

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        super().__init__(self.kind(endpoints, config))


class ZooKeeperStore(Store[ZooKeeperDriver]):
    """On the ZooKeeper driver."""

    kind: ClassVar[type[ZooKeeperDriver]] = ZooKeeperDriver

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        super().__init__(self.kind(endpoints, config))


class PostgresStore(Store[PostgresDriver]):
    """On the PostgreSQL driver."""

    kind: ClassVar[type[PostgresDriver]] = PostgresDriver

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        super().__init__(self.kind(endpoints, config))

"""Backend ``zookeeper``: a store in Apache ZooKeeper."""

from aiolibkv.backends.zookeeper.store import ZooKeeperStore

__all__ = ["ZooKeeperStore"]

"""Backend ``zookeeper``: a store in Apache ZooKeeper."""

from aiolibkv.backends.zookeeper.driver import ZooKeeperDriver

__all__ = ["ZooKeeperDriver"]

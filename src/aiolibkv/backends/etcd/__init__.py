"""The etcd backend."""

from aiolibkv.backends.etcd.driver import EtcdDriver

__all__ = ["EtcdDriver"]

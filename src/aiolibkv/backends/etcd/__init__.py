"""The etcd backend."""

from aiolibkv.backends.etcd.store import EtcdStore

__all__ = ["EtcdStore"]

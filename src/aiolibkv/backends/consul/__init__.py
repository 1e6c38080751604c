"""Backend ``consul``: a store in Consul's key/value tree."""

from aiolibkv.backends.consul.store import ConsulStore

__all__ = ["ConsulStore"]

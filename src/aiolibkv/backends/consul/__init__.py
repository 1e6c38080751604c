"""Backend ``consul``: a store in Consul's key/value tree."""

from aiolibkv.backends.consul.driver import ConsulDriver

__all__ = ["ConsulDriver"]

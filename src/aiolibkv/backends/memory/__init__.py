"""Backend ``memory``: a store inside the process, for tests and as the reference of the contract."""

from aiolibkv.backends.memory.driver import MemoryDriver

__all__ = ["MemoryDriver"]

"""One asyncio key/value interface over etcd, Consul, ZooKeeper and embedded stores, with one set of guarantees."""

from aiolibkv.config import Config
from aiolibkv.errors import (
    AccessDeniedError,
    BackendNotSupportedError,
    CallNotSupportedError,
    CannotLockError,
    InvalidKeyError,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    LockLostError,
    NotReachableError,
    PreviousNotSpecifiedError,
    RequestTimeoutError,
    StoreClosedError,
    StoreError,
    ValueTooLargeError,
)
from aiolibkv.protocol import AsyncStore, HeldLock, Lock, Watch
from aiolibkv.registry import new_store, open_store, register_backend
from aiolibkv.types import Capabilities, Change, KVPair, Snapshot

__version__ = "0.1.0"

__all__ = [
    "AccessDeniedError",
    "AsyncStore",
    "BackendNotSupportedError",
    "CallNotSupportedError",
    "CannotLockError",
    "Capabilities",
    "Change",
    "Config",
    "HeldLock",
    "InvalidKeyError",
    "KVPair",
    "KeyExistsError",
    "KeyModifiedError",
    "KeyNotFoundError",
    "Lock",
    "LockLostError",
    "NotReachableError",
    "PreviousNotSpecifiedError",
    "RequestTimeoutError",
    "Snapshot",
    "StoreClosedError",
    "StoreError",
    "ValueTooLargeError",
    "Watch",
    "new_store",
    "open_store",
    "register_backend",
]

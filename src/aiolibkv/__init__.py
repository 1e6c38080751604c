"""One asyncio key/value interface over etcd, Consul, ZooKeeper and embedded stores, with one set of guarantees."""

from aiolibkv.config import Config
from aiolibkv.coordination import Candidate, Discovery, Election, Follower, Instance, Mirror, Registration, update
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
from aiolibkv.protocol import AsyncStore, HeldLock, Lock, Scan, Watch
from aiolibkv.registry import new_store, open_store, register_backend
from aiolibkv.types import ANY, Capabilities, Change, Check, Delete, KVPair, Put, Snapshot

__version__ = "0.1.0"

__all__ = [
    "ANY",
    "AccessDeniedError",
    "AsyncStore",
    "BackendNotSupportedError",
    "CallNotSupportedError",
    "Candidate",
    "CannotLockError",
    "Capabilities",
    "Change",
    "Check",
    "Config",
    "Delete",
    "Discovery",
    "Election",
    "Follower",
    "HeldLock",
    "Instance",
    "InvalidKeyError",
    "KVPair",
    "KeyExistsError",
    "KeyModifiedError",
    "KeyNotFoundError",
    "Lock",
    "LockLostError",
    "Mirror",
    "NotReachableError",
    "PreviousNotSpecifiedError",
    "Put",
    "Registration",
    "RequestTimeoutError",
    "Scan",
    "Snapshot",
    "StoreClosedError",
    "StoreError",
    "ValueTooLargeError",
    "Watch",
    "new_store",
    "open_store",
    "register_backend",
    "update",
]

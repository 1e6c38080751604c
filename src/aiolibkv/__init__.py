"""Locks, elections, settings and discovery on SQLite, PostgreSQL, etcd, Consul and ZooKeeper, with one asyncio API."""

from typing import TYPE_CHECKING

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
from aiolibkv.protocol import AsyncStore, HeldLock, Lock, Scan, Watch
from aiolibkv.registry import new_store, open_store, register_backend
from aiolibkv.types import ANY, Capabilities, Change, Check, Delete, KVPair, Put, Snapshot

if TYPE_CHECKING:
    from aiolibkv.coordination import (
        Candidate,
        Discovery,
        Election,
        Follower,
        Instance,
        Mirror,
        Namespace,
        PeriodicJob,
        ReadWriteLock,
        Registration,
        Semaphore,
        update,
    )

__version__ = "0.2.0"

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
    "Namespace",
    "NotReachableError",
    "PeriodicJob",
    "PreviousNotSpecifiedError",
    "Put",
    "ReadWriteLock",
    "Registration",
    "RequestTimeoutError",
    "Scan",
    "Semaphore",
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


def __getattr__(name: str) -> object:
    """Import what coordinates when it is asked for: a quarter of this package, which many do not need."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from aiolibkv import coordination

    return getattr(coordination, name)

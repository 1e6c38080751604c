"""What guards compare: an epoch for each lock, which counts its acquisitions.

A transaction compares versions of data, and each new node of a lock begins at the same one. So each acquisition writes
the lock's epoch as well, and leaves a node below it that lives with the holder: it keeps the epoch from being deleted
and made again while a guard may be of the old one.
"""

from __future__ import annotations

from hashlib import blake2b

from aiolibkv.backends.zookeeper.connection import Connection
from aiolibkv.backends.zookeeper.failures import TransactionRefusedError
from aiolibkv.backends.zookeeper.operations import check, transaction
from aiolibkv.backends.zookeeper.tree import Ops, is_retried, znode
from aiolibkv.errors import LockLostError, StoreError
from aiolibkv.store import Guard

_LOCK_VERSION = 3
"""The least version of a held lock's key, so that a guard sees when others deleted and wrote it."""
_VERSIONS = 2**32
"""More than a node has versions."""


class Epochs:
    """The epochs of one store's locks.

    Attributes:
        lock_version: at which the key of a lock is while it is held.
    """

    def __init__(self, hidden: str, root: str) -> None:
        """Keep where they are.

        Args:
            hidden: where the library keeps what is its own, with a slash at the end.
            root: the store's prefix.
        """
        self._hidden = hidden
        # Stores that know the same key by another name have other epochs, and a prefix of another depth.
        depth = len(root.split("/")) if root else 0
        self.lock_version: int = _LOCK_VERSION + 2 * depth

    def path(self, lock: str) -> str:
        """Return the epoch of a lock."""
        return f"{self._hidden}epochs/{blake2b(lock.encode(), digest_size=16).hexdigest()}"

    def holder(self, lock: str, number: int) -> str:
        """Return the node that stands for an acquisition."""
        return f"{self.path(lock)}/{number}"

    def checks(self, guard: Guard | None) -> Ops:
        """Return what has a transaction depend on a guard."""
        if guard is None:
            return []
        number, version = divmod(guard.token, _VERSIONS)
        return [
            check(znode(guard.path), self.lock_version),
            check(znode(self.path(guard.path)), version),
            check(znode(self.holder(guard.path, number))),
        ]

    async def require(self, connection: Connection, guard: Guard | None) -> None:
        """Raise LockLostError unless a guard holds."""
        if guard is not None:
            try:
                await connection.ask(transaction(self.checks(guard)))
            except TransactionRefusedError as error:
                raise guard_failed(error) from error


def token_of(number: int, version: int) -> int:
    """Return what guards of an acquisition compare: its number, and the version that it gave to the epoch."""
    return number * _VERSIONS + version


def guard_failed(error: TransactionRefusedError) -> StoreError:
    """Return what the refusal of a guard's part of a transaction means."""
    return LockLostError() if is_retried(error.reason) else error.reason

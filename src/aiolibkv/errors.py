"""Every error that the library raises.

A backend raises these bare (``KeyNotFoundError()``); the shared machinery fills in where it happened.
"""

from __future__ import annotations

from typing import ClassVar

_LONGEST_SHOWN = 512
_SHOWN = 32


def _shortened(key: str) -> str:
    """Return a key, or the beginning of one that is too long for any store."""
    return key if len(key) <= _LONGEST_SHOWN else f"{key[:_SHOWN]}..."


class StoreError(Exception):
    """Base of all errors of a store.

    Attributes:
        backend: name of the backend, such as ``"etcd"``.
        endpoint: the server spoken to, or all configured ones when none was reached.
        key: the key or directory of the call.
        maybe_applied: for a write, False only when it was certainly not applied.
    """

    meaning: ClassVar[str] = "the store failed"

    def __init__(
        self,
        message: str = "",
        *,
        backend: str | None = None,
        endpoint: str | None = None,
        key: str | None = None,
        maybe_applied: bool = False,
    ) -> None:
        super().__init__(message)
        self.message: str = message or self.meaning
        self.backend: str | None = backend
        self.endpoint: str | None = endpoint
        self.key: str | None = key
        self.maybe_applied: bool = maybe_applied

    def __str__(self) -> str:
        where = " at ".join(part for part in (self.backend, self.endpoint) if part)
        key = "" if self.key is None else f"key {_shortened(self.key)!r}"
        context = ", ".join(part for part in (where, key) if part)
        doubt = "; the write may have been applied" if self.maybe_applied else ""
        return f"{self.message} ({context}){doubt}" if context else f"{self.message}{doubt}"

    def locate(self, backend: str, endpoint: str, key: str | None) -> None:
        """Fill in where the error happened, as far as it is not known yet."""
        self.backend = self.backend or backend
        self.endpoint = self.endpoint or endpoint
        self.key = key if self.key is None else self.key


class BackendNotSupportedError(StoreError):
    """No backend of that name, or its package is not installed."""

    meaning = "the backend is not available"


class CallNotSupportedError(StoreError):
    """The backend cannot do this; nothing was written."""

    meaning = "the backend does not support this call"


class InvalidKeyError(StoreError, ValueError):
    """The key breaks the rules that hold on every backend."""

    meaning = "the key is not valid"


class ValueTooLargeError(StoreError, ValueError):
    """The value exceeds ``capabilities.max_value_bytes``, or a commit ``max_commit_bytes``; nothing was sent."""

    meaning = "the value is too large"


class KeyNotFoundError(StoreError, KeyError):
    """There is no such key."""

    meaning = "the key does not exist"


class KeyExistsError(StoreError):
    """The key to be created exists."""

    meaning = "the key exists already"


class KeyModifiedError(StoreError):
    """The key is not what ``previous`` says: changed, created again, or gone."""

    meaning = "the key was modified since previous was read"


class PreviousNotSpecifiedError(StoreError):
    """``atomic_delete`` needs the pair to delete."""

    meaning = "previous is None; it must be the pair to delete"


class CannotLockError(StoreError):
    """The Lock is held or waited for already, or was released without having been acquired."""

    meaning = "the lock cannot be used like this"


class LockLostError(StoreError):
    """The lock is not held any more; a guarded write was not applied."""

    meaning = "the lock is not held any more"


class AccessDeniedError(StoreError, PermissionError):
    """The server refuses these credentials, or these credentials may not do this."""

    meaning = "access denied"


class NotReachableError(StoreError, ConnectionError):
    """No server could be reached, or the connection broke before the answer."""

    meaning = "no server can be reached"


class RequestTimeoutError(StoreError, TimeoutError):
    """No answer within ``request_timeout``."""

    meaning = "no answer within request_timeout"


class StoreClosedError(StoreError):
    """The store is closed, or was never entered."""

    meaning = "the store is closed"

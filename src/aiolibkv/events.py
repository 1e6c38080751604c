"""What a store tells the callable that is ``Config.listener``.

Events are made in the event loop of the store, and the listener must not block it. Without a listener none is made.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """The base of all events.

    Attributes:
        backend: name of the backend, such as ``"etcd"``.
        endpoint: the server spoken to, or all configured ones when it is none.
    """

    backend: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class CallEnded(Event):
    """A public call ended; told in the caller's context, once for each call.

    Attributes:
        call: its name, such as ``"atomic_put"``.
        key: the key or directory it was about, None for a call on several keys.
        seconds: how long it took.
        error: what it raised, None when it returned; a CancelledError when it was cancelled.
    """

    call: str
    key: str | None
    seconds: float
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class Connected(Event):
    """A connection to a server was made; ``endpoint`` names the server."""


@dataclass(frozen=True, slots=True)
class Disconnected(Event):
    """A connection to a server ended.

    Attributes:
        reason: why, in words.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class WatchStale(Event):
    """A watch is cut off from the server.

    Attributes:
        key: the key or directory watched.
        reason: why, in words.
    """

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class WatchResumed(Event):
    """A watch that was stale is up to date again.

    Attributes:
        key: the key or directory watched.
        seconds: how long it was stale.
    """

    key: str
    seconds: float


@dataclass(frozen=True, slots=True)
class LockAcquired(Event):
    """A lock was acquired.

    Attributes:
        key: the lock's key.
        fencing_token: of this acquisition.
        seconds: how long it was waited for.
    """

    key: str
    fencing_token: int
    seconds: float


@dataclass(frozen=True, slots=True)
class LockLost(Event):
    """A lock that was held was lost.

    Attributes:
        key: the lock's key.
        reason: why, in words.
    """

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class LeaseLost(Event):
    """The lease of keys kept alive was lost; they are created again.

    Attributes:
        reason: why, in words.
    """

    reason: str

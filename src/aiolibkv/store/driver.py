"""What passes between the shared machinery and a backend."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from aiolibkv.types import KVPair


class Call:
    """What a backend reports of the call it carries out.

    Before a write goes on the wire: ``writing()``. When an answer says that it was not applied: ``settled()``.
    In a call of many pages, after each page: ``extend()``; when they begin anew within it: ``rewind()``. Reads need
    none of the first two.
    """

    __slots__ = ("_deadline", "_furthest", "_page", "_timeout", "maybe_applied")

    def __init__(self, deadline: asyncio.Timeout, timeout: float) -> None:
        self._deadline = deadline
        self._timeout = timeout
        self._page = self._furthest = 0
        self.maybe_applied = False

    def writing(self) -> None:
        """Note that from now on the write may have been applied."""
        self.maybe_applied = True

    def settled(self) -> None:
        """Note that the write was not applied, so far as it was sent."""
        self.maybe_applied = False

    def extend(self) -> None:
        """Give the next page the whole request_timeout, unless it was arrived at before."""
        self._page += 1
        if self._page > self._furthest and not self._deadline.expired():
            self._furthest = self._page
            self._deadline.reschedule(asyncio.get_running_loop().time() + self._timeout)

    def rewind(self) -> None:
        """Note that the pages begin anew; whatever makes them do so again and again must not make the call endless."""
        self._page = 0


class Unseen(Enum):
    """The type of UNSEEN."""

    UNSEEN = "unseen"


UNSEEN: Final = Unseen.UNSEEN
"""What a glance returns when the read has to wait for something."""


class Listing(NamedTuple):
    """The pairs below a directory.

    Attributes:
        pairs: sorted, with paths as keys.
        exists: whether the directory is itself a key.
    """

    pairs: Sequence[KVPair]
    exists: bool


class Lifetime(NamedTuple):
    """What a put says of the time its key has.

    Attributes:
        ttl: seconds.
        keep_alive: whether this store renews it.
    """

    ttl: float
    keep_alive: bool


@dataclass(eq=False)
class Lease:
    """A lifetime that the server enforces. Backends subclass it to keep their identifiers.

    Attributes:
        ttl: seconds from a grant or renewal to its end, as the server keeps it.
        overshoot: seconds after that end within which the server has removed its keys.
    """

    ttl: float
    overshoot: float = 0.0


class LeaseLost(Exception):  # noqa: N818 - a signal between backend and machinery, none of the library's errors
    """The server does not know the lease of a put any more; nothing was written."""


class Guard(NamedTuple):
    """The condition of a write that one acquisition of a lock still stands.

    Attributes:
        path: the lock's key, as the server stores it.
        token: the index that the acquisition gave to it, or what else the backend's ``_acquire`` returned.
    """

    path: str
    token: int

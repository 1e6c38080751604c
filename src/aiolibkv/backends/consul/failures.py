"""What Consul's servers say when they refuse, and what it means.

A text is known by how it begins or ends, or by what it contains: newer versions add to what older ones said, and a
follower or a client agent puts words of its own before those of the leader. Seen on 1.8.7, or read in the sources of
versions up to 1.22.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple

from aiolibkv.errors import (
    AccessDeniedError,
    InvalidKeyError,
    LockLostError,
    NotReachableError,
    StoreError,
    ValueTooLargeError,
)
from aiolibkv.store import Guard, LeaseLostError

_DENIED = "Permission denied"
"""How it begins when a token may not do this; from 1.12 on the token's accessor and what it lacks follow."""
_UNKNOWN_TOKEN = "ACL not found"  # noqa: S105 - no password, though it is about tokens
"""How it ends when the servers do not know the token."""

_UNSENT = "rpc error getting client: "
"""An agent found no way to the server that was to carry it out."""
_FORWARDED = (_UNSENT, "rpc error making call: ")
"""What stands before the words of the server that a request was forwarded to."""

_NOTHING_DONE = (
    "No cluster leader",
    "node is not the leader",
    "Raft leader not found in server lookup mapping",
    "No known Consul servers",
    "No path to datacenter",
    "Remote DC has no server currently reachable",
    "Not ready to serve consistent reads",
    "rate limit exceeded",
)
"""No other 500 or 503 says that nothing was written: "leadership lost while committing log" does not."""

_BAD_NAME = ("invalid key name", "key contains ", "key must not ", "url path contains ")
"""How 1.21.5 and later begin, in small letters, when a URL names a key whose characters they refuse."""
_BAD_TTL = "Invalid Session TTL"
_NO_NODE = "Missing node registration"
_NO_TLS = "Client sent an HTTP request to an HTTPS server"

_REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
"""By Consul, or by a proxy before it."""
_NEVER_HANDED_ON = frozenset({HTTPStatus.REQUEST_URI_TOO_LONG, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE})
"""By a proxy, which would say the same each time."""
_UNDONE = range(300, 500)
"""Sent elsewhere, or back."""
_READ_BY_CALLERS = frozenset({HTTPStatus.OK, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT})

_TITLE = re.compile(r"<title[^>]*>\s*(.*?)\s*</title", re.IGNORECASE | re.DOTALL)
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def cause_of(text: str) -> str:
    """Return a server's words without those of the servers that passed them on."""
    while text.startswith(_FORWARDED):
        text = text.partition(": ")[2]
    return text


def lacks_right(text: str) -> bool:
    """Tell whether a server says that the token may not do this."""
    return cause_of(text).startswith(_DENIED)


def denies(text: str) -> bool:
    """Tell whether a server says that the token may not do this, or that there is no such token."""
    return lacks_right(text) or text.endswith(_UNKNOWN_TOKEN)


def knows_no_token(text: str) -> bool:
    """Tell whether a server says, or one of several errors of a transaction does, that there is no such token."""
    return _UNKNOWN_TOKEN in text


def lacks_node(text: str) -> bool:
    """Tell whether a server says that there is no node of the name that a session was to be bound to."""
    return cause_of(text).startswith(_NO_NODE)


def shortest_ttl(text: str) -> float | None:
    """Return the shortest TTL in seconds that a server has for sessions, when it refused one; else None.

    Raises:
        ValueError: it cannot be read.
    """
    if not cause_of(text).startswith(_BAD_TTL):
        return None
    bounds = re.search(r"between \[(.+)=", text)
    if bounds is None:
        raise ValueError(f"no bounds in {text!r}")
    return parse_duration(bounds[1])


def parse_duration(text: str) -> float:
    """Return the seconds of a duration as Go writes it: "1m30s"."""
    return math.fsum(
        float(number) * _SECONDS[unit] for number, unit in re.findall(r"([\d.]+)(h|ms|m|us|µs|ns|s)", text)
    )


def failure_of(status: int, text: str, subject: str) -> StoreError | None:
    """Return the error that an answer stands for; None for those that a caller has to read itself.

    A NotReachableError's ``maybe_applied`` is False when the server says that nothing was done.

    Args:
        status: of HTTP.
        text: the beginning of the body.
        subject: what the request was about.
    """
    if status in _READ_BY_CALLERS or cause_of(text).startswith((_BAD_TTL, _NO_NODE)):
        return None
    said = shown(text)
    if status in _REFUSED or denies(text):
        return AccessDeniedError(f"access to {subject} denied: {said}")
    if cause_of(text).lower().startswith(_BAD_NAME):
        return InvalidKeyError(f"the server takes no such key: {said}")
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return ValueTooLargeError(f"the server takes less: {said}")
    if text.startswith(_NO_TLS):
        return NotReachableError(f"the server wants TLS: {said}", maybe_applied=False)
    if status in _NEVER_HANDED_ON or (status == HTTPStatus.BAD_REQUEST and not is_page(text)):
        return StoreError(f"the server answered {status}: {said}")
    # Consul answers so when it is in trouble; or what answers is not Consul.
    undone = status in _UNDONE or text.startswith(_UNSENT) or any(phrase in text for phrase in _NOTHING_DONE)
    return NotReachableError(f"the server answered {status}: {said}", maybe_applied=not undone)


def is_page(text: str) -> bool:
    """Tell whether an answer is an HTML page, which Consul's API never sends."""
    return text.startswith("<")


def shown(text: str) -> str:
    """Return a server's words for an error, of a page its title."""
    if not is_page(text):
        return text
    title = _TITLE.search(text)
    name = f" ({title[1]})" if title else ""
    return f"an HTML page{name}, as of something else before Consul or in its place"


class Failure(NamedTuple):
    """Why an operation of a transaction failed.

    Attributes:
        position: which operation.
        reason: the server's text.
    """

    position: int
    reason: str

    @property
    def denied(self) -> bool:
        """Whether it is a matter of access."""
        return denies(self.reason)

    @property
    def missing(self) -> bool:
        """Whether the key does not exist."""
        return self.reason.endswith("doesn't exist")

    @property
    def modified(self) -> bool:
        """Whether the key is at another index."""
        return self.reason.startswith("failed index check")

    @property
    def exists(self) -> bool:
        """Whether there is a key that must not exist."""
        return self.reason.endswith(" exists")


class TxnFailedError(Exception):
    """A transaction was refused as a whole; nothing was applied.

    Attributes:
        failures: of its operations.
        paths: the keys of its operations.
    """

    def __init__(self, failures: Sequence[Failure], paths: Sequence[str]) -> None:
        super().__init__(failures)
        self.failures = failures
        self.paths = paths

    def raise_if_denied(self) -> None:
        """Raise AccessDeniedError when it is a matter of access."""
        for failure in self.failures:
            if failure.denied:
                raise self._denial(failure) from None

    def is_denied(self, position: int) -> bool:
        """Tell whether it is a matter of access to the key of one operation."""
        return any(failure.denied for failure in self.failures if failure.position == position)

    def tells_of_key(self, position: int) -> bool:
        """Tell whether there is the key of an operation that failed in either case.

        Raises:
            StoreError: it does not tell.
        """
        for failure in self.failures:
            if failure.position == position and (failure.missing or failure.modified):
                return failure.modified
        raise StoreError(f"the server refused: {self.failures[0].reason}")

    def refusal(self, guard: Guard | None) -> Exception | None:
        """Return the error for it, if that does not depend on what an operation was for.

        Args:
            guard: the lock that the first operation checks, if it does.
        """
        for failure in self.failures:
            if failure.denied:
                return self._denial(failure)
        if guard is not None and any(failure.position == 0 for failure in self.failures):
            return LockLostError(key=guard.path)
        for failure in self.failures:
            if failure.reason.startswith("invalid session"):
                return LeaseLostError()
            if failure.reason.endswith("due to lock delay"):
                return NotReachableError(f"the key cannot be taken yet: {failure.reason}")
        return None

    def _denial(self, failure: Failure) -> AccessDeniedError:
        return AccessDeniedError(f"access to {self.paths[failure.position]!r} denied: {failure.reason}")

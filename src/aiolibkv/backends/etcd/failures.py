"""What the statuses of failed calls mean; texts as etcd 3.4 and 3.5 word them."""

from __future__ import annotations

from typing import NamedTuple

from aiolibkv.backends.etcd.channel import RpcFailedError
from aiolibkv.errors import AccessDeniedError, NotReachableError, StoreError


class RefusedError(StoreError):
    """The server refuses a request for a reason that its sender has to judge; nothing was applied."""

    def says(self, text: str) -> bool:
        """Tell whether the server's words contain a text."""
        return text in self.message


class AnswerTooLargeError(RefusedError):
    """The answer to a read exceeds what is received in one message."""


class Meaning(NamedTuple):
    """What a failed call comes to.

    Attributes:
        error: what to raise.
        refused: whether the request certainly was not applied.
        breaks: whether the link is of no use any more.
        token: whether another token may help.
    """

    error: StoreError
    refused: bool
    breaks: bool
    token: bool = False


# A code, a part of the text, the error, and whether the request was refused and the link is of no use. The first that
# fits counts; "" fits always.
_STATUSES: tuple[tuple[str, str, type[StoreError], bool, bool], ...] = (
    # Not etcd, but a web server or a proxy that has nobody behind it; gRPC makes a status of its own of theirs.
    ("", "Received http2 header with status", NotReachableError, False, True),
    ("UNKNOWN", "No status received", NotReachableError, False, True),
    # Not etcd, but another service that speaks gRPC.
    ("UNIMPLEMENTED", "", NotReachableError, True, True),
    # The server holds on to what it knows, but cannot serve: another one may.
    ("UNAVAILABLE", "etcdserver: no leader", NotReachableError, True, True),
    ("UNAVAILABLE", "not supported for learner", NotReachableError, True, True),
    ("UNAVAILABLE", "etcdserver: leader changed", NotReachableError, False, False),
    ("UNAVAILABLE", "etcdserver: request timed out", NotReachableError, False, True),
    ("UNAVAILABLE", "", NotReachableError, False, True),
    ("RESOURCE_EXHAUSTED", "too many requests", NotReachableError, True, False),
    # A write that was on its way when the space ran out is carried out, and answered like this all the same.
    ("RESOURCE_EXHAUSTED", "space exceeded", StoreError, False, False),
    ("RESOURCE_EXHAUSTED", "Received message larger than max", AnswerTooLargeError, False, False),
    ("RESOURCE_EXHAUSTED", "", StoreError, True, False),
    ("PERMISSION_DENIED", "", AccessDeniedError, True, False),
    ("UNAUTHENTICATED", "", AccessDeniedError, True, False),
    ("INVALID_ARGUMENT", "authentication failed", AccessDeniedError, True, False),
    ("INVALID_ARGUMENT", "user name is empty", AccessDeniedError, True, False),
    ("INVALID_ARGUMENT", "revision of auth store is old", AccessDeniedError, True, False),
    ("FAILED_PRECONDITION", "user name not found", AccessDeniedError, True, False),
    ("INVALID_ARGUMENT", "", RefusedError, True, False),
    ("FAILED_PRECONDITION", "", RefusedError, True, False),
    ("NOT_FOUND", "", RefusedError, True, False),
    ("OUT_OF_RANGE", "", RefusedError, True, False),
    ("ALREADY_EXISTS", "", RefusedError, True, False),
    # A broken stream, or a server that is going down.
    ("CANCELLED", "", NotReachableError, False, True),
    ("INTERNAL", "", NotReachableError, False, True),
    ("ABORTED", "", NotReachableError, False, True),
    ("DEADLINE_EXCEEDED", "", NotReachableError, False, False),
    ("UNKNOWN", "Stream removed", NotReachableError, False, True),
    # The leader is handing over to another.
    ("UNKNOWN", "raft proposal dropped", NotReachableError, True, False),
)
_TOKEN_REFUSALS = ("invalid auth token", "user name is empty", "revision of auth store is old")
_CLEARER = {
    "space exceeded": "the server's space quota is used up, it takes no writes until it is given room",
    "permission denied": "the user may not do this",
}


def explain(failure: RpcFailedError) -> Meaning:
    """Tell what a failed call comes to."""
    text = _worded(failure.details or failure.code)
    for code, part, error, refused, breaks in _STATUSES:
        if code in {"", failure.code} and part in failure.details:
            token = any(words in failure.details for words in _TOKEN_REFUSALS)
            return Meaning(error(text), refused or not failure.sent, breaks, token)
    return Meaning(StoreError(f"{failure.code}: {text}"), refused=False, breaks=False)


def _worded(details: str) -> str:
    for part, words in _CLEARER.items():
        if part in details:
            return f"{words}: {details}"
    return details

"""What the statuses of failed calls mean.

etcd is known by its words, whatever the code beside them: 3.6 gave some of them another code than 3.4 and 3.5, and
``etcd grpc-proxy`` gives most of them the code UNKNOWN. Codes count for what is not in etcd's words.
"""

from __future__ import annotations

from typing import NamedTuple

from aiolibkv.backends.etcd.channel import BROKEN, HTTP, NOT_GRPC, RESET, TOO_LARGE, RpcFailedError
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
        doubtful: whether there may be no server behind the link, as far as this call's failure says.
    """

    error: StoreError
    refused: bool
    breaks: bool
    token: bool = False
    doubtful: bool = False


class _Kind(NamedTuple):
    error: type[StoreError]
    refused: bool
    breaks: bool
    token: bool = False
    doubtful: bool = False


_REFUSED = _Kind(RefusedError, refused=True, breaks=False)
_DENIED = _Kind(AccessDeniedError, refused=True, breaks=False)
_OLD_TOKEN = _Kind(AccessDeniedError, refused=True, breaks=False, token=True)
# Not now, but the server may take it soon.
_LATER = _Kind(NotReachableError, refused=True, breaks=False)
# The server holds on to what it knows, but cannot serve: another one may.
_ELSEWHERE = _Kind(NotReachableError, refused=True, breaks=True)
_UNANSWERED = _Kind(NotReachableError, refused=False, breaks=False)
_BROKEN = _Kind(NotReachableError, refused=False, breaks=True)
# A proxy did not get its answer, or the server is going down: other calls and watches on the link may go on.
_DOUBTFUL = _Kind(NotReachableError, refused=False, breaks=False, doubtful=True)
_FAILED = _Kind(StoreError, refused=False, breaks=False)

# Parts of texts, from the sources of etcd 3.4 to 3.7; the first that fits counts.
_TEXTS: dict[str, _Kind] = {
    "etcdserver: no leader": _ELSEWHERE,
    "etcdserver: rpc not supported for learner": _ELSEWHERE,
    "etcdserver: not capable": _ELSEWHERE,
    # 3.5 and 3.6 say so of a renewal when nobody vouches for them as leader.
    "not a primary lessor": _ELSEWHERE,
    "etcdserver: not leader": _ELSEWHERE,
    "etcdserver: leader changed": _UNANSWERED,
    "etcdserver: request cancel": _UNANSWERED,
    "etcdserver: request timed out": _BROKEN,
    "etcdserver: server stopped": _BROKEN,
    # A member that was just removed (3.5).
    "raft: stopped": _BROKEN,
    "etcdserver: too many requests": _LATER,
    # The leader is handing over to another.
    "raft proposal dropped": _LATER,
    # A write that was on its way when the space ran out is carried out, and answered like this all the same.
    "etcdserver: mvcc: database space exceeded": _FAILED,
    "etcdserver: corrupt cluster": _FAILED,
    "etcdserver: permission denied": _DENIED,
    "etcdserver: authentication failed": _DENIED,
    "etcdserver: user name not found": _DENIED,
    "etcdserver: invalid auth token": _OLD_TOKEN,
    "etcdserver: user name is empty": _OLD_TOKEN,
    "etcdserver: revision of auth store is old": _OLD_TOKEN,
    "etcdserver: authentication is not enabled": _REFUSED,
    "etcdserver: key is not provided": _REFUSED,
    "etcdserver: request is too large": _REFUSED,
    "etcdserver: too many operations in txn request": _REFUSED,
    "etcdserver: duplicate key given in txn request": _REFUSED,
    "etcdserver: mvcc: required revision": _REFUSED,
    "etcdserver: requested lease not found": _REFUSED,
    "etcdserver: lease already exists": _REFUSED,
    "etcdserver: too large lease TTL": _REFUSED,
}

_CODES: dict[str, _Kind] = {
    BROKEN: _BROKEN,
    NOT_GRPC: _BROKEN,
    # What a proxy says by itself of one request. Any other answer of HTTP is that of a web server in etcd's place.
    f"{HTTP}401": _DENIED,
    f"{HTTP}403": _DENIED,
    f"{HTTP}408": _UNANSWERED,
    f"{HTTP}413": _REFUSED,
    f"{HTTP}429": _LATER,
    f"{HTTP}431": _REFUSED,
    f"{HTTP}500": _DOUBTFUL,
    f"{HTTP}502": _DOUBTFUL,
    f"{HTTP}503": _DOUBTFUL,
    f"{HTTP}504": _DOUBTFUL,
    # nginx and HAProxy end a watch on which nothing was said for about a minute; other calls go on.
    RESET: _DOUBTFUL,
    TOO_LARGE: _Kind(AnswerTooLargeError, refused=False, breaks=False),
    # Not etcd, but another service that speaks gRPC.
    "UNIMPLEMENTED": _ELSEWHERE,
    "UNAVAILABLE": _DOUBTFUL,
    "CANCELLED": _DOUBTFUL,
    "INTERNAL": _DOUBTFUL,
    "ABORTED": _DOUBTFUL,
    "DEADLINE_EXCEEDED": _UNANSWERED,
    "RESOURCE_EXHAUSTED": _Kind(StoreError, refused=True, breaks=False),
    "PERMISSION_DENIED": _DENIED,
    "UNAUTHENTICATED": _DENIED,
    "INVALID_ARGUMENT": _REFUSED,
    "FAILED_PRECONDITION": _REFUSED,
    "NOT_FOUND": _REFUSED,
    "OUT_OF_RANGE": _REFUSED,
    "ALREADY_EXISTS": _REFUSED,
}

_CLEARER = {
    "space exceeded": "the server's space quota is used up, it takes no writes until it is given room",
    "permission denied": "the user may not do this",
    "not supported for learner": "the endpoint is a learner, which does not serve yet",
}


def explain(failure: RpcFailedError) -> Meaning:
    """Tell what a failed call comes to."""
    # A call that was cancelled because its link ended has the words of what ended it, which say nothing of the call.
    words = "" if failure.code == "CANCELLED" else failure.details
    kind = _kind_of(words) or _CODES.get(failure.code) or (_BROKEN if failure.is_http else None)
    text = _worded(failure.details or failure.code)
    if kind is None:
        return Meaning(StoreError(f"{failure.code}: {text}"), refused=False, breaks=False)
    return Meaning(kind.error(text), kind.refused or not failure.sent, kind.breaks, kind.token, kind.doubtful)


def explain_cancellation(reason: str) -> StoreError:
    """Tell what it comes to that a server ended a watch, for a reason that a proxy may have left out."""
    kind = _kind_of(reason)
    error = NotReachableError if kind is None and not reason else StoreError if kind is None else kind.error
    return error(f"the server does not watch: {_worded(reason) or 'no reason is given'}")


def _kind_of(words: str) -> _Kind | None:
    return next((kind for part, kind in _TEXTS.items() if part in words), None)


def _worded(details: str) -> str:
    for part, words in _CLEARER.items():
        if part in details:
            return f"{words}: {details}"
    return details

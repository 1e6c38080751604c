"""What the error codes of a ZooKeeper server mean to the user of a store."""

from __future__ import annotations

from typing import ClassVar

from aiolibkv.errors import AccessDeniedError, NotReachableError, StoreError


class RefusedError(StoreError):
    """The server refused an operation; nothing of it was done.

    Attributes:
        code: the server's, negative.
    """

    meaning: ClassVar[str] = "the server refused the request"

    def __init__(self, code: int) -> None:
        super().__init__(f"{self.meaning} (code {code})")
        self.code = code


class NoNodeError(RefusedError):
    """There is no such node, or no parent to create it below."""

    meaning = "there is no such node"


class BadVersionError(RefusedError):
    """The node is at another version."""

    meaning = "the node is at another version"


class EphemeralParentError(RefusedError):
    """The parent is an ephemeral node, which has no children."""

    meaning = "an ephemeral node has no children"


class NodeExistsError(RefusedError):
    """The node exists already."""

    meaning = "the node exists"


class NotEmptyError(RefusedError):
    """The node has children, and cannot be deleted."""

    meaning = "the node has children"


class UnknownOperationError(RefusedError):
    """The server is too old for this operation."""

    meaning = "the server does not know this operation"


_REFUSALS: dict[int, type[RefusedError]] = {
    -6: UnknownOperationError,
    -101: NoNodeError,
    -103: BadVersionError,
    -108: EphemeralParentError,
    -110: NodeExistsError,
    -111: NotEmptyError,
}
_DENIALS = {
    -102: "access to {path} denied",
    -114: "the server takes no such ACL for {path}: an identity in it is unknown, or 'auth' stands for nobody",
    -115: "the server does not accept the user",
    -124: "the server serves only those who have logged in",
}
SESSION_CODES = frozenset({-112, -118})
"""SessionExpired, SessionMoved: this connection has no session any more."""
_PASSING = frozenset({-4, -7, -127}) | SESSION_CODES
"""ConnectionLoss, OperationTimeout, Throttled."""
ROLLED_BACK = frozenset({0, -2})
"""What a refused transaction says of those operations that were not to blame."""


def refusal(code: int, path: str = "") -> StoreError:
    """Return the error that an error code of the server stands for.

    Args:
        code: the server's.
        path: the node that is refused, which may be one above that of the key, created or removed together with it.
    """
    if code in _DENIALS:
        return AccessDeniedError(_DENIALS[code].format(path=path or "the server"))
    if code in _PASSING:
        return NotReachableError(f"the server cannot serve now (code {code})")
    return _REFUSALS.get(code, RefusedError)(code)


class TransactionRefusedError(StoreError):
    """A transaction was refused; nothing of it was done.

    Attributes:
        position: which of its operations is to blame.
        reason: what is wrong with that.
    """

    meaning = "the transaction was refused"

    def __init__(self, position: int, reason: StoreError) -> None:
        super().__init__(f"{self.meaning}: {reason.message}")
        self.position = position
        self.reason = reason

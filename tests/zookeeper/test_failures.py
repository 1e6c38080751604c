"""What the error codes of a server, the same in all versions, mean to the user of a store."""

from __future__ import annotations

import pytest

from aiolibkv import AccessDeniedError, NotReachableError, StoreError
from aiolibkv.backends.zookeeper import failures
from aiolibkv.backends.zookeeper.failures import refusal


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (-4, NotReachableError),  # ConnectionLoss
        (-6, failures.UnknownOperationError),  # Unimplemented
        (-7, NotReachableError),  # OperationTimeout
        (-101, failures.NoNodeError),
        (-102, AccessDeniedError),  # NoAuth
        (-103, failures.BadVersionError),
        (-108, failures.EphemeralParentError),  # NoChildrenForEphemerals
        (-110, failures.NodeExistsError),
        (-111, failures.NotEmptyError),
        (-112, NotReachableError),  # SessionExpired
        (-114, AccessDeniedError),  # InvalidACL
        (-115, AccessDeniedError),  # AuthFailed
        (-118, NotReachableError),  # SessionMoved
        (-124, AccessDeniedError),  # SessionClosedRequireAuth
        (-127, NotReachableError),  # Throttled
        (-8, failures.RefusedError),  # BadArguments, and whatever else
    ],
)
def test_codes(code: int, kind: type[StoreError]) -> None:
    error = refusal(code)
    assert type(error) is kind
    assert kind is AccessDeniedError or f"(code {code})" in error.message

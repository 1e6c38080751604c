"""What is packed here is what aiozk's codec packs."""

from __future__ import annotations

from typing import Any

import pytest
from aiozk import protocol
from aiozk.protocol.acl import AUTHED_UNRESTRICTED, UNRESTRICTED_ACCESS

from aiolibkv.backends.zookeeper import operations as ops

_CASES: list[tuple[ops.Operation[Any], Any]] = [
    (ops.get("/ä", watch=True), protocol.GetDataRequest(path="/ä", watch=True)),
    (ops.get_children("/a"), protocol.GetChildrenRequest(path="/a", watch=False)),
    (ops.exists("/a"), protocol.ExistsRequest(path="/a", watch=False)),
    (
        ops.create("/a", None, ops.WORLD, ephemeral=True),
        protocol.Create2Request(path="/a", data=None, acl=[UNRESTRICTED_ACCESS], flags=1),
    ),
    (
        ops.create("/a", b"x", ops.CREATOR),
        protocol.Create2Request(path="/a", data=b"x", acl=[AUTHED_UNRESTRICTED], flags=0),
    ),
    (ops.set_data("/a", b"", 3), protocol.SetDataRequest(path="/a", data=b"", version=3)),
    (ops.sync(), protocol.SyncRequest(path="/")),
    (ops.remove_watches("/a"), protocol.RemoveWatchesRequest(path="/a", type=3)),
    (ops.close_session(), protocol.CloseRequest()),
]


@pytest.mark.parametrize(("operation", "expected"), _CASES, ids=lambda case: type(case).__name__)
def test_a_request(operation: ops.Operation[Any], expected: Any) -> None:
    assert operation.encode(7) == expected.serialize(7)


def test_a_transaction() -> None:
    expected = protocol.TransactionRequest()
    expected.add(protocol.DeleteRequest(path="/a", version=3))
    expected.add(protocol.CheckVersionRequest(path="/b", version=-1))
    assert ops.transaction([ops.delete("/a", 3), ops.check("/b")]).encode(7) == expected.serialize(7)


def test_a_ping() -> None:
    assert ops.ping() == protocol.PingRequest().serialize(protocol.PING_XID)

"""The encodings of both binary protocols: whatever arrives is read or refused in one way, and soon.

The vectors and round trips of etcd's encoding are in tests/etcd/test_codec.py; here it is damaged.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import fields
from time import perf_counter
from typing import Any

import pytest
from aiozk import protocol
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiolibkv.backends.etcd import codec, table
from aiolibkv.backends.zookeeper import operations as ops
from aiolibkv.backends.zookeeper.failures import NodeExistsError, TransactionRefusedError
from aiolibkv.backends.zookeeper.operations import MalformedError, Operation
from aiolibkv.testing.scale import scaled

_LONG = 2.0
"""Seconds that reading some bytes may take at most."""
_LARGE = 50_000

few = settings(max_examples=30)
some = settings(max_examples=60)

BYTES = st.binary(max_size=300)
EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "double"]), st.integers(0, 2**16), BYTES),
    min_size=1,
    max_size=4,
)


def _damaged(whole: bytes, edits: Sequence[tuple[str, int, bytes]]) -> bytes:
    """Change a message here and there."""
    data = bytearray(whole)
    for kind, place, extra in edits:
        at = place % (len(data) + 1)
        if kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = extra
        elif kind == "double":
            data[at:at] = data[:at]
        elif at < len(data):
            data[at] ^= 1 + place % 255
    return bytes(data)


def _in_time(read: Callable[[], object]) -> None:
    began = perf_counter()
    read()
    assert perf_counter() - began < scaled(_LONG)


# -- etcd --------------------------------------------------------------------------------------------------------------

KINDS = [kind for kind in vars(codec).values() if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__")]
PAIR = codec.KeyValue(b"key", 7, b"value")
RICH = [
    codec.RangeAnswer(codec.Header(7), [PAIR, PAIR], more=True, count=2),
    codec.TxnAnswer(
        codec.Header(7),
        succeeded=True,
        responses=[
            codec.OperationAnswer(range=codec.RangeAnswer(codec.Header(7), [PAIR], count=1)),
            codec.OperationAnswer(put=codec.PutAnswer(codec.Header(7))),
            codec.OperationAnswer(delete_range=codec.DeleteRangeAnswer(codec.Header(7), 1)),
        ],
    ),
    codec.WatchAnswer(codec.Header(7), 1, events=[codec.Event(0, PAIR), codec.Event(codec.Event.DELETE, PAIR)]),
    codec.WatchAnswer(codec.Header(7), 1, canceled=True, compact_revision=5, cancel_reason="compacted"),
    codec.LeaseGrantAnswer(codec.Header(7), 1 << 62, 30),
    codec.AuthenticateAnswer(codec.Header(7), "a.b"),
]


def _read_etcd(kind: type[Any], data: bytes) -> None:
    """Read a message, which is as declared, or refused in the one way that is."""
    try:
        message = codec.decode(kind, data)
    except table.MalformedError:
        return
    assert isinstance(message, kind)
    # What was read can be written, and is read again as the same.
    assert codec.decode(kind, codec.encode(message)) == message


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@few
@given(data=BYTES)
def test_etcd_reads_garbage(kind: type[Any], data: bytes) -> None:
    _in_time(lambda: _read_etcd(kind, data))


@pytest.mark.parametrize("message", RICH, ids=lambda message: type(message).__name__)
@some
@given(edits=EDITS)
def test_etcd_reads_damaged_messages(message: Any, edits: Sequence[tuple[str, int, bytes]]) -> None:
    _in_time(lambda: _read_etcd(type(message), _damaged(codec.encode(message), edits)))


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x00" * _LARGE,
        b"\x12\x00" * _LARGE,
        b"\x80" * _LARGE,
        b"\xa0\x06\x01" * _LARGE,
        b"\x12" + b"\xff" * 9 + b"\x01" + bytes(_LARGE),
    ],
    ids=["headers", "pairs", "an endless number", "unknown fields", "a length beyond all"],
)
def test_etcd_reads_large_nonsense_soon(data: bytes) -> None:
    def read() -> None:
        try:
            codec.decode(codec.RangeAnswer, data)
        except table.MalformedError:
            return

    _in_time(read)


def test_every_kind_of_message_is_tried() -> None:
    assert {type(message) for message in RICH} < set(KINDS)
    assert len(KINDS) > 20
    assert all(fields(kind) for kind in KINDS)


# -- ZooKeeper ---------------------------------------------------------------------------------------------------------

_HEAD = b"head"
_STAT = struct.pack("!qqqqiiiqiiq", 3, 7, 0, 0, 2, 0, 0, 0, 5, 0, 3)
_NODE = struct.pack("!i5s", 5, b"value") + _STAT
_NO_NODE = -101
_NAMES = struct.pack("!ii1si2s", 2, 1, b"a", 2, b"bc")


def _result(kind: int, body: bytes = b"") -> bytes:
    return struct.pack("!i?i", kind, False, 0) + body


def _error(code: int) -> bytes:
    return _result(-1, struct.pack("!i", code))


_WRITES = [ops.create("/a", b"", ops.WORLD), ops.set_data("/a", b"value"), ops.delete("/b"), ops.check("/c")]
_READS = [ops.get("/a"), ops.get_children("/a")]
ANSWERS: dict[str, tuple[Operation[Any], bytes]] = {
    "get": (ops.get("/a"), _NODE),
    "get_children": (ops.get_children("/a"), _NAMES),
    "exists": (ops.exists("/a"), _STAT),
    "create": (ops.create("/a", b"", ops.WORLD), struct.pack("!i2s", 2, b"/a") + _STAT),
    "set_data": (ops.set_data("/a", b"value"), _STAT),
    "transaction": (
        ops.transaction(_WRITES),
        _result(1, struct.pack("!i2s", 2, b"/a")) + _result(5, _STAT) + _result(2) + _result(13),
    ),
    "a refused transaction": (ops.transaction(_WRITES), _error(0) + _error(-110) + _error(-2) + _error(-2)),
    "read_all": (ops.read_all(_READS), _result(4, _NODE) + _result(8, _NAMES)),
    "read_all of nothing": (ops.read_all(_READS), _error(_NO_NODE) + _error(_NO_NODE)),
    "get_acl": (ops.get_acl("/a"), struct.pack("!iii6si5s", 1, 31, 6, b"digest", 5, b"ann:x") + _STAT),
}
WELCOME = struct.pack("!iiqi16s?", 0, 10_000, 77, 16, bytes(range(16)), False)
EVENT = struct.pack("!iii2s", 3, 3, 2, b"/a")

answers = pytest.mark.parametrize(("operation", "answer"), ANSWERS.values(), ids=ANSWERS)


def _read_zookeeper(read: Callable[[], object]) -> None:
    """Read an answer, which is one, or refused in the one way that is; or it is itself a refusal."""
    try:
        read()
    except (MalformedError, TransactionRefusedError):
        return


@pytest.mark.parametrize("operation", [operation for operation, _ in ANSWERS.values()], ids=ANSWERS)
@few
@given(data=BYTES)
@example(data=b"")
@example(data=b"\xff" * 300)
@example(data=b"\x7f" * 300)
@example(data=bytes(300))
def test_zookeeper_reads_garbage(operation: Operation[Any], data: bytes) -> None:
    _in_time(lambda: _read_zookeeper(lambda: operation.read(_HEAD + data, len(_HEAD))))


@answers
@some
@given(edits=EDITS)
def test_zookeeper_reads_damaged_answers(
    operation: Operation[Any], answer: bytes, edits: Sequence[tuple[str, int, bytes]]
) -> None:
    data = _damaged(answer, edits)
    _in_time(lambda: _read_zookeeper(lambda: operation.read(_HEAD + data, len(_HEAD))))


@answers
def test_zookeeper_reads_no_answer_that_is_cut(operation: Operation[Any], answer: bytes) -> None:
    for length in range(len(answer)):
        with pytest.raises(MalformedError):
            pytest.fail(f"{length}: {operation.read(answer[:length], 0)}")


def test_zookeeper_reads_whole_answers() -> None:
    stat = ops.Stat(index=7, version=2, size=5, children=0, owner=0)
    read = {name: operation.read(answer, 0) for name, (operation, answer) in ANSWERS.items() if "refused" not in name}
    assert read.pop("read_all of nothing") != read["read_all"]
    assert read == {
        "get": ops.Node(b"value", stat),
        "get_children": ["a", "bc"],
        "exists": stat,
        "create": stat,
        "set_data": stat,
        "transaction": [None, stat, None, None],
        "read_all": [ops.Node(b"value", stat), ["a", "bc"]],
        "get_acl": [("digest", "ann:x")],
    }
    operation, answer = ANSWERS["a refused transaction"]
    with pytest.raises(TransactionRefusedError) as caught:
        operation.read(answer, 0)
    assert caught.value.position == 1
    assert isinstance(caught.value.reason, NodeExistsError)


@pytest.mark.parametrize(
    "answer",
    [
        _error(0) + _error(-2) + _error(-2) + _error(-2),
        _result(1, struct.pack("!i2s", 2, b"/a")) * 4,
        _result(1, struct.pack("!i2s", 2, b"/a")) + _result(99, _STAT) + _result(2) + _result(13),
    ],
    ids=["nothing is to blame", "created four times", "of an unknown kind"],
)
def test_a_transactions_results_are_its_own(answer: bytes) -> None:
    with pytest.raises(MalformedError):
        ops.transaction(_WRITES).read(answer, 0)


@given(data=BYTES)
@example(data=WELCOME[:4] + struct.pack("!i", -1) + WELCOME[8:])
@example(data=EVENT[:8] + b"\xff\xff\xff\xff")
def test_zookeeper_reads_other_frames(data: bytes) -> None:
    for read in (lambda: ops.parse_welcome(data), lambda: ops.parse_event(data, 0)):
        try:
            read()
        except MalformedError:
            continue


@given(edits=EDITS)
def test_zookeeper_reads_damaged_other_frames(edits: Sequence[tuple[str, int, bytes]]) -> None:
    for parse, frame in ((ops.parse_welcome, WELCOME), (lambda data: ops.parse_event(data, 0), EVENT)):
        try:
            read = parse(_damaged(frame, edits))
        except MalformedError:
            continue
        if isinstance(read, ops.Welcome):
            assert not read.session or read.timeout > 0
        else:
            assert isinstance(read, ops.Event)
            assert read.path


PATHS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).map(lambda name: f"/{name}")
INT32 = st.integers(-(2**31), 2**31 - 1)


@given(path=PATHS, data=st.none() | BYTES, version=INT32, xid=INT32)
def test_zookeeper_encodes_what_a_server_reads(path: str, data: bytes | None, version: int, xid: int) -> None:
    size = len(path.encode())
    encoded = ops.set_data(path, data, version).encode(xid)
    name = struct.pack(f"!i{size}s", size, path.encode())
    value = struct.pack("!i", -1) if data is None else struct.pack(f"!i{len(data)}s", len(data), data)
    assert encoded == struct.pack("!ii", xid, 5) + name + value + struct.pack("!i", version)
    assert ops.delete(path, version).encode(xid) == struct.pack("!ii", xid, 2) + name + struct.pack("!i", version)
    assert ops.get(path, watch=True).encode(xid) == struct.pack("!ii", xid, 4) + name + b"\x01"


@given(
    timeout=st.floats(0.001, 10_000),
    session=st.integers(-(2**63), 2**63 - 1),
    password=st.binary(min_size=1, max_size=16),
    zxid=st.integers(0, 2**63 - 1),
)
def test_zookeeper_greets_as_a_server_reads_it(timeout: float, session: int, password: bytes, zxid: int) -> None:
    greeting, _ = protocol.ConnectRequest.parse(ops.hello(timeout, session, password, zxid), 0)
    assert (greeting.session_id, greeting.password, greeting.last_seen_zxid) == (session, password, zxid)
    assert greeting.timeout == max(round(timeout * 1000), 1)


def test_zookeeper_reads_large_nonsense_soon() -> None:
    names = struct.pack("!i", 2**31 - 1) + bytes(4 * _LARGE)
    _in_time(lambda: _read_zookeeper(lambda: ops.get_children("/a").read(names, 0)))
    results = ops.transaction([ops.check("/a")] * 1000)
    _in_time(lambda: _read_zookeeper(lambda: results.read(_error(-101) * 999, 0)))

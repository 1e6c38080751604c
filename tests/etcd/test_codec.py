"""The encoding: against vectors of real servers, round trips, and bytes that are no message."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolibkv.backends.etcd import codec, table
from aiolibkv.backends.etcd.codec import (
    Authenticate,
    Compare,
    DeleteRange,
    Event,
    Header,
    KeyValue,
    LeaseGrant,
    LeaseKeepAliveAnswer,
    Operation,
    OperationAnswer,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Txn,
    TxnAnswer,
    WatchAnswer,
    WatchCancel,
    WatchCreate,
    WatchRequest,
    decode,
    encode,
)
from aiolibkv.backends.etcd.keyspace import Keyspace
from aiolibkv.backends.etcd.pages import AT_ONCE, Page, decode_page
from aiolibkv.backends.etcd.pairs import UnusualError, read_pairs
from aiolibkv.backends.etcd.table import MalformedError
from counting import counted_turns

INT64 = st.integers(-(2**63), 2**63 - 1)
SORTS = st.just(0) | INT64
KEY_VALUES = st.builds(KeyValue, st.binary(), INT64, st.binary())
HEADERS = st.builds(Header, INT64)
RANGES = st.builds(
    Range, st.binary(), st.binary(), INT64, INT64, SORTS, SORTS, st.booleans(), st.booleans(), st.booleans(), SORTS
)
PUTS = st.builds(Put, st.binary(), st.binary(), INT64)
DELETES = st.builds(DeleteRange, st.binary(), st.binary())
OPERATIONS = st.one_of(
    st.builds(Operation, range=RANGES), st.builds(Operation, put=PUTS), st.builds(Operation, delete_range=DELETES)
)
COMPARES = st.builds(Compare, INT64, INT64, st.binary(), st.none() | INT64, st.binary())
TXNS = st.builds(Txn, *(st.lists(each, max_size=3) for each in (COMPARES, OPERATIONS, OPERATIONS)))
RANGE_ANSWERS = st.builds(RangeAnswer, HEADERS, st.lists(KEY_VALUES, max_size=3), st.booleans(), INT64)
TXN_ANSWERS = st.builds(
    TxnAnswer,
    HEADERS,
    st.booleans(),
    st.lists(
        st.one_of(
            st.builds(OperationAnswer, range=RANGE_ANSWERS),
            st.builds(OperationAnswer, put=st.builds(PutAnswer, HEADERS)),
        ),
        max_size=3,
    ),
)
EVENTS = st.builds(Event, st.integers(0, 1), KEY_VALUES)
WATCH_ANSWERS = st.builds(
    WatchAnswer,
    HEADERS,
    INT64,
    st.booleans(),
    st.booleans(),
    INT64,
    st.text(),
    st.booleans(),
    st.lists(EVENTS, max_size=3),
)
MESSAGES = st.one_of(
    TXNS,
    RANGE_ANSWERS,
    TXN_ANSWERS,
    WATCH_ANSWERS,
    st.builds(LeaseGrant, INT64, INT64),
    st.builds(Authenticate, st.text(), st.text()),
)
KINDS = [Txn, RangeAnswer, TxnAnswer, WatchAnswer, WatchRequest, LeaseKeepAliveAnswer, codec.AuthenticateAnswer]

# What etcd 3.4.23 takes and sends.
VECTORS = [
    (Put(b"foo", b"bar"), "0a03666f6f1203626172"),
    (Put(b"foo", b"", 77), "0a03666f6f184d"),
    (Range(b"a", b"b", 1000, 5, serializable=True, count_only=True), "0a016112016218e807200538014801"),
    (Compare(target=Compare.MOD, key=b"a", mod_revision=0), "10021a01613000"),
    (Compare(target=Compare.MOD, key=b"a", mod_revision=300), "10021a016130ac02"),
    (Compare(Compare.GREATER, Compare.MOD, b"a", 0, b"b"), "080110021a0161300082040162"),
    (WatchRequest(create=WatchCreate(b"a", b"b", 3, fragment=True)), "0a0a0a016112016218034001"),
    (WatchRequest(cancel=WatchCancel(0)), "1200"),
    (WatchRequest(cancel=WatchCancel(-1)), "120b08ffffffffffffffffff01"),
    (LeaseGrant(5, 77), "0805104d"),
    (Operation(delete_range=DeleteRange(b"a")), "1a030a0161"),
]


@pytest.mark.parametrize(("message", "known"), VECTORS)
def test_known_bytes(message: Any, known: str) -> None:
    assert encode(message).hex() == known
    assert decode(type(message), bytes.fromhex(known)) == message


def test_an_answer_of_a_real_server() -> None:
    # LeaseKeepAlive of a lease that exists; the header's other fields are skipped.
    sent = "0a1908cb94bcd7d3cacde01610d28499f3ee8bf7aea20118012002104d1805"
    assert decode(LeaseKeepAliveAnswer, bytes.fromhex(sent)) == LeaseKeepAliveAnswer(Header(1), 77, 5)


# What etcd 3.4.23 answers to a put, reads of a key that is there and of one that is not, a deletion, a swap that
# succeeds and one that does not, and a deletion at an index.
ANSWERS: list[tuple[type[Any], str]] = [
    (PutAnswer, "0a1908b4faa6e0a5bbb9d57510a69891c98e8efdf68a0118022002"),
    (RangeAnswer, "0a1908b4faa6e0a5bbb9d57510a69891c98e8efdf68a0118032002120c0a01611002180320022a01322001"),
    (RangeAnswer, "0a1908b4faa6e0a5bbb9d57510a69891c98e8efdf68a0118032002"),
    (codec.DeleteRangeAnswer, "0a1908b4faa6e0a5bbb9d57510a69891c98e8efdf68a01180a20021001"),
    (TxnAnswer, "0a1908b4faa6e0a5bbb9d57510a69891c98e8efdf68a011803200210011a0612040a021803"),
    (
        TxnAnswer,
        "0a1908b4faa6e0a5bbb9d57510a69891c98e8efdf68a01180320021a130a110a02180312090a01611002180320022001",
    ),
    (TxnAnswer, "0a1908b4faa6e0a5bbb9d57510a69891c98e8efdf68a011804200210011a081a060a0218041001"),
]


@pytest.mark.parametrize(("kind", "sent"), ANSWERS)
def test_what_a_real_server_sends_all_the_time_is_written_out(kind: type[Any], sent: str) -> None:
    data = bytes.fromhex(sent)
    assert codec._DECODERS[kind](data, 0, len(data)) == table.decode(kind, data, 0, len(data))


@given(MESSAGES)
def test_what_was_encoded_is_decoded(message: Any) -> None:
    assert decode(type(message), encode(message)) == message


@given(MESSAGES)
def test_what_is_written_out_is_encoded_as_by_the_table(message: Any) -> None:
    assert encode(message) == table.encode(message)


# -- answers as etcd writes them: with fields that are not used here ---------------------------------------------------


def number(field: int, value: int) -> bytes:
    return table.varint(field << 3) + table.varint(value) if value else b""


def part(field: int, content: bytes) -> bytes:
    return table.varint(field << 3 | 2) + table.varint(len(content)) + content


UINT64 = st.integers(1, 2**64 - 1)
NUMBERS = st.integers(1, 2**63 - 1)
SENT_HEADERS = st.builds(
    lambda cluster, member, revision, term: (
        number(1, cluster) + number(2, member) + number(3, revision) + number(4, term)
    ),
    *(UINT64, UINT64, NUMBERS, UINT64),
)
SENT_PAIRS = st.builds(
    lambda key, created, modified, version, value, lease: (
        part(1, key)
        + number(2, created)
        + number(3, modified)
        + number(4, version)
        + (part(5, value) if value else b"")
        + number(6, lease)
    ),
    *(st.binary(max_size=200), NUMBERS, NUMBERS, NUMBERS, st.binary(max_size=200), NUMBERS),
)
STEP_HEADERS = NUMBERS.map(lambda revision: number(3, revision))
"""Of the steps of a transaction."""
SENT_RANGES = st.builds(
    lambda header, pairs, more, count: (
        part(1, header) + b"".join(part(2, pair) for pair in pairs) + more + number(4, count)
    ),
    SENT_HEADERS | STEP_HEADERS,
    *(st.lists(SENT_PAIRS, max_size=4), st.sampled_from([b"", b"\x18\x01"]), NUMBERS),
)
SENT_DELETIONS = st.builds(
    lambda header, deleted: part(1, header) + number(2, deleted), SENT_HEADERS | STEP_HEADERS, NUMBERS
)
SENT_TXNS = st.builds(
    lambda header, succeeded, answers: part(1, header) + succeeded + b"".join(part(3, answer) for answer in answers),
    SENT_HEADERS,
    st.sampled_from([b"", b"\x10\x01"]),
    st.lists(
        st.one_of(
            SENT_RANGES.map(lambda answer: part(1, answer)),
            STEP_HEADERS.map(lambda header: part(2, part(1, header))),
            SENT_DELETIONS.map(lambda answer: part(3, answer)),
        ),
        max_size=3,
    ),
)
SENT_EVENTS = st.builds(lambda kind, pair: number(1, kind) + part(2, pair), st.integers(0, 1), SENT_PAIRS)
SENT_CHANGES = st.builds(
    lambda header, watch, fragment, events: (
        part(1, header) + number(2, watch) + fragment + b"".join(part(11, event) for event in events)
    ),
    *(SENT_HEADERS, NUMBERS, st.sampled_from([b"", b"\x38\x01"]), st.lists(SENT_EVENTS, max_size=3)),
)
SENT: dict[type[Any], st.SearchStrategy[bytes]] = {
    RangeAnswer: SENT_RANGES,
    PutAnswer: SENT_HEADERS.map(lambda header: part(1, header)),
    codec.DeleteRangeAnswer: SENT_DELETIONS,
    TxnAnswer: SENT_TXNS,
    WatchAnswer: SENT_CHANGES,
}


def outcome(read: Callable[[], Any]) -> object:
    try:
        return read()
    except MalformedError:
        return MalformedError


@pytest.mark.parametrize("kind", SENT)
@given(data=st.data())
def test_what_is_written_out_is_decoded_as_by_the_table_also_when_damaged(kind: type[Any], data: st.DataObject) -> None:
    sent = data.draw(SENT[kind])
    assert codec._DECODERS[kind](sent, 0, len(sent)) == table.decode(kind, sent, 0, len(sent))
    damaged = bytearray(sent[: data.draw(st.integers(0, len(sent)))])
    if damaged:
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    read = bytes(damaged)
    assert outcome(lambda: decode(kind, read)) == outcome(lambda: table.decode(kind, read, 0, len(read)))


def page_by_table(sent: bytes) -> Page:
    answer = table.decode(RangeAnswer, sent, 0, len(sent))
    keys, revisions, values = (list(column) for column in zip(*answer.kvs, strict=True)) if answer.kvs else ([], [], [])
    return Page(answer.header, keys, revisions, values, answer.more, answer.count)


@given(SENT[RangeAnswer] | RANGE_ANSWERS.map(encode), st.integers(1, 300) | st.just(AT_ONCE), st.data())
def test_a_page_is_decoded_in_parts_as_by_the_table_also_when_damaged(
    sent: bytes, size: int, data: st.DataObject
) -> None:
    assert asyncio.run(decode_page(sent, size)) == page_by_table(sent)
    damaged = bytearray(sent[: data.draw(st.integers(0, len(sent)))])
    if damaged and data.draw(st.booleans()):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    read = bytes(damaged)
    assert outcome(lambda: asyncio.run(decode_page(read))) == outcome(lambda: page_by_table(read))


def test_others_have_their_turn_while_a_page_is_decoded() -> None:
    page = encode(RangeAnswer(Header(9), [KeyValue(b"key", 7, bytes(1000))] * 2000, count=2000))

    async def read() -> tuple[Page, int]:
        async with counted_turns() as turns:
            return await decode_page(page), turns()

    answer, turns = asyncio.run(read())
    assert answer == page_by_table(page)
    assert turns > len(page) // AT_ONCE // 2 > 5


UNKNOWN = st.lists(
    st.sampled_from(["a00601", "a106" + "00" * 8, "a2060361ff62", "a506" + "00" * 4, "a206" + "00"]).map(bytes.fromhex)
)
"""Fields numbered 100, of every type."""


@given(MESSAGES, UNKNOWN, UNKNOWN)
def test_unknown_fields_are_skipped(message: Any, before: list[bytes], after: list[bytes]) -> None:
    assert decode(type(message), b"".join([*before, encode(message), *after])) == message


@given(MESSAGES, st.data())
def test_a_cut_message_is_malformed_or_ends_between_two_fields(message: Any, data: st.DataObject) -> None:
    whole = encode(message)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        read = decode(type(message), cut)
    except MalformedError:
        return
    assert encode(read) == cut


@pytest.mark.parametrize("kind", KINDS)
@given(garbage=st.binary(max_size=200))
def test_garbage_is_malformed_or_a_message(kind: type[Any], garbage: bytes) -> None:
    try:
        assert isinstance(decode(kind, garbage), kind)
    except MalformedError:
        pass


@pytest.mark.parametrize(
    ("garbage", "why"),
    [
        ("08", "a number is missing"),
        ("0880", "a number is cut off"),
        ("08" + "80" * 10 + "01", "a number of eleven bytes"),
        ("12ffffffff7f", "a length past the end"),
        ("1205", "nothing where five bytes should be"),
        ("0001", "a field numbered 0"),
        ("0b", "a group"),
        ("0f", "a type that does not exist"),
        ("0a0561", "a header that is cut off"),
        ("0801", "a header that is a number"),
        ("1a0161", "a truth that is bytes"),
        ("3201ff", "a text that is not UTF-8"),
        ("79" + "00" * 7, "a fixed field that is cut off"),
        ("5a0212ff", "an event whose pair is cut off"),
    ],
)
def test_malformed(garbage: str, why: str) -> None:
    with pytest.raises(MalformedError):
        pytest.fail(f"{why}: {decode(WatchAnswer, bytes.fromhex(garbage))}")


@pytest.mark.parametrize("leading_slash", [False, True])
@given(keys=st.lists(st.lists(st.sampled_from([b"a", b"/", b"\xff", "ä".encode()]), max_size=3).map(b"".join)))
def test_many_keys_have_the_paths_that_each_has(keys: list[bytes], *, leading_slash: bool) -> None:
    keyspace = Keyspace(leading_slash=leading_slash)
    assert keyspace.paths(keys) == [keyspace.path(key) for key in keys]


def test_a_number_without_end_is_refused_at_once() -> None:
    """Each further byte of it would cost more than the one before."""
    with pytest.raises(UnusualError):
        read_pairs(b"\x12\x7f\x0a\x01k\x18" + b"\xff" * 200, 0, 206)


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(Authenticate("user", "secret"))
    assert "secret" not in repr(codec.AuthenticateAnswer(token="secret"))

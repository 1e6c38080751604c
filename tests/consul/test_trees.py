"""The pairs of a directory: read by a regular expression as by the decoder of JSON."""

import asyncio
import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiolibkv import KVPair
from aiolibkv.backends.consul import trees
from aiolibkv.backends.consul.encoding import Answer, MalformedError, reading
from aiolibkv.backends.consul.trees import parse_tree
from aiolibkv.store import Endpoint
from stores import ConsulStore

NUMBERS = st.sampled_from([7, 2**64 - 1, *range(10, 15), 0])
PLAIN = ["a", "b", "c", "d", "dir/e", "dir/f", "ä", "<&>", "~"]
KEYS = st.sampled_from([*PLAIN, *PLAIN, "folder/", "\u200b", 'quote"', "\\", "\x00", '"},{"LockIndex"'])
VALUES = st.none() | st.binary(max_size=12).map(lambda value: b64encode(value).decode() or None)
ITEMS = st.builds(
    lambda lock, key, flags, value, session, created, modified: {
        "LockIndex": lock,
        "Key": key,
        "Flags": flags,
        "Value": value,
        **({"Session": session} if session else {}),
        "CreateIndex": created,
        "ModifyIndex": modified,
    },
    *(NUMBERS, KEYS, NUMBERS, VALUES, st.sampled_from(["", "adf4238a-882b-9ddc-4a9d-5b6758e4159e"]), NUMBERS, NUMBERS),
)
DAMAGES = st.sampled_from(
    [
        (b'"Key":"', b'"Key":"\n'),
        (b'"Key":"', b'"Key":"\x01'),
        (b'"Key":"', b'"Key":"\xff'),
        (b'"Value":"', b'"Value":"*'),
        (b'"Value":"', b'"Value":"='),
        (b"},{", b"}{"),
        (b"},{", b"},,{"),
        (b"}]", b"},]"),
        (b'Flags":', b'Flags":0'),
    ]
)


def _sent(items: list[dict[str, Any]], *, ascii_only: bool) -> bytes:
    return json.dumps(items, separators=(",", ":"), ensure_ascii=ascii_only).encode()


def _outcome(body: bytes, *, plainly: bool) -> list[KVPair] | type[Exception]:
    try:
        if plainly:
            return asyncio.run(parse_tree(Answer(200, "7", body, Endpoint("host", 1))))
        with reading():
            return trees._read(body)
    except MalformedError:
        return MalformedError


@settings(max_examples=500)
@given(items=st.lists(ITEMS, max_size=4), ascii_only=st.sampled_from([False, False, False, True]), data=st.data())
def test_what_is_read_plainly_is_read_as_by_json_also_when_damaged(
    items: list[dict[str, Any]], *, ascii_only: bool, data: st.DataObject
) -> None:
    body = _sent(items, ascii_only=ascii_only)
    assert _outcome(body, plainly=True) == _outcome(body, plainly=False)
    damaged = bytearray(body.replace(*data.draw(DAMAGES), 1))
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    elif data.draw(st.booleans()):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.sampled_from(b'",:{}[]0\\/=\nA\xff '))
    assert _outcome(bytes(damaged), plainly=True) == _outcome(bytes(damaged), plainly=False)


@pytest.mark.asyncio
async def test_what_a_real_server_writes_is_read_plainly(direct: ConsulStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a key that a session holds, one without a value, and one that is not ASCII."""
    monkeypatch.setattr(trees, "_read", None)
    pairs = [await direct.put("dir/a", b"value"), await direct.put("dir/b", b"", ttl=60)]
    pairs.append(await direct.put("dir/ä", b"\x00\xff"))
    async with direct.new_lock("dir/lock", value=b"held"):
        assert [pair.key for pair in await direct.list("dir")] == ["dir/a", "dir/b", "dir/lock", "dir/ä"]
    assert list(await direct.list("dir")) == pairs

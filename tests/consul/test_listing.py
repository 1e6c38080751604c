"""Many keys: at one instant, by name, in pages."""

import asyncio
import json
from base64 import b64encode

import pytest

from aiolibkv import AccessDeniedError, Config, Delete, KeyNotFoundError, KVPair, Put
from aiolibkv.backends.consul.encoding import Answer
from aiolibkv.backends.consul.trees import parse_names, parse_tree
from aiolibkv.store import Endpoint, OwnCall
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.servers import ConsulServer
from consul.conftest import Make
from consul.recording import recorded
from stores import ConsulStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


async def _fill(store: ConsulStore, keys: list[str], value: bytes = b"v") -> list[KVPair]:
    pairs: list[KVPair] = []
    for first in range(0, len(keys), 20):
        done = await store.commit(*(Put(key, value) for key in keys[first : first + 20]))
        pairs += [pair for pair in done if pair is not None]
    return pairs


async def test_get_many(proxied: ConsulStore, proxy: FaultProxy) -> None:
    keys = [f"dir/{number:03}" for number in range(130)]
    pairs = await _fill(proxied, keys)
    with proxy.counting() as counts:
        assert await proxied.get_many(keys) == {pair.key: pair for pair in pairs}
    assert counts.round_trips <= 3
    for consistent in (True, False):
        with proxy.counting() as counts:
            found = await proxied.get_many(["dir", "dir/001", "dir/missing", "dir/002"], consistent=consistent)
        assert found == {pair.key: pair for pair in pairs[1:3]}
        assert counts.round_trips == 2


async def test_get_many_is_of_one_instant(direct: ConsulStore, make: Make, server: ConsulServer) -> None:
    """Two keys are never seen both, nor neither, while each takes the place of the other."""
    await direct.put("a", b"")
    is_over = False

    async def swap(store: ConsulStore) -> None:
        there, other = "a", "b"
        while not is_over:
            await store.commit(Delete(there), Put(other, b""))
            there, other = other, there

    async with make(server.endpoint) as writing:
        swapping = asyncio.ensure_future(swap(writing))
        try:
            for _ in range(100):
                assert len(await direct.get_many(["a", "b"])) == 1
        finally:
            is_over = True
            await swapping


async def test_get_many_by_a_token_that_may_only_read() -> None:
    async with ConsulServer(token="root") as server:
        token = await server.add_token('key_prefix "seen/" { policy = "read" }')
        async with (
            ConsulStore([server.endpoint], Config(token="root")) as root,
            ConsulStore([server.endpoint], Config(token=token)) as store,
        ):
            pair = await root.put("seen/key", b"")
            await root.put("other", b"")
            assert await store.get_many(["seen/key", "seen/missing"]) == {"seen/key": pair}
            assert await store.keys("seen") == ["seen/key"]
            assert [found async for found in store.scan("seen")] == [pair]
            for keys in (["seen/key", "other"], ["seen/key", "missing"]):
                with pytest.raises(AccessDeniedError):
                    await store.get_many(keys)
            for directory in ("missing", "other"):
                with pytest.raises(AccessDeniedError):
                    await store.keys(directory)
                with pytest.raises(AccessDeniedError):
                    await store.children(directory)


async def test_names(proxied: ConsulStore, proxy: FaultProxy, server: ConsulServer, prefix: str) -> None:
    keys = ["a", "a-b", "a/x", "a/y/z", "é", "z"]
    await _fill(proxied, keys, b"x" * 1000)
    await server.api("PUT", f"/v1/kv/{prefix}/folder/")
    with proxy.counting() as counts:
        with recorded(proxy) as requests:
            assert await proxied.keys("") == sorted(keys)
            assert await proxied.keys("a") == ["a/x", "a/y/z"]
            assert await proxied.children("a") == ["x", "y/"]
        assert counts.requests == len(requests) == 3
    assert set(await proxied.children("")) - {"folder/"} == {"a", "a/", "a-b", "é", "z"}
    assert await proxied.keys("z") == []
    for directory in ("folder", "none"):
        with pytest.raises(KeyNotFoundError):
            await proxied.keys(directory)


async def test_a_scan(proxied: ConsulStore, proxy: FaultProxy, direct: ConsulStore) -> None:
    keys = sorted(f"dir/{number % 7}/{number}" for number in range(150))
    pairs = await _fill(direct, keys)
    with proxy.counting() as counts:
        assert [pair async for pair in proxied.scan("dir", page=50)] == pairs
    assert counts.round_trips == 4
    seen = []
    async with proxied.scan("dir", page=10) as scan:
        async for pair in scan:
            seen.append(pair)
            if len(seen) == 15:
                for gone in keys[20:40]:
                    await direct.delete(gone)
    assert seen == pairs[:20] + pairs[40:]
    assert not proxied.driver._listings._scans


async def test_a_scan_of_large_values(direct: ConsulStore, prefix: str) -> None:
    """As much is read at once as is worth some megabytes."""
    keys = [f"large/{number:02}" for number in range(60)]
    pairs = [await direct.put(key, bytes(400_000)) for key in keys]
    directory = f"{prefix}/large"
    first = await direct.driver.page(OwnCall(), directory, "", 5)
    second = await direct.driver.page(OwnCall(), directory, first.pairs[-1].key, 1000)
    assert [pair.value for pair in (*first.pairs, *second.pairs)] == [pair.value for pair in pairs[: 5 + 20]]
    assert second.more
    assert [pair async for pair in direct.scan("large", page=30)] == pairs


@pytest.mark.parametrize("indent", [None, 4])
async def test_others_have_their_turn_while_a_large_tree_is_decoded(indent: int | None) -> None:
    """Also of a server for development, which indents its JSON."""
    pairs = [KVPair(f"dir/{number}", bytes(30_000), number + 1) for number in range(30)]
    content = [
        {"Key": pair.key, "Flags": 0, "Value": b64encode(pair.value).decode(), "ModifyIndex": pair.last_index}
        for pair in pairs
    ]
    answer = Answer(200, "30", json.dumps(content, indent=indent).encode(), Endpoint("server", 8500))
    decoding = asyncio.ensure_future(parse_tree(answer))
    turns = 0
    while not decoding.done():
        await asyncio.sleep(0)
        turns += 1
    assert await decoding == pairs
    assert turns > len(answer.body) // 300_000


@pytest.mark.parametrize("indent", [None, 4])
async def test_others_have_their_turn_while_many_names_are_decoded(indent: int | None) -> None:
    """Some names are like what stands between names, and wherever the answer may be cut there are such ones."""
    for length in range(10):
        sent = ["dir/", "dir/" + "b" * length, *["dir/a", ",", "\\", '"', "[", " "] * 12_000, "dir/folder/"]
        answer = Answer(200, "30", json.dumps(sent, indent=indent).encode(), Endpoint("server", 8500))
        decoding = asyncio.ensure_future(parse_names(answer, "", folders=length % 2 == 0))
        turns = 0
        while not decoding.done():
            await asyncio.sleep(0)
            turns += 1
        assert await decoding == (sent if length % 2 == 0 else sent[1:-1])
        assert turns > len(answer.body) // 300_000 > 0

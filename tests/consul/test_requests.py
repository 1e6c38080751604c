"""What is sent to a server, and what its answers mean."""

import asyncio
import json
from base64 import b64decode
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import quote

import pytest

from aiolibkv import (
    CallNotSupportedError,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    KVPair,
    LockLostError,
    NotReachableError,
    StoreError,
)
from aiolibkv.backends.consul.encoding import LOCK_FLAGS, deletion_units
from aiolibkv.backends.consul.failures import parse_duration
from aiolibkv.store import Guard, OwnCall
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers import Certificates, ConsulServer
from consul.conftest import Make
from consul.recording import recorded
from stores import ConsulStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

AWKWARD = [
    "a b",
    " ",
    "%",
    "100%25",
    "?",
    "a?b=c&d",
    "#",
    "a#b",
    "+",
    ";",
    "\\",
    '"',
    "'",
    "<a>",
    "é",
    "日本語",
    "~",
    "...",
]


async def test_round_trips(proxied: ConsulStore, proxy: FaultProxy) -> None:
    one = await proxied.put("dir/one", b"1")
    await proxied.put("warm", b"", keep_alive=True)

    async def refused_create() -> None:
        with pytest.raises(KeyExistsError):
            await proxied.atomic_put("dir/one", b"", None)

    async def missing() -> None:
        with pytest.raises(KeyNotFoundError):
            await proxied.get("missing")

    calls: dict[str, tuple[int, Callable[[], Awaitable[object]]]] = {
        "put": (1, lambda: proxied.put("dir/two", b"2")),
        "put again": (1, lambda: proxied.put("dir/two", b"2")),
        "get": (1, lambda: proxied.get("dir/one")),
        "get of nothing": (1, missing),
        "exists": (1, lambda: proxied.exists("dir/one")),
        "exists not": (1, lambda: proxied.exists("missing")),
        "list": (1, lambda: proxied.list("dir")),
        "refused": (1, refused_create),
        "delete": (1, lambda: proxied.delete("dir/two")),
        "atomic_delete": (1, lambda: proxied.atomic_delete("dir/one", one)),
        "create": (1, lambda: proxied.atomic_put("dir/three", b"3", None)),
        "delete_tree": (1, lambda: proxied.delete_tree("dir")),
        "a large value": (3, lambda: proxied.put("large", bytes(500_000))),
        "a large create": (2, lambda: proxied.atomic_put("new", bytes(500_000), None)),
        "put with ttl": (2, lambda: proxied.put("ttl", b"", ttl=60)),
        "kept alive": (1, lambda: proxied.put("alive", b"", keep_alive=True)),
        "delete_tree of the root": (2, lambda: proxied.delete_tree("")),
    }
    for name, (expected, call) in calls.items():
        with proxy.counting() as counts:
            await call()
        assert (name, counts.round_trips) == (name, expected)
        assert counts.requests == expected, name
    assert proxy.connections_total <= 3


async def test_requests_are_plain(proxied: ConsulStore, proxy: FaultProxy) -> None:
    with recorded(proxy) as requests:
        await proxied.put("key", b"value")
        await proxied.get("key")
    for request in requests:
        head = request.lower()
        assert b"accept-encoding" not in head
        assert b"cookie" not in head
    assert [request.split(b" ")[0] for request in requests] == [b"PUT", b"GET"]
    assert b"?raw&consistent" in requests[1]
    with recorded(proxy) as requests:
        await proxied.get("key", consistent=False)
        await proxied.exists("key", consistent=False)
        await proxied.list("", consistent=False)
    assert all(b"stale" in request for request in requests)


async def test_the_index_of_a_raw_read_is_the_modify_index(
    direct: ConsulStore, server: ConsulServer, prefix: str
) -> None:
    """Consul does not document it; the store relies on it."""
    for number in range(3):
        pair = await direct.put("key", str(number).encode())
        await direct.put("other", b"")
        await server.api("PUT", f"/v1/kv/{prefix}/key/below", "x")
        (item,) = json.loads(await server.api("GET", f"/v1/kv/{prefix}/key"))
        assert item["ModifyIndex"] == pair.last_index == (await direct.get("key")).last_index


@pytest.mark.parametrize("key", AWKWARD)
async def test_transactions_and_urls_name_the_same_key(
    direct: ConsulStore, server: ConsulServer, prefix: str, key: str
) -> None:
    pair = await direct.put(f"dir/{key}", b"value")
    assert await direct.get(f"dir/{key}") == pair
    keys = json.loads(await server.api("GET", f"/v1/kv/{prefix}/?keys"))
    assert keys == [f"{prefix}/dir/{key}"]
    (item,) = json.loads(await server.api("GET", f"/v1/kv/{quote(f'{prefix}/dir/{key}')}"))
    assert b64decode(item["Value"]) == b"value"
    large = await direct.put(f"dir/{key}", bytes(450_000))
    assert list(await direct.list("dir")) == [large]


async def test_equal_writers_have_one_winner(
    direct: ConsulStore, make: Make, server: ConsulServer, entering: AsyncExitStack
) -> None:
    other = await entering.enter_async_context(make(server.endpoint))
    previous = await direct.put("key", b"same")
    for _ in range(20):
        writers = [direct, other] * 10
        results = await asyncio.gather(
            *(writer.atomic_put("key", b"same", previous) for writer in writers), return_exceptions=True
        )
        winners = [result for result in results if isinstance(result, KVPair)]
        assert len(winners) == 1, results
        assert all(isinstance(result, KeyModifiedError | KVPair) for result in results)
        previous = winners[0]


async def test_large_values(direct: ConsulStore) -> None:
    for size in (380_000, 393_000, 395_000, 500_000, direct.capabilities.max_value_bytes):
        first = await direct.put("key", bytes(size))
        assert await direct.get("key") == first
        with pytest.raises(KeyExistsError):
            await direct.atomic_put("key", bytes(size), None)
        second = await direct.atomic_put("key", b"x" * size, first)
        assert second.last_index > first.last_index
        with pytest.raises(KeyModifiedError):
            await direct.atomic_put("key", bytes(size), first)
        assert await direct.get("key") == second
        await direct.atomic_delete("key", second)
        created = await direct.atomic_put("key", bytes(size), None)
        with pytest.raises(KeyModifiedError):
            await direct.atomic_put("gone", bytes(size), KVPair("gone", b"", 1))
        await direct.atomic_delete("key", created)


async def test_a_large_value_ends_a_lifetime(direct: ConsulStore, server: ConsulServer, prefix: str) -> None:
    short = await direct.put("key", b"", ttl=60)
    with pytest.raises(CallNotSupportedError) as caught:
        await direct.atomic_put("key", bytes(500_000), short)
    assert not caught.value.maybe_applied
    assert await direct.get("key") == short
    pair = await direct.put("key", bytes(500_000))
    (item,) = json.loads(await server.api("GET", f"/v1/kv/{prefix}/key"))
    assert "Session" not in item
    assert await direct.get("key") == pair


async def test_what_a_large_value_cannot_have(direct: ConsulStore) -> None:
    with pytest.raises(CallNotSupportedError):
        await direct.put("key", bytes(500_000), ttl=60)
    async with direct.new_lock("lock") as held:
        with pytest.raises(CallNotSupportedError):
            await direct.put("key", bytes(500_000), guard=held)
    with pytest.raises(CallNotSupportedError):
        await direct.new_lock("lock", value=bytes(500_000)).try_acquire()
    assert list(await direct.list("")) == []


async def test_a_put_detaches_the_session(direct: ConsulStore, server: ConsulServer, prefix: str) -> None:
    await direct.put("key", b"1", ttl=60)
    (item,) = json.loads(await server.api("GET", f"/v1/kv/{prefix}/key"))
    session = item["Session"]
    (settings,) = json.loads(await server.api("GET", f"/v1/session/info/{session}"))
    assert settings["TTL"] == "60000ms"
    assert settings["LockDelay"] == 0
    assert settings["Behavior"] == "delete"
    assert settings["NodeChecks"] == []
    pair = await direct.put("key", b"1")
    await server.api("PUT", f"/v1/session/destroy/{session}")
    assert await direct.get("key") == pair


async def test_a_lock_is_one_for_consuls_own_clients(direct: ConsulStore, server: ConsulServer, prefix: str) -> None:
    lock = direct.new_lock("lock", value=b"me")
    held = await lock.acquire()
    (item,) = json.loads(await server.api("GET", f"/v1/kv/{prefix}/lock"))
    assert (item["Flags"], item["ModifyIndex"]) == (LOCK_FLAGS, held.fencing_token)
    assert item["Session"]
    assert held.freed_within == 2 * held.ttl + 1
    await lock.release()


async def test_guards_are_checked_by_the_server(direct: ConsulStore, server: ConsulServer, prefix: str) -> None:
    held = await direct.new_lock("lock").acquire()
    pair = await direct.put("guarded", b"1", guard=held)
    (item,) = json.loads(await server.api("GET", f"/v1/kv/{prefix}/lock"))
    # The same session still holds the key, but it was written to.
    await server.api("PUT", f"/v1/kv/{prefix}/lock?acquire={item['Session']}", "foreign")
    guard = Guard(f"{prefix}/lock", held.fencing_token)
    path = f"{prefix}/guarded"
    for refused in (
        lambda call: direct.driver.put(call, path, b"2", expected=None, lease=None, guard=guard),
        lambda call: direct.driver.put(call, path, b"2", expected=pair.last_index, lease=None, guard=guard),
        lambda call: direct.driver.delete(call, path, expected=None, guard=guard),
        lambda call: direct.driver.delete(call, path, expected=pair.last_index, guard=guard),
        lambda call: direct.driver.delete_tree(call, path, guard=guard),
        lambda call: direct.driver.delete_tree(call, prefix, guard=guard),
    ):
        call = OwnCall()
        with pytest.raises(LockLostError):
            await refused(call)
        assert not call.maybe_applied
    assert await direct.get("guarded") == pair


async def test_the_root_is_deleted_around_what_is_reserved(make: Make, server: ConsulServer, prefix: str) -> None:
    names = [".a", ".aio", ".aiolibk", ".aiolibkv2", ".b", "a", "ab", "é", *map(chr, range(ord("0"), ord("d")))]
    keys = list(dict.fromkeys(names))
    async with make(server.endpoint, prefix="") as whole, make(server.endpoint) as store:
        reserved = await whole.put(f"{prefix}/.aiolibkv/waiters/x", b"")
        folder = f"/v1/kv/{prefix}/empty/"
        await server.api("PUT", folder)
        for key in keys:
            await store.put(key, b"")
            await store.put(f"{key}x/deep/er", b"")
        assert [pair.key for pair in await store.list("")] == sorted([*keys, *(f"{key}x/deep/er" for key in keys)])
        assert await store.delete_tree("") == 2 * len(keys)
        assert json.loads(await server.api("GET", f"/v1/kv/{prefix}/?keys")) == [reserved.key]
        await whole.delete_tree(prefix)


@pytest.mark.parametrize(("directory", "most"), [("dir", 63), ("", 32)])
async def test_a_root_is_deleted_at_one_instant_or_not_at_all(make: Make, directory: str, most: int) -> None:
    """With as many first characters as a transaction has room for, and one more."""
    # The server was found ready by a key that begins with an "a".
    names = ["a", *(chr(ord("à") + number) for number in range(most))]
    async with ConsulServer() as server, make(server.endpoint, prefix=directory) as store:

        async def there() -> set[str]:
            return {pair.key for pair in await store.list("")} & set(names)

        held = await store.new_lock(names[0]).acquire()
        for name in names[1:most]:
            await store.put(name, b"")
        with pytest.raises(CallNotSupportedError) as caught:
            await store.delete_tree("", guard=held)
        assert not caught.value.maybe_applied
        assert await there() == set(names[:most])
        assert await store.delete_tree("") >= most
        assert await there() == set()
        for name in names:
            await store.put(name, b"")
        with pytest.raises(CallNotSupportedError):
            await store.delete_tree("")
        assert await there() == set(names)


async def test_folders_of_the_web_pages_are_no_keys(direct: ConsulStore, server: ConsulServer, prefix: str) -> None:
    await server.api("PUT", f"/v1/kv/{prefix}/folder/")
    with pytest.raises(KeyNotFoundError):
        await direct.list("folder")
    assert not await direct.exists("folder")
    pair = await direct.put("folder/key", b"")
    assert list(await direct.list("folder")) == [pair]
    async with direct.watch_tree("folder") as watch:
        assert await anext(watch) == [pair]
    assert await direct.delete_tree("folder") == 1


async def test_what_no_call_can_name_is_not_counted(make: Make, server: ConsulServer, prefix: str) -> None:
    """Others may write such keys, by transactions."""
    foreign = ["dir//a", "dir/./b", "dir/c/", "dir/\u00a0", "\u00a0"]
    operations = [{"KV": {"Verb": "set", "Key": f"{prefix}/{key}", "Value": ""}} for key in foreign]
    async with make(server.endpoint) as store:
        for directory in ("dir", ""):
            await server.api("PUT", "/v1/txn", json.dumps(operations))
            pairs = [await store.put("dir/key", b""), await store.put("dir/other", b"")]
            assert await store.list(directory) == pairs
            assert await store.delete_tree(directory) == 2


@pytest.mark.parametrize(
    ("names", "units"),
    [
        ([], []),
        (["keep/"], []),
        (["a", "ab/", "b"], [("a", True), ("b", True)]),
        (["k", "ke", "keep"], [("k", False), ("ke", False)]),
        (["k/", "kx", "keepx/", "keep0"], [("k/", True), ("kx", True), ("keepx", True), ("keep0", True)]),
    ],
)
async def test_deletion_units(names: list[str], units: list[tuple[str, bool]]) -> None:
    assert deletion_units(names, "keep/") == units


async def test_durations() -> None:
    assert parse_duration("1m30s") == 90
    assert parse_duration("1.5h") == 5400
    assert parse_duration("250ms") == 0.25


async def test_a_server_with_a_longer_shortest_ttl(make: Make) -> None:
    async with ConsulServer(session_ttl_min=30) as server, make(server.endpoint) as store:
        await store.put("key", b"", ttl=0.2)
        (session,) = json.loads(await server.api("GET", "/v1/session/list"))
        assert session["TTL"] == "30000ms"
        async with store.watch("key") as watch:
            if await anext(watch) is not None:
                assert await anext(watch) is None


async def test_settings_that_cannot_be(make: Make, tmp_path: Path) -> None:
    for endpoints in ([], ["http://127.0.0.1:8500"], ["host:port"]):
        with pytest.raises(ValueError, match="endpoint"):
            make(*endpoints)
    with pytest.raises(ValueError, match="colon"):
        await make("127.0.0.1", username="us:er", password="secret").__aenter__()
    with pytest.raises(ValueError, match="option"):
        make("127.0.0.1", options={"unknown": 1})
    missing = tmp_path / "missing.pem"
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    for field in ("ca_file", "cert_file", "key_file"):
        for file in (missing, broken):
            certificates = Certificates(tmp_path)
            files = {"ca_file": certificates.ca, "cert_file": certificates.client_cert}
            settings = {**files, "key_file": certificates.client_key, field: file}
            with pytest.raises(ValueError, match=f"(?s){field}.*{file.name}"):
                await make("127.0.0.1:1", tls=True, **settings).__aenter__()


async def test_tls(make: Make, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    stranger_directory = tmp_path / "stranger"
    stranger_directory.mkdir()
    stranger = Certificates(stranger_directory)
    files = {"ca_file": certificates.ca, "cert_file": certificates.client_cert, "key_file": certificates.client_key}
    async with ConsulServer(tls=certificates) as server:
        for settings in ({"tls": True, **files}, {"tls": certificates.ssl_context()}):
            async with make(server.endpoint, **settings) as store:
                pair = await store.put("key", b"value")
                assert await store.get("key") == pair
                async with store.watch("key") as watch:
                    assert await anext(watch) == pair
        refused = [
            {"tls": True, "ca_file": certificates.ca},
            {"tls": True, **files, "ca_file": stranger.ca},
            {"tls": True, **files, "cert_file": stranger.client_cert, "key_file": stranger.client_key},
            {},
        ]
        for settings in refused:
            with pytest.raises((NotReachableError, StoreError)) as caught:
                await make(server.endpoint, connection_timeout=scaled(3), **settings).__aenter__()
            assert caught.value.backend == "consul"


async def test_entering_fails_in_time(make: Make, proxy: FaultProxy, server: ConsulServer) -> None:
    loop = asyncio.get_running_loop()
    proxy.blackhole()
    began = loop.time()
    with pytest.raises(NotReachableError, match="no answer within"):
        await make(proxy.endpoint, connection_timeout=scaled(0.5)).__aenter__()
    assert loop.time() - began < scaled(1.5)
    async with make(proxy.endpoint, server.endpoint, connection_timeout=scaled(2)) as store:
        assert not await store.exists("key")
    proxy.heal()
    proxy.refuse()
    with pytest.raises(NotReachableError, match="connection failed"):
        await make(proxy.endpoint).__aenter__()


async def test_entering_goes_on_to_the_next_server(make: Make, proxy: FaultProxy, server: ConsulServer) -> None:
    proxy.refuse()
    for endpoints in (
        (proxy.endpoint, server.endpoint),
        (proxy.endpoint, "127.0.0.1:1", server.endpoint),
        (proxy.endpoint, server.endpoint, "127.0.0.1:1"),
    ):
        async with make(*endpoints) as store:
            assert not await store.exists("key")

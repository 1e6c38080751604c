"""What servers say when they refuse: in other versions, through a follower, by a proxy before them."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from aiolibkv import AccessDeniedError, InvalidKeyError, KeyNotFoundError, NotReachableError, StoreError
from aiolibkv.backends.consul.failures import denies, failure_of, lacks_right, shortest_ttl
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import ConsulServer
from consul.conftest import Make
from consul.rewriting import Rewriting, forwarded

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

_NO_WAY = "rpc error getting client: failed to get conn: dial tcp 127.0.0.1:0->127.0.0.1:8300: connection refused"


@pytest.mark.parametrize(
    ("status", "text", "repeated"),
    [
        (500, "No cluster leader", True),
        (500, "rpc error making call: No cluster leader", True),
        (500, "rpc error making call: node is not the leader", True),
        (500, "Raft leader not found in server lookup mapping", True),
        (500, "No known Consul servers", True),
        (500, "No path to datacenter", True),
        (500, _NO_WAY, True),
        (429, "RPC rate limit exceeded", True),
        (429, "rate limit exceeded, try a different server", True),
        (503, "rate limit exceeded, try again later", True),
        (500, "rpc error making call: rate limit exceeded, try again later", True),
        (500, "rpc error making call: leadership lost while committing log", False),
        (500, "rpc error making call: EOF", False),
        (503, "<html><title>503 Service Unavailable</title></html>", False),
    ],
)
async def test_what_was_certainly_not_done(
    make: Make, server: ConsulServer, status: int, text: str, *, repeated: bool
) -> None:
    """It is repeated; everything else is in doubt."""
    refusals = 0

    def refuse(request: web.Request) -> tuple[int, str] | None:
        nonlocal refusals
        if request.path != "/v1/txn" or refusals:
            return None
        refusals += 1
        return status, text

    async with Rewriting(server, refuse=refuse) as front, make(front.endpoint) as store:
        if repeated:
            pair = await store.put("key", b"")
            assert await store.get("key") == pair
        else:
            with pytest.raises(NotReachableError) as caught:
                await store.put("key", b"")
            assert caught.value.maybe_applied
            with pytest.raises(KeyNotFoundError):
                await store.get("key")
        assert refusals == 1


@pytest.mark.parametrize(
    "text",
    [
        "Permission denied",
        "rpc error making call: Permission denied",
        "Permission denied: token with AccessorID '8b7a' lacks permission 'key:read' on \"a\"",
        "Permission denied: anonymous token lacks permission 'key:write' on \"a\". The anonymous token is used ...",
    ],
)
async def test_words_of_denials(text: str) -> None:
    assert lacks_right(text)
    assert denies(text)
    assert isinstance(failure_of(403, text, "'a'"), AccessDeniedError)


async def test_words_that_are_no_denials() -> None:
    for text in ('key "Permission denied" doesn\'t exist', 'key "ACL not found" exists', "No cluster leader", ""):
        assert not denies(text)
    assert denies("rpc error making call: ACL not found")
    assert not lacks_right("rpc error making call: ACL not found")


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (500, 'invalid key name, keys should respect the "^[a-zA-Z0-9,_./\\-?&=]+$" format'),
        (400, "Invalid key name"),
        (400, "key contains invalid character ' ' at position 1. Only alphanumeric characters and ,-_./ are allowed"),
        (400, "URL path contains invalid traversal sequence"),
    ],
)
async def test_a_key_whose_name_the_server_refuses(make: Make, server: ConsulServer, status: int, text: str) -> None:
    """As 1.21.5 and later do in URLs, of keys that were good before."""

    def refuse(request: web.Request) -> tuple[int, str] | None:
        return (status, text) if request.path.endswith("a b") else None

    async with Rewriting(server, refuse=refuse) as front, make(front.endpoint) as store:
        with pytest.raises(InvalidKeyError, match=text.partition(" ")[0]):
            await store.get("a b")
        with pytest.raises(InvalidKeyError) as caught:
            await store.put("a b", bytes(500_000))
        assert not caught.value.maybe_applied
        pair = await store.put("plain", b"")
        assert await store.get("plain") == pair


async def test_the_shortest_ttl_through_a_follower(make: Make) -> None:
    async with (
        ConsulServer(session_ttl_min=30) as server,
        Rewriting(server, forwarded) as front,
        make(front.endpoint) as store,
    ):
        pair = await store.put("key", b"", ttl=60)
        async with store.new_lock("lock", ttl=10) as held:
            assert held.ttl == 30
        assert await store.get("key") == pair
    with pytest.raises(ValueError, match="bounds"):
        shortest_ttl("Invalid Session TTL '10000000000'")


async def test_a_ttl_that_the_server_never_takes(make: Make, entering: AsyncExitStack) -> None:
    """It is told as what it is, not as an outage that passes."""
    server = await entering.enter_async_context(ConsulServer(session_ttl_min=2 * 86400))
    front = await entering.enter_async_context(Rewriting(server, forwarded))
    store = await entering.enter_async_context(make(front.endpoint))
    with pytest.raises(StoreError, match=r"no session.*must be between \[48h") as caught:
        await store.put("key", b"", ttl=60)
    assert not isinstance(caught.value, NotReachableError)
    assert not caught.value.maybe_applied


async def test_a_page_in_place_of_an_answer(make: Make, server: ConsulServer) -> None:
    page = "<html>\n<head><title>502 Bad Gateway</title></head><body>...</body></html>"

    def refuse(request: web.Request) -> tuple[int, str] | None:
        return (502, page) if request.path.endswith("/key") else None

    async with Rewriting(server, refuse=refuse) as front, make(front.endpoint, request_timeout=0.5) as store:
        with pytest.raises(NotReachableError, match=r"502.*HTML page \(502 Bad Gateway\)") as caught:
            await store.get("key")
        assert "<" not in str(caught.value)


async def test_what_a_server_that_was_just_started_does_not_find_yet(make: Make, server: ConsulServer) -> None:
    """Before it has read all of its log, stale reads find nothing there."""

    def forget(request: web.Request, status: int, body: bytes) -> tuple[int, bytes]:
        if "stale" not in request.query:
            return status, body
        if request.path == "/v1/txn":
            said = "failed to check index, key doesn't exist"
            return 409, json.dumps({"Results": None, "Errors": [{"OpIndex": 0, "What": said}]}).encode()
        return 404, b""

    async with Rewriting(server, forget) as front, make(front.endpoint) as store:
        pair = await store.put("dir/key", b"")
        assert await store.get("dir/key", consistent=False) == pair
        assert await store.exists("dir/key", consistent=False)
        assert await store.list("dir", consistent=False) == [pair]
        assert not await store.exists("missing", consistent=False)
        with pytest.raises(KeyNotFoundError):
            await store.get("missing", consistent=False)
        with pytest.raises(KeyNotFoundError):
            await store.list("missing", consistent=False)


async def test_a_server_for_development(make: Make, entering: AsyncExitStack, prefix: str) -> None:
    """It indents its JSON, as others do for ``?pretty``."""

    async def in_line() -> bool:
        keys = json.loads(await server.api("GET", f"/v1/kv/{prefix}?keys"))
        return any("/.aiolibkv/waiters/" in key for key in keys)

    server = await entering.enter_async_context(ConsulServer(dev=True))
    one = await entering.enter_async_context(make(server.endpoint))
    other = await entering.enter_async_context(make(server.endpoint))
    pairs = [await one.put(f"dir/{number}", bytes([number])) for number in range(3)]
    assert await one.list("dir") == pairs
    async with other.watch_tree("dir") as watch:
        assert await anext(watch) == pairs
        pairs.append(await one.put("dir/3", b""))
        assert await anext(watch) == pairs
        assert await one.delete_tree("") == 4
        assert await anext(watch) == []
    lock = one.new_lock("lock")
    await lock.acquire()
    waiting = asyncio.ensure_future(other.new_lock("lock").acquire())
    await eventually(in_line, within=5, message="the other one is in the line")
    await lock.release()
    async with asyncio.timeout(scaled(5)):
        assert (await waiting).is_held


ENCODINGS: dict[str, Callable[[web.Response], object]] = {
    "gzip": lambda response: response.enable_compression(web.ContentCoding.gzip),
    "deflate": lambda response: response.enable_compression(web.ContentCoding.deflate),
    "chunked": lambda response: response.enable_chunked_encoding(),
    "closed after each": lambda response: response.force_close(),
}


@pytest.mark.parametrize("name", ENCODINGS)
async def test_answers_as_proxies_hand_them_on(make: Make, server: ConsulServer, name: str) -> None:
    async with Rewriting(server, finish=ENCODINGS[name]) as front, make(front.endpoint) as store:
        pair = await store.put("key", b"value " * 1000)
        assert await store.get("key") == pair
        assert await store.list("") == [pair]
        assert await anext(store.watch("key")) == pair


@pytest.mark.parametrize("status", [414, 431])
async def test_a_request_that_a_proxy_never_hands_on(make: Make, server: ConsulServer, status: int) -> None:
    def refuse(request: web.Request) -> tuple[int, str] | None:
        return (status, "<html><title>Too Large</title></html>") if request.path == "/v1/txn" else None

    async with Rewriting(server, refuse=refuse) as front, make(front.endpoint) as store:
        with pytest.raises(StoreError, match="Too Large") as caught:
            await store.put("key", b"")
        assert not isinstance(caught.value, NotReachableError)
        assert not caught.value.maybe_applied

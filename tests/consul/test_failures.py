"""What servers say when they refuse: in other versions, through a follower, by a proxy before them."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from aiolibkv import (
    AccessDeniedError,
    Candidate,
    Check,
    InvalidKeyError,
    KeyNotFoundError,
    KVPair,
    NotReachableError,
    Put,
    StoreError,
)
from aiolibkv.backends.consul.failures import denies, failure_of, lacks_right, shortest_ttl
from aiolibkv.events import Disconnected, Event
from aiolibkv.store import outages
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import ConsulServer
from consul.conftest import Make
from consul.rewriting import Rewriting, forwarded
from stores import ConsulStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

REFUSED_TTL = r"no session.*must be between \[48h"
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


RULES_OF_NAMES = {
    # Of 1.21.5; what later versions say may differ.
    "characters": (
        500,
        r'invalid key name, keys should respect the "^[a-zA-Z0-9,_./\\-?&=]+$" format',
        r"[a-zA-Z0-9,_./\-?&=]+",
    ),
    "ways out": (400, "key contains path traversal sequence", r"(?!.*(\.\./|\.\.$)).*"),
    "spaces": (400, "Invalid key name", r"(?! ).*(?<! )"),
}


@pytest.mark.parametrize(
    ("rule", "name", "is_directory_refused"),
    [
        ("characters", "a b", True),
        ("characters", "ü", True),
        ("characters", "50%", True),
        ("ways out", "a..", True),
        ("spaces", "a ", False),
    ],
)
async def test_a_key_whose_name_the_server_refuses(
    make: Make, server: ConsulServer, direct: ConsulStore, rule: str, name: str, *, is_directory_refused: bool
) -> None:
    """As some versions do in URLs, though not in transactions: a key that is written there could not be read."""
    status, text, taken = RULES_OF_NAMES[rule]

    def refuse(request: web.Request) -> tuple[int, str] | None:
        key = request.path.removeprefix("/v1/kv/")
        return None if key == request.path or re.fullmatch(taken, key) else (status, text)

    async with Rewriting(server, refuse=refuse) as front, make(front.endpoint) as store:
        previous = KVPair(name, b"", 1)
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: store.put(name, b""),
            lambda: store.put(name, b"", ttl=60),
            lambda: store.put(name, bytes(500_000)),
            lambda: store.atomic_put(name, b"", None),
            lambda: store.atomic_put(name, b"", previous),
            lambda: store.commit(Put("plain", b""), Put(name, b"")),
            lambda: store.commit(Put("plain", b""), Check(name, previous=None)),
            lambda: store.get(name),
            lambda: store.exists(name),
            lambda: store.get_many(["plain", name]),
            lambda: store.delete(name),
            lambda: store.atomic_delete(name, previous),
            lambda: store.delete_tree(name),
            lambda: store.new_lock(name).acquire(),
            lambda: store.new_lock(name).try_acquire(),
            lambda: anext(store.watch(name)),
        ]
        if is_directory_refused:
            calls += [
                lambda: store.list(name),
                lambda: store.keys(name),
                lambda: store.children(name),
                lambda: anext(store.scan(name)),
                lambda: anext(store.watch_tree(name)),
            ]
        for call in calls:
            with pytest.raises(InvalidKeyError, match=text.partition(" ")[0]) as caught:
                async with asyncio.timeout(scaled(5)):
                    await call()
            assert caught.value.key in {name, None}
            assert not caught.value.maybe_applied
        assert list(await direct.list("")) == []
        pair = await store.put("plain", b"")
        assert await direct.list("") == await store.list("") == [pair]


async def test_unusual_names_cost_one_request_in_all(proxied: ConsulStore, proxy: FaultProxy) -> None:
    with proxy.counting() as counts:
        await proxied.put("plain/a-b_c.d,e=f&g?h", b"")
        assert counts.round_trips == 1
        await proxied.put("first of them", b"")
        assert counts.round_trips == 3
    with proxy.counting() as counts:
        for name in ("a b", "ü", "50%", "a?b&c=d", "a.b"):
            await proxied.put(name, b"")
        assert counts.round_trips == 5
    async with proxied.new_lock("a b/lock"):
        assert len(await proxied.get_many(["a b", "ü", "50%"])) == 3


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


async def test_a_ttl_that_the_server_never_takes(
    make: Make, entering: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told as what it is, not as an outage that passes."""
    server = await entering.enter_async_context(ConsulServer(session_ttl_min=2 * 86400))
    front = await entering.enter_async_context(Rewriting(server, forwarded))
    store = await entering.enter_async_context(make(front.endpoint))
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.put("key", b"", ttl=60),
        lambda: store.put("key", b"", keep_alive=True),
        lambda: store.new_lock("lock").acquire(),
        lambda: store.new_lock("lock").try_acquire(),
    ]
    for call in calls:
        with pytest.raises(StoreError, match=REFUSED_TTL) as caught:
            async with asyncio.timeout(scaled(5)):
                await call()
        assert not isinstance(caught.value, NotReachableError)
        assert not caught.value.maybe_applied
    async with Candidate(store, "leader", node="a").run_for_election() as election:
        assert not await anext(election)
        await eventually(lambda: re.search(REFUSED_TTL, caplog.text), within=5, message="the campaign tells why")


async def test_a_ttl_that_the_server_takes_no_longer(
    make: Make, server: ConsulServer, prefix: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for a lock is told, and why a key that is kept alive does not come back."""
    said = "rpc error making call: Invalid Session TTL '10000000000', must be between [48h0m0s=24h0m0s]"
    is_refused = asyncio.Event()

    def refuse(request: web.Request) -> tuple[int, str] | None:
        return (500, said) if is_refused.is_set() and request.path == "/v1/session/create" else None

    monkeypatch.setattr(outages, "TOLD_AFTER", 0.5)
    async with Rewriting(server, refuse=refuse) as front, make(front.endpoint) as store:
        await store.put("lock", b"somebody else's")
        await store.put("alive", b"", keep_alive=True)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(_refused(store.new_lock("lock").acquire()))
            await _in_line(server, prefix)
            is_refused.set()
            for session in json.loads(await server.api("GET", "/v1/session/list")):
                await server.api("PUT", f"/v1/session/destroy/{session['ID']}")
            await waiting
        await eventually(lambda: re.search(REFUSED_TTL, caplog.text), within=15, message="the log tells why")
        is_refused.clear()
        await eventually(lambda: store.exists("alive"), within=15, message="the key comes back")


async def _refused(acquiring: Awaitable[object]) -> None:
    with pytest.raises(StoreError, match=REFUSED_TTL):
        async with asyncio.timeout(scaled(15)):
            await acquiring


async def test_a_page_in_place_of_an_answer(make: Make, server: ConsulServer) -> None:
    page = "<html>\n<head><title>502 Bad Gateway</title></head><body>...</body></html>"

    def refuse(request: web.Request) -> tuple[int, str] | None:
        return (502, page) if request.path.endswith("/key") else None

    async with Rewriting(server, refuse=refuse) as front, make(front.endpoint, request_timeout=scaled(0.5)) as store:
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
    told: list[Event] = []
    server = await entering.enter_async_context(ConsulServer(dev=True))
    one = await entering.enter_async_context(make(server.endpoint, listener=told.append))
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
    await _in_line(server, prefix)
    await lock.release()
    async with asyncio.timeout(scaled(5)):
        assert (await waiting).is_held
    await one.put("brief", b"", ttl=60)
    before = await server.api("GET", "/v1/session/list")
    await one.put("brief", b"")

    async def is_ended() -> bool:
        return await server.api("GET", "/v1/session/list") != before

    await eventually(is_ended, within=5, message="the session of what has no lifetime any more is ended")
    assert await one.get("brief")
    # Nothing that it said was taken for something else's.
    assert not [event for event in told if isinstance(event, Disconnected)]


async def _in_line(server: ConsulServer, prefix: str) -> None:
    """Wait until somebody waits for a lock in the line; there is another key."""

    async def is_there() -> bool:
        keys = json.loads(await server.api("GET", f"/v1/kv/{prefix}?keys"))
        return any("/.aiolibkv/waiters/" in key for key in keys)

    await eventually(is_there, within=5, message="somebody is in the line")


@pytest.mark.parametrize("end", [b"", b"\n"])
async def test_a_watch_at_a_server_that_knows_no_leader(make: Make, server: ConsulServer, end: bytes) -> None:
    """One for development ends what it says with a line break."""
    is_lost = asyncio.Event()

    def lose(request: web.Request, status: int, body: bytes) -> tuple[int, bytes]:
        is_asked = is_lost.is_set() and request.path == "/v1/status/leader"
        return status, b'""' + end if is_asked else body

    async with Rewriting(server, lose) as front, make(front.endpoint) as store, store.watch("key") as watch:
        assert await anext(watch) is None
        is_lost.set()
        await eventually(lambda: watch.is_stale, within=10, message="the watch is stale")
        is_lost.clear()
        pair = await store.put("key", b"")
        async with asyncio.timeout(scaled(10)):
            assert await anext(watch) == pair


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

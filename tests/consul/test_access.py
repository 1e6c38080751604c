"""Tokens, and what they may not do."""

import asyncio
import json
from asyncio.subprocess import DEVNULL
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from string import ascii_lowercase, digits
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio

from aiolibkv import (
    AccessDeniedError,
    Check,
    Config,
    Discovery,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    KVPair,
    NotReachableError,
    Watch,
    open_store,
)
from aiolibkv.config import Token
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import ConsulServer
from aiolibkv.testing.servers.process import find_program
from consul.recording import recorded
from consul.rewriting import Change, Rewriting, explained, forwarded
from faults.impostors import Front, consul
from secrecy import new_secret
from stores import ConsulStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

ROOT = "the-management-token"
RULES = """
key_prefix "mine/" { policy = "write" }
key_prefix "seen/" { policy = "read" }
session_prefix "" { policy = "write" }
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded() -> AsyncIterator[ConsulServer]:
    """Run one for development, whose indented denials are told from answers as well."""
    async with ConsulServer(token=ROOT, dev=True) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def limited(guarded: ConsulServer) -> str:
    return await guarded.add_token(RULES)


def _store(server: ConsulServer | Rewriting, token: Token | None, prefix: str = "", **settings: float) -> ConsulStore:
    return ConsulStore([server.endpoint], Config(token=token, prefix=prefix, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("words", [None, explained, forwarded])
async def test_every_call_that_may_not_be_is_denied(guarded: ConsulServer, limited: str, words: Change | None) -> None:
    """Whatever the words of the server are, which differ from version to version."""
    previous = KVPair("other/key", b"", 1)
    async with AsyncExitStack() as entering:
        server = guarded if words is None else await entering.enter_async_context(Rewriting(guarded, words))
        root = await entering.enter_async_context(_store(guarded, ROOT))
        store = await entering.enter_async_context(_store(server, limited))
        within = await entering.enter_async_context(_store(server, limited, "other"))
        pair = await root.put("other/key", b"secret")
        seen = await root.put("seen/key", b"")
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: store.get("other/key"),
            lambda: store.get("other/key", consistent=False),
            lambda: store.get("other/missing"),
            lambda: store.exists("other/key"),
            lambda: store.exists("other/missing"),
            lambda: store.exists("other/missing", consistent=False),
            lambda: store.list("other"),
            lambda: store.list("other/key"),
            lambda: store.list("missing"),
            lambda: store.put("other/key", b""),
            lambda: store.put("other/key", b"", ttl=60),
            lambda: store.put("other/key", b"", keep_alive=True),
            lambda: store.put("other/key", bytes(500_000)),
            lambda: store.put("seen/key", b""),
            lambda: store.atomic_put("other/key", b"", None),
            lambda: store.atomic_put("other/key", b"", previous),
            lambda: store.atomic_put("seen/key", b"", seen),
            lambda: store.delete("other/key"),
            lambda: store.delete("seen/key"),
            lambda: store.atomic_delete("other/key", previous),
            lambda: store.atomic_delete("seen/key", seen),
            lambda: store.delete_tree("other"),
            lambda: store.delete_tree("seen"),
            lambda: anext(store.watch("other/key")),
            lambda: anext(store.watch("other/missing")),
            lambda: anext(store.watch_tree("other")),
            lambda: anext(store.watch_tree("missing")),
            lambda: store.new_lock("other/lock").try_acquire(),
            lambda: within.list(""),
            lambda: within.delete_tree(""),
            lambda: anext(within.watch_tree("")),
        ]
        for number, call in enumerate(calls):
            with pytest.raises(AccessDeniedError) as caught:
                async with asyncio.timeout(scaled(5)):
                    await call()
            assert not caught.value.maybe_applied, number
            assert caught.value.backend == "consul"
            assert limited not in f"{caught.value!s}{caught.value!r}{caught.value.__cause__!r}"
        assert await root.get("other/key") == pair
        assert await root.get("seen/key") == seen


async def test_a_token_that_may_only_read(guarded: ConsulServer) -> None:
    """What is empty may be read as well, and a watch does not end with the last key."""
    reading = await guarded.add_token('key_prefix "seen/" { policy = "read" }')
    async with (
        _store(guarded, ROOT, "seen/only") as root,
        _store(guarded, reading, "seen/only") as store,
        store.watch_tree("") as everything,
        store.watch_tree("dir") as tree,
        store.watch("dir/key") as key,
    ):
        assert not await store.exists("dir/key")
        assert list(await store.list("")) == []
        with pytest.raises(KeyNotFoundError):
            await store.list("dir")
        assert await _next(everything, tree, key) == [[], [], None]
        for _ in range(2):
            absent = Check("dir/key", previous=None)
            assert await store.commit(absent, Check("dir", previous=None)) == [None, None]
            pair = await root.put("dir/key", b"")
            with pytest.raises(KeyExistsError) as caught:
                await store.commit(Check("dir", previous=None), absent)
            assert caught.value.key == "dir/key"
            assert await store.commit(Check("dir", previous=None), Check("dir/key", previous=pair)) == [None, None]
            with pytest.raises(KeyModifiedError):
                await store.commit(Check("gone", previous=KVPair("gone", b"", 1)), Check("none", previous=None))
            assert await _next(everything, tree, key) == [[pair], [pair], pair]
            assert await store.exists("dir/key")
            assert list(await store.list("dir/key")) == []
            await root.delete("dir/key")
            assert await _next(everything, tree, key) == [[], [], None]


async def test_a_denial_names_what_was_denied(guarded: ConsulServer) -> None:
    """Also where it is nothing that the caller named."""
    token = await guarded.add_token('key "named/lock" { policy = "write" } key_prefix "" { policy = "read" }')
    async with _store(guarded, token, "named") as store:
        with pytest.raises(AccessDeniedError, match="session/create"):
            await store.put("lock", b"", ttl=60)
        with pytest.raises(AccessDeniedError, match="'named/other'"):
            await store.put("other", b"")


async def test_what_the_token_may_do_is_not_disturbed(guarded: ConsulServer, limited: str) -> None:
    async with _store(guarded, limited, "mine") as store:
        assert list(await store.list("")) == []
        pair = await store.put("dir/key", b"")
        assert list(await store.list("")) == [pair]
        async with store.watch_tree("") as watch:
            assert await anext(watch) == [pair]
            assert await store.delete_tree("") == 1
            assert await anext(watch) == []
            assert await store.delete_tree("") == 0
            later = await store.put("later", b"", ttl=60)
            assert await anext(watch) == [later]
        assert not await store.exists("missing")
        async with store.new_lock("lock") as held:
            await store.delete("later", guard=held)


async def test_a_shared_poll_denies_as_well(guarded: ConsulServer, limited: str) -> None:
    """Beyond the most polls there are, watches are served from a directory, of which the server leaves things out."""
    async with _store(guarded, limited) as store:
        watches = [store.watch(f"mine/{number}/key") for number in range(100)]
        for watch in watches:
            assert await anext(watch) is None
        with pytest.raises(AccessDeniedError):
            await anext(store.watch("other/key"))
        with pytest.raises(AccessDeniedError):
            await anext(store.watch_tree("other"))
        for watch in watches:
            await watch.aclose()


@pytest.mark.parametrize("is_empty", [True, False])
async def test_a_tree_that_may_not_be_read_any_more(guarded: ConsulServer, *, is_empty: bool) -> None:
    """The server tells of it as if there were nothing."""
    token = await guarded.add_token(RULES)
    async with _store(guarded, ROOT) as root, _store(guarded, token) as store:
        pairs = [] if is_empty else [await root.put("mine/forbidden/key", b"")]
        async with store.watch_tree("mine/forbidden") as tree:
            assert await anext(tree) == pairs
            await _rule(guarded, token, 'key_prefix "mine/forbidden" { policy = "deny" }')
            assert await _until_denied(tree) == []
        if pairs:
            await root.delete_tree("mine/forbidden")


@pytest.mark.parametrize("is_there", [True, False])
async def test_what_a_shared_poll_may_not_read_any_more_is_not_told_as_gone(
    guarded: ConsulServer, *, is_there: bool
) -> None:
    """What is missing all the time is missing for those who may not read it as well."""
    token = await guarded.add_token(RULES)
    async with _store(guarded, ROOT) as root, _store(guarded, token) as store:
        watches = [store.watch(f"mine/{number}/key") for number in range(100)]
        for watch in watches:
            assert await anext(watch) is None
        forbidden = await root.put("mine/forbidden/key", b"") if is_there else None
        async with store.watch("mine/forbidden/key") as key, store.watch_tree("mine/forbidden") as tree:
            assert await anext(key) == forbidden
            assert await anext(tree) == ([forbidden] if forbidden else [])
            await _rule(guarded, token, f'{RULES} key_prefix "mine/forbidden" {{ policy = "deny" }}')
            for denied in (key, tree):
                assert await _until_denied(denied) == []
        pair = await root.put("mine/99/key", b"")
        assert await anext(watches[-1]) == pair
        for watch in watches:
            await watch.aclose()
        await root.delete_tree("mine")


async def test_a_registration_comes_back_with_its_rights(
    guarded: ConsulServer, caplog: pytest.LogCaptureFixture
) -> None:
    """When it was deleted while they were taken away."""
    token = await guarded.add_token(RULES)
    async with _store(guarded, ROOT) as root, _store(guarded, token) as store:
        async with Discovery(store, "mine/services").register("web", "h:1", id="a", ttl=scaled(1)):
            await _rule(guarded, token, f'{RULES} key_prefix "mine/services" {{ policy = "deny" }}')
            await eventually(lambda: _is_told(caplog, "again in"), within=10, message="it cannot be looked after")
            await root.delete("mine/services/web/a")
            await _rule(guarded, token, RULES)
            await eventually(lambda: root.exists("mine/services/web/a"), within=10, message="it comes back")
        assert not await root.exists("mine/services/web/a")


def _is_told(caplog: pytest.LogCaptureFixture, what: str) -> bool:
    return any(what in message for message in caplog.messages)


async def test_an_unknown_token_is_refused_at_entering(guarded: ConsulServer) -> None:
    unknown = "ffffffff-0000-0000-0000-000000000000"
    with pytest.raises(AccessDeniedError) as caught:
        await _store(guarded, unknown).__aenter__()
    assert unknown not in str(caught.value)
    for nothing in (None, ""):
        async with _store(guarded, nothing) as store:
            with pytest.raises(AccessDeniedError):
                await store.get("key")


async def test_a_callable_is_asked_again_after_a_refusal(guarded: ConsulServer, limited: str) -> None:
    tokens: list[str] = []

    def renew() -> str:
        tokens.append(current[0])
        return current[0]

    current = [limited]
    async with _store(guarded, renew) as store:
        await store.put("mine/key", b"1")
        await store.get("mine/key")
        # What entering reads is denied, but tells that the token is known.
        assert len(tokens) == 1
        current[0] = ROOT
        for write in (
            lambda: store.put("other/renewed", b"2"),
            lambda: store.get("other/renewed"),
            lambda: store.exists("other/renewed"),
        ):
            await write()
            assert tokens == [limited, ROOT]
        current[0] = "ffffffff-0000-0000-0000-000000000000"
        await store.delete("other/renewed")
        assert len(tokens) == 2


async def test_a_callable_is_asked_once_for_all_that_is_refused(guarded: ConsulServer, limited: str) -> None:
    asked = 0

    async def give() -> str:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return limited

    async with _store(guarded, give) as store:
        writes = [store.put("other/key", b"") for _ in range(25)]
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        for _ in range(25):
            outcomes += await asyncio.gather(store.get("other/key"), return_exceptions=True)
        assert all(isinstance(outcome, AccessDeniedError) and not outcome.maybe_applied for outcome in outcomes)
        # To begin with, and once more since the first one was refused.
        assert asked == 2
        await store.put("mine/key", b"")


@pytest.mark.parametrize("shared", [False, True])
async def test_watches_outlive_their_tokens(guarded: ConsulServer, *, shared: bool) -> None:
    """One after the other is deleted while nothing else asks for the next one."""
    tokens = [await guarded.add_token(RULES) for _ in range(3)]
    given: list[str] = []
    directory = f"mine/outlived-{shared}"

    def give() -> str:
        given.append(tokens[0])
        return tokens[0]

    async with (
        _store(guarded, ROOT, directory) as root,
        _store(guarded, give, "" if shared else directory) as store,
        AsyncExitStack() as watching,
    ):
        for number in range(100 if shared else 0):
            other = await watching.enter_async_context(store.watch(f"mine/{number}/key"))
            assert await anext(other) is None
        start = f"{directory}/" if shared else ""
        key = await watching.enter_async_context(store.watch(f"{start}dir/key"))
        tree = await watching.enter_async_context(store.watch_tree(f"{start}dir"))
        assert await _next(key, tree) == [None, []]
        for value in (b"1", b"2"):
            await _delete(guarded, tokens.pop(0))
            pair = await root.put("dir/key", value)
            pair = replace(pair, key=f"{start}dir/key")
            async with asyncio.timeout(scaled(20)):
                assert await anext(key) == pair
                assert await anext(tree) == [pair]
            await eventually(lambda: given[-1] == tokens[0], within=20, message="the next token is used")
        await _delete(guarded, tokens[0])
        for watch in (key, tree):
            assert await _until_denied(watch) == []
        await root.delete_tree("")


async def test_a_watch_ends_with_a_token_that_is_not_replaced(guarded: ConsulServer) -> None:
    token = await guarded.add_token(RULES)
    async with (
        _store(guarded, token, "mine/ended") as store,
        store.watch("key") as key,
        store.watch_tree("dir") as tree,
    ):
        assert await _next(key, tree) == [None, []]
        await _delete(guarded, token)
        for watch in (key, tree):
            assert await _until_denied(watch) == []


@pytest.mark.parametrize("name", ["list", "list of the root", "delete_tree", "delete_tree of the root"])
async def test_a_token_that_is_replaced_during_a_call(guarded: ConsulServer, name: str) -> None:
    """What the old one may not read any more is not missing."""
    old, new = await guarded.add_token(RULES), await guarded.add_token(RULES)
    current = [old]
    async with (
        _store(guarded, ROOT, "mine/replaced") as root,
        _store(guarded, lambda: current[0], "mine/replaced") as store,
    ):
        pair = await root.put("dir/key", b"")
        await _rule(guarded, old, 'key_prefix "mine/replaced" { policy = "deny" }')
        current[0] = new
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "list": lambda: store.list("dir"),
            "list of the root": lambda: store.list(""),
            "delete_tree": lambda: store.delete_tree("dir"),
            "delete_tree of the root": lambda: store.delete_tree(""),
        }
        assert await calls[name]() == (1 if name.startswith("delete_tree") else [pair])
        await root.delete_tree("")


@pytest.mark.parametrize("shared", [False, True])
async def test_a_token_that_is_replaced_under_a_watch(guarded: ConsulServer, *, shared: bool) -> None:
    """What the old one may not read any more is not told as gone."""
    old, new = await guarded.add_token(RULES), await guarded.add_token(RULES)
    current = [old]
    directory = f"mine/replaced-{shared}"
    async with _store(guarded, ROOT) as root, _store(guarded, lambda: current[0]) as store:
        others = [store.watch(f"mine/{number}/key") for number in range(100 if shared else 0)]
        for other in others:
            assert await anext(other) is None
        first = await root.put(f"{directory}/1", b"")
        async with store.watch_tree(directory) as tree:
            assert await anext(tree) == [first]
            rules = f'key_prefix "" {{ policy = "read" }} key_prefix "{directory}" {{ policy = "deny" }}'
            await _rule(guarded, old, rules)
            current[0] = new
            pairs = [first]
            # A query that is under way has the rights with which it began.
            for number in range(2, 5):
                pairs.append(await root.put(f"{directory}/{number}", b""))
                async with asyncio.timeout(scaled(20)):
                    assert await anext(tree) == pairs
        for other in others:
            await other.aclose()
        await root.delete_tree(directory)


@pytest.mark.parametrize("lost", [True, False])
async def test_a_large_value_that_may_not_be_read_back(guarded: ConsulServer, *, lost: bool) -> None:
    """It was written, whatever is told of reading its index."""
    token = await guarded.add_token(RULES)
    key = f"mine/large-{lost}"
    async with (
        FaultProxy(guarded.host, guarded.port, protocol="http1") as proxy,
        ConsulStore([proxy.endpoint], Config(token=token)) as store,
        _store(guarded, ROOT) as root,
    ):
        proxy.blackhole(to_server=False)
        writing = asyncio.ensure_future(store.atomic_put(key, bytes(500_000), None))
        await eventually(lambda: root.exists(key), within=5, message="it is written")
        await guarded.api("DELETE", f"/v1/acl/token/{await _accessor(guarded, token)}")
        if lost:
            proxy.reset()
        proxy.heal()
        with pytest.raises(NotReachableError if lost else AccessDeniedError) as caught:
            await writing
        assert caught.value.maybe_applied


async def test_a_write_in_doubt_whose_repetition_is_denied(guarded: ConsulServer) -> None:
    token = await guarded.add_token(RULES)
    async with (
        FaultProxy(guarded.host, guarded.port, protocol="http1") as proxy,
        ConsulStore([proxy.endpoint], Config(token=token)) as store,
        _store(guarded, ROOT) as root,
    ):
        previous = await root.put("mine/denied", b"")
        for write in (
            lambda: store.atomic_put("mine/denied", b"new", previous),
            lambda: store.atomic_delete("mine/denied", previous),
        ):
            await _rule(guarded, token, RULES)
            assert await store.get("mine/denied") == previous
            with recorded(proxy) as requests:
                proxy.blackhole(to_client=False)
                writing = asyncio.ensure_future(write())
                await eventually(lambda requests=requests: requests, within=5, message="it is under way")  # type: ignore[misc]
                await _rule(guarded, token, 'key_prefix "mine/" { policy = "read" }')
                proxy.reset()
                proxy.heal()
                with pytest.raises(NotReachableError) as caught:
                    await writing
                assert caught.value.maybe_applied
            assert await root.get("mine/denied") == previous


async def test_a_root_of_which_a_part_may_not_be_deleted(guarded: ConsulServer) -> None:
    token = await guarded.add_token(f'{RULES} key_prefix "mine/root/z" {{ policy = "read" }}')
    async with _store(guarded, ROOT, "mine/root") as root, _store(guarded, token, "mine/root") as store:
        for name in ascii_lowercase + digits:
            await root.put(name, b"")
        with pytest.raises(AccessDeniedError) as caught:
            await store.delete_tree("")
        assert not caught.value.maybe_applied
        assert [pair.key for pair in await root.list("")] == sorted(ascii_lowercase + digits)
        await root.delete_tree("")


async def test_a_token_that_cannot_be_renewed_still_does_for_what_it_may(guarded: ConsulServer, limited: str) -> None:
    tokens = [limited]
    async with _store(guarded, tokens.pop) as store, store.watch("mine/unrenewed") as watch:
        assert await anext(watch) is None
        with pytest.raises(AccessDeniedError, match="no token could be had"):
            await store.get("other/key")
        pair = await store.put("mine/unrenewed", b"")
        assert await anext(watch) == pair
        await store.delete("mine/unrenewed")


async def test_a_user_is_told_to_whoever_stands_before_consul(guarded: ConsulServer, limited: str) -> None:
    password = new_secret()
    told = b"authorization: basic " + b64encode(f"ann:{password}".encode())
    async with FaultProxy(guarded.host, guarded.port, protocol="http1") as proxy:
        with recorded(proxy) as requests:
            url = f"consul://ann:{quote(password, safe='')}@{proxy.endpoint}/mine/user"
            async with open_store(url, Config(token=limited)) as store:
                await store.put("key", b"")
                await store.put("key", b"", ttl=60)
                assert await anext(store.watch("key")) == await store.get("key")
                await store.delete("key")
        assert len(requests) > 5
        for request in requests:
            head = request.partition(b"\r\n\r\n")[0].lower()
            assert told.lower() in head
            assert f"x-consul-token: {limited}".encode() in head


async def test_a_user_who_is_not_known_to_what_stands_before_consul() -> None:
    password = new_secret()
    async with (
        Front(consul("401 Unauthorized", b"")) as front,
        ConsulStore([front.endpoint], Config(username="ann", password=password)) as store,
    ):
        with pytest.raises(AccessDeniedError) as caught:
            await store.put("key", b"")
        assert not caught.value.maybe_applied
        with pytest.raises(AccessDeniedError):
            await anext(store.watch("key"))


async def test_a_token_that_cannot_be_had(guarded: ConsulServer) -> None:
    def fail() -> str:
        raise RuntimeError("secret words")

    with pytest.raises(AccessDeniedError) as caught:
        await _store(guarded, fail).__aenter__()
    assert "secret words" not in str(caught.value)
    with pytest.raises(ValueError, match="token"):
        await _store(guarded, "two\nlines").__aenter__()


async def _accessor(server: ConsulServer, token: str) -> str:
    for listed in json.loads(await server.api("GET", "/v1/acl/tokens")):
        accessor = str(listed["AccessorID"])
        if json.loads(await server.api("GET", f"/v1/acl/token/{accessor}"))["SecretID"] == token:
            return accessor
    raise AssertionError("no such token")


async def _delete(server: ConsulServer, token: str) -> None:
    """Delete a token by Consul's own command."""
    process = await asyncio.create_subprocess_exec(
        *(find_program("consul", "consul"), "acl", "token", "delete", f"-http-addr={server.endpoint}"),
        *(f"-token={ROOT}", f"-id={await _accessor(server, token)}"),
        stdout=DEVNULL,
    )
    assert await process.wait() == 0


async def _next(*watches: Watch[Any]) -> list[object]:
    async with asyncio.timeout(scaled(5)):
        return [await anext(watch) for watch in watches]


async def _until_denied(watch: Watch[Any]) -> list[object]:
    """Return what a watch gives before it ends."""
    items: list[object] = []
    with pytest.raises(AccessDeniedError):
        async with asyncio.timeout(scaled(20)):
            async for item in watch:
                items.append(item)
    return items


async def _rule(server: ConsulServer, token: str, rules: str) -> None:
    """Give a token other rights."""
    listed = json.loads(await server.api("GET", f"/v1/acl/token/{await _accessor(server, token)}"))
    (policy,) = listed["Policies"]
    await server.api("PUT", f"/v1/acl/policy/{policy['ID']}", json.dumps({"Name": policy["Name"], "Rules": rules}))

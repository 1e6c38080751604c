"""Writes whose answer is lost: recognised as one's own, or told as being in doubt; never applied twice."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from aiolibkv import KeyExistsError, KVPair, NotReachableError, RequestTimeoutError
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import ConsulServer
from consul.conftest import Make
from consul.recording import recorded
from stores import ConsulStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

LARGE = bytes(450_000)


def _writes(sent: bytes) -> bool:
    """Tell whether a request changes a key."""
    return b'"Verb":"set"' in sent or b'"Verb":"lock"' in sent or b"delete" in sent or b"flags=" in sent


async def _lost(proxied: ConsulStore, proxy: FaultProxy, write: Callable[[], Awaitable[object]]) -> object:
    """Carry out a write on a connection that was used before, and lose its answer."""
    assert not await proxied.exists("warm")
    proxy.cut_answers(1, matching=_writes)
    cut = proxy.answers_cut
    try:
        return await write()
    finally:
        assert proxy.answers_cut == cut + 1
        proxy.cut_answers(0)


async def test_puts_are_recognised(proxied: ConsulStore, proxy: FaultProxy, direct: ConsulStore) -> None:
    previous = await direct.put("swapped", b"same")
    await direct.put("put", b"same")
    writes: list[Callable[[], Awaitable[KVPair]]] = [
        lambda: proxied.put("put", b"same"),
        lambda: proxied.put("large", LARGE),
        lambda: proxied.atomic_put("created", b"", None),
        lambda: proxied.atomic_put("large-created", LARGE, None),
        lambda: proxied.atomic_put("swapped", b"same", previous),
        lambda: proxied.put("short", b"", ttl=60),
        lambda: proxied.put("alive", b"", keep_alive=True),
    ]
    for write in writes:
        pair = await _lost(proxied, proxy, write)
        assert isinstance(pair, KVPair)
        assert await direct.get(pair.key) == pair


async def test_nothing_is_sent_again_behind_our_back(proxied: ConsulStore, proxy: FaultProxy) -> None:
    """aiohttp repeats a PUT on its own when a reused connection breaks."""
    assert not await proxied.exists("warm")
    sent: list[bytes] = []

    def cut_all(request: bytes) -> bool:
        if not _writes(request) or (sent and request.startswith(sent[-1])):
            return False
        sent.append(request)
        return True

    proxy.cut_answers(10, matching=cut_all)
    await proxied.put("key", b"value")
    with pytest.raises(NotReachableError) as caught:
        await proxied.delete("key")
    assert caught.value.maybe_applied
    proxy.cut_answers(0)
    assert len(sent) == 2
    assert not await proxied.exists("key")


async def test_a_lock_is_recognised(proxied: ConsulStore, proxy: FaultProxy, direct: ConsulStore) -> None:
    lock = proxied.new_lock("lock", value=b"me")
    held = await _lost(proxied, proxy, lock.try_acquire)
    assert held is not None
    assert (await direct.get("lock")).last_index == held.fencing_token  # type: ignore[attr-defined]
    await lock.release()


async def test_a_write_that_was_overwritten_is_in_doubt(
    proxied: ConsulStore, proxy: FaultProxy, direct: ConsulStore
) -> None:
    previous = await direct.put("swapped", b"")
    writes: list[Callable[[], Awaitable[object]]] = [
        lambda: proxied.put("put", b"lost"),
        lambda: proxied.atomic_put("created", b"lost", None),
        lambda: proxied.atomic_put("swapped", b"lost", previous),
        lambda: proxied.put("large", LARGE),
    ]
    for key, write in zip(("put", "created", "swapped", "large"), writes, strict=True):
        assert not await proxied.exists("warm")
        proxy.cut_answers(1, matching=_writes)
        cut = proxy.answers_cut
        proxy.refuse()
        writing = asyncio.ensure_future(write())
        await eventually(lambda cut=cut: proxy.answers_cut > cut, within=5, message="the answer is cut")  # type: ignore[misc]
        last = await direct.put(key, b"by another")
        proxy.accept()
        with pytest.raises(NotReachableError) as caught:
            await writing
        assert caught.value.maybe_applied
        assert await direct.get(key) == last


async def test_a_request_that_did_not_arrive(proxied: ConsulStore, proxy: FaultProxy, direct: ConsulStore) -> None:
    """It is repeated when it cannot be applied twice, else told as being in doubt."""
    previous = await direct.put("swapped", b"old")
    deleted = await direct.put("deleted", b"old")
    kept = await direct.put("dir/key", b"")
    for write, repeated in (
        (lambda: proxied.atomic_put("swapped", b"new", previous), True),
        (lambda: proxied.atomic_delete("deleted", deleted), True),
        (lambda: proxied.put("put", b"new"), False),
        (lambda: proxied.atomic_put("created", b"new", None), False),
        (lambda: proxied.delete("swapped"), False),
        (lambda: proxied.delete_tree("dir"), False),
    ):
        assert not await proxied.exists("warm")
        with recorded(proxy) as requests:
            proxy.blackhole(to_client=False)
            writing = asyncio.ensure_future(write())
            await eventually(lambda: requests, within=5, message="the request is under way")
            if not _writes(requests[0]):
                proxy.blackhole(to_server=False, to_client=False)
                await eventually(lambda: len(requests) > 1, within=5, message="the second one")
            proxy.reset()
            proxy.heal()
            if repeated:
                await writing
            else:
                with pytest.raises(NotReachableError) as caught:
                    await writing
                assert caught.value.maybe_applied
    swapped = await direct.get("swapped")
    assert swapped.value == b"new"
    assert list(await direct.list("")) == [kept, swapped]


async def test_deletions_are_in_doubt(proxied: ConsulStore, proxy: FaultProxy, direct: ConsulStore) -> None:
    first, second = await direct.put("first", b""), await direct.put("second", b"")
    await direct.put("dir/key", b"")
    for delete in (
        lambda: proxied.delete(first.key),
        lambda: proxied.atomic_delete(second.key, second),
        lambda: proxied.delete_tree("dir"),
    ):
        with pytest.raises(NotReachableError) as caught:
            await _lost(proxied, proxy, delete)
        assert caught.value.maybe_applied
        assert caught.value.endpoint == proxy.endpoint
    assert list(await direct.list("")) == []


async def test_what_was_not_sent_was_not_applied(make: Make, proxy: FaultProxy, direct: ConsulStore) -> None:
    pair = await direct.put("key", b"")
    async with make(proxy.endpoint, request_timeout=scaled(0.5)) as store:
        proxy.refuse()
        proxy.reset()
        with pytest.raises((NotReachableError, RequestTimeoutError)):
            await store.get("key")
        for write in (
            lambda: store.put("key", b"new"),
            lambda: store.put("key", b"new", ttl=60),
            lambda: store.atomic_put("key", b"new", pair),
            lambda: store.delete("key"),
            lambda: store.delete_tree(""),
            lambda: store.put("key", LARGE),
        ):
            with pytest.raises((NotReachableError, RequestTimeoutError)) as caught:
                await write()
            assert not caught.value.maybe_applied
            assert "may have been applied" not in str(caught.value)
        assert await direct.get("key") == pair
        proxy.accept()
        waiting = asyncio.ensure_future(store.put("key", b"new"))
        assert (await waiting).value == b"new"


async def test_a_refusal_was_not_applied(proxied: ConsulStore) -> None:
    await proxied.put("key", b"")
    with pytest.raises(KeyExistsError) as caught:
        await proxied.atomic_put("key", b"", None)
    assert not caught.value.maybe_applied


async def test_a_mute_server_leaves_a_write_in_doubt(make: Make, proxy: FaultProxy) -> None:
    loop = asyncio.get_running_loop()
    async with make(proxy.endpoint, request_timeout=scaled(1)) as store:
        await store.put("key", b"")
        proxy.blackhole(to_server=False)
        began = loop.time()
        with pytest.raises((NotReachableError, RequestTimeoutError)) as caught:
            await store.put("key", b"new")
        assert caught.value.maybe_applied
        with pytest.raises((NotReachableError, RequestTimeoutError)) as caught:
            await store.get("key")
        assert not caught.value.maybe_applied
        assert loop.time() - began < scaled(3)
        proxy.heal()


@pytest.mark.parametrize("settings", [{"ttl": 60.0}, {"keep_alive": True}])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_session_whose_answer_was_lost_is_found(
    proxied: ConsulStore, proxy: FaultProxy, server: ConsulServer, settings: dict[str, float], *, at_once: bool
) -> None:
    async def sessions() -> set[str]:
        return {session["ID"] for session in json.loads(await server.api("GET", "/v1/session/list"))}

    before = await sessions()
    assert not await proxied.exists("warm")
    proxy.cut_answers(1, matching=lambda sent: b"session/create" in sent)
    if not at_once:
        proxy.refuse()
    putting = asyncio.ensure_future(proxied.put("key", b"", **settings))  # type: ignore[arg-type]
    await eventually(lambda: proxy.answers_cut, within=5, message="the answer is cut")
    if not at_once:
        await asyncio.sleep(0.1)
        proxy.accept()
    await putting
    if "ttl" in settings and not at_once:
        # The put began anew with a session of its own; the first one is destroyed in the background.
        async def one_left() -> bool:
            return len(await sessions() - before) == 1

        await eventually(one_left, within=5, message="one session is left")
    assert len(await sessions() - before) == 1
    await proxied.delete("key")


async def test_a_session_given_up_is_destroyed(proxied: ConsulStore, proxy: FaultProxy, server: ConsulServer) -> None:
    before = await server.api("GET", "/v1/session/list")
    assert not await proxied.exists("warm")
    proxy.cut_answers(1, matching=lambda sent: b"session/create" in sent)
    proxy.refuse()
    putting = asyncio.ensure_future(proxied.put("key", b"", ttl=60))
    await eventually(lambda: proxy.answers_cut, within=5, message="the answer is cut")
    putting.cancel()
    await asyncio.wait([putting])
    proxy.heal()

    async def gone() -> bool:
        return await server.api("GET", "/v1/session/list") == before

    await eventually(gone, within=5, message="the session is destroyed")

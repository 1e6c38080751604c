"""What keeps a session, and what does not end it."""

import asyncio
import json

import pytest
from aiohttp import web

from aiolibkv import AccessDeniedError, Config, NotReachableError
from aiolibkv.store import Lifetime, OwnCall
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers import ConsulServer
from consul.conftest import Make
from consul.rewriting import Rewriting
from stores import ConsulStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


async def _session(server: ConsulServer, key: str) -> dict[str, str]:
    (item,) = json.loads(await server.api("GET", f"/v1/kv/{key}"))
    (session,) = json.loads(await server.api("GET", f"/v1/session/info/{item['Session']}"))
    return dict(session)


async def test_a_lock_outlives_the_agents_node(make: Make) -> None:
    """A server that died is taken from the catalog after a while, and with its node each session bound to it."""
    async with ConsulServer() as server, make(server.endpoint, prefix="") as store:
        await store.put("alive", b"", ttl=30, keep_alive=True)
        async with store.new_lock("lock", ttl=30) as held:
            await server.api("PUT", "/v1/catalog/deregister", json.dumps({"Node": "n1"}))

            assert (await _session(server, "lock"))["Node"] == "aiolibkv"
            await store.put("guarded", b"", guard=held)
            assert await store.exists("alive")


async def test_the_node_of_sessions_comes_back(make: Make) -> None:
    """Somebody cleaned it away, or the server was restored without it."""
    async with ConsulServer() as server, make(server.endpoint, prefix="") as store:
        await store.put("key", b"", ttl=30)
        await server.api("PUT", "/v1/catalog/deregister", json.dumps({"Node": "aiolibkv"}))
        assert not await store.exists("key")
        await store.put("key", b"", ttl=30)
        assert (await _session(server, "key"))["Node"] == "aiolibkv"


async def test_a_token_that_may_not_make_nodes() -> None:
    """Sessions are bound to the agent then."""
    rules = 'key_prefix "" { policy = "write" } session_prefix "" { policy = "write" }'
    async with ConsulServer(token="root") as server:
        token = await server.add_token(rules)
        async with ConsulStore([server.endpoint], Config(token=token)) as store:
            await store.put("key", b"", ttl=30)
            assert (await _session(server, "key"))["Node"] == "n1"
            async with store.new_lock("lock") as held:
                assert held.is_held
        no_sessions = await server.add_token('key_prefix "" { policy = "write" }')
        async with ConsulStore([server.endpoint], Config(token=no_sessions)) as store:
            with pytest.raises(AccessDeniedError):
                await store.put("key", b"", ttl=30)


async def test_a_renewal_that_no_leader_vouches_for(make: Make, server: ConsulServer) -> None:
    """A leader whose disk hangs answers renewals still, though the others may have elected another one."""
    hangs = asyncio.Event()

    def mute(request: web.Request) -> bool:
        return hangs.is_set() and "consistent" in request.query

    async with (
        Rewriting(server, hold=mute) as front,
        make(front.endpoint) as alone,
        make(front.endpoint, server.endpoint, request_timeout=scaled(1)) as store,
    ):
        call = OwnCall()
        lease = store.driver.new_lease(Lifetime(60, keep_alive=True))
        await store.driver.grant(call, lease)
        assert await store.driver.renew(call, lease)
        hangs.set()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await alone.driver.renew(call, lease)
        with pytest.raises(NotReachableError, match="not heard"):
            await store.driver.renew(call, lease)
        hangs.clear()
        assert await alone.driver.renew(call, lease)
        await store.driver.revoke(call, lease)
        assert not await alone.driver.renew(call, lease)


async def test_a_renewal_is_one_round_trip(proxied: ConsulStore, proxy: FaultProxy) -> None:
    """At an agent that takes its time for each answer, two would not end within request_timeout."""
    call = OwnCall()
    lease = proxied.driver.new_lease(Lifetime(60, keep_alive=True))
    await proxied.driver.grant(call, lease)
    proxy.delay(0.1)
    with proxy.counting() as counts:
        assert await proxied.driver.renew(call, lease)
    assert (counts.requests, counts.round_trips) == (2, 1)
    proxy.heal()
    await proxied.driver.revoke(call, lease)
    assert not await proxied.driver.renew(call, lease)


async def test_a_session_that_was_refused_for_certain_is_not_looked_for(make: Make, server: ConsulServer) -> None:
    asked = []

    def refuse(request: web.Request) -> tuple[int, str] | None:
        asked.append(request.path)
        return (500, "No cluster leader") if request.path == "/v1/session/create" else None

    async with Rewriting(server, refuse=refuse) as front, make(front.endpoint, request_timeout=scaled(0.5)) as store:
        with pytest.raises(NotReachableError):
            await store.put("key", b"", ttl=30)
    assert asked.count("/v1/session/create") > 1
    assert "/v1/session/list" not in asked


async def test_a_denial_of_everything_does_not_bind_sessions_to_the_agent(make: Make, server: ConsulServer) -> None:
    """As when the token has ended, and another one takes its place."""
    has_ended = asyncio.Event()

    def refuse(_: web.Request) -> tuple[int, str] | None:
        return (403, "ACL not found") if has_ended.is_set() else None

    async with Rewriting(server, refuse=refuse) as front, make(front.endpoint) as store:
        has_ended.set()
        with pytest.raises(AccessDeniedError):
            await store.put("key", b"", ttl=30)
        has_ended.clear()
        await store.put("key", b"", ttl=30)
        assert (await _session(server, f"{store.driver.config.prefix}/key"))["Node"] == "aiolibkv"

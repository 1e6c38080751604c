"""PostgreSQL, which has no three nodes: one server that is killed and paused, and a standby that takes over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from aiolibkv import AsyncStore, Config, LockLostError, new_store
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually
from aiolibkv.testing.servers import PostgresServer
from faults.following import followed, writing
from faults.histories import History, check_history
from faults.standbys import replicated

Make = Callable[..., AsyncStore]

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.leaves_nothing_behind]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[PostgresServer]:
    async with PostgresServer() as running:
        yield running


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Make:
    """Make stores below a directory of the test's own."""
    prefix = request.node.name

    def make_store(server: PostgresServer, *endpoints: str, **settings: float) -> AsyncStore:
        return _store(prefix, server, endpoints, settings)

    return make_store


def _store(prefix: str, server: PostgresServer, endpoints: Sequence[str], settings: Mapping[str, float]) -> AsyncStore:
    username, password = server.user
    config = Config(**{"prefix": prefix, "username": username, "password": password, **settings})  # type: ignore[arg-type]
    return new_store("postgresql", endpoints, config)


def _clients(make: Make, server: PostgresServer, *endpoints: str) -> Sequence[AsyncStore]:
    return [make(server, *endpoints, request_timeout=timeout) for timeout in (2.0, 2.0, 5.0, 5.0, 5.0)]


async def test_a_server_is_paused_and_killed(server: PostgresServer, make: Make) -> None:
    """What clients gave up on is carried out when it goes on, or found out not to be."""

    async def fail(history: History) -> None:
        server.pause()
        await history.suffer(2)
        server.resume()
        await history.go_on(reads=20, writes=20)
        await server.kill()
        await history.suffer(1)
        await server.start()

    await check_history(_clients(make, server, server.endpoint), fail)


async def test_paths_break_and_go_mute(server: PostgresServer, make: Make) -> None:
    async with FaultProxy(server.host, server.port) as proxy:

        async def fail(history: History) -> None:
            for _ in range(5):
                proxy.reset()
                await history.go_on(reads=6, writes=6)
            for to_server in (True, False):
                proxy.blackhole(to_server=to_server)
                await history.suffer(2)
                proxy.heal()

        clients = [*_clients(make, server, proxy.endpoint), make(server, server.endpoint)]
        await check_history(clients, fail)


async def test_watches_outlast_a_server(server: PostgresServer, make: Make) -> None:
    """Killed, paused, and with its connections ended, under a writer."""
    async with (
        make(server, server.endpoint) as direct,
        writing(make(server, server.endpoint)) as writer,
        followed(make(server, server.endpoint), writer) as followers,
    ):

        async def catch_up() -> None:
            goal = writer.number + 10
            await eventually(lambda: writer.number >= goal, within=30, message="the writer goes on")
            await eventually(lambda: followers.have_seen(goal), within=20, message="what was missed is seen")

        await catch_up()
        await server.kill()
        await eventually(lambda: followers.are_stale, within=15, message="the watches know that they are cut off")
        await server.start()
        await catch_up()
        server.pause()
        await eventually(lambda: followers.are_stale, within=15, message="the watches know that they are cut off")
        server.resume()
        await catch_up()
        for _ in range(5):
            await server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
            await catch_up()
        await writer.stop()
        await followers.agree_with(direct)


async def test_a_standby_is_promoted_under_load(make: Make) -> None:
    """Each commit waits for it, so nothing is lost: calls, watches and a guard go on as if nothing had happened."""
    async with AsyncExitStack() as stack:
        primary, standby = await stack.enter_async_context(replicated())
        endpoints = (primary.endpoint, standby.endpoint)
        holder = await stack.enter_async_context(make(primary, *endpoints))
        assert holder.capabilities.survives_failover
        held = await holder.new_lock("lock", ttl=30).acquire()
        writer = await stack.enter_async_context(writing(make(primary, *endpoints)))
        followers = await stack.enter_async_context(followed(make(primary, *endpoints), writer))

        async def fail_over(history: History) -> None:
            await primary.kill()
            await history.suffer(1)
            await standby.promote()

        await check_history(_clients(make, primary, *endpoints), fail_over)
        assert held.is_held
        pair = await holder.put("guarded", b"", guard=held)
        goal = writer.number + 10
        await eventually(lambda: followers.have_seen(goal), within=30, message="what was missed is seen")
        await holder.delete("lock")
        with pytest.raises(LockLostError):
            await holder.put("guarded", b"", guard=held)
        assert await holder.get("guarded") == pair
        await writer.stop()
        await followers.agree_with(holder)

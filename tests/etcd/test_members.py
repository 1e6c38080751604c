"""Members that come and go while stores are open."""

import asyncio
import contextlib
import json
from functools import partial

import pytest

from aiolibkv import Config, NotReachableError
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import EtcdServer, ServerCommandError
from stores import EtcdStore

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]

VERSION = "3.5"
"""Its removed members answer requests for a while."""
HASTY = ["--strict-reconfig-check=false"]
"""Who has just come may leave."""
TTL = 4


async def test_a_learner_is_promoted_and_a_member_is_removed_under_load() -> None:
    async with EtcdServer(version=VERSION, extra_args=HASTY) as first, contextlib.AsyncExitStack() as stack:
        second = EtcdServer(version=VERSION, extra_args=HASTY)
        stack.push_async_callback(second.close)
        await first.ctl("member", "add", "n2", "--learner", f"--peer-urls={second.peer_url}")
        second.join("n2", [first, second], running=True)
        direct = await stack.enter_async_context(EtcdStore([first.endpoint]))
        patient = EtcdStore([second.endpoint], Config(connection_timeout=scaled(20)))
        stack.push_async_callback(patient.close)
        async with asyncio.TaskGroup() as group:
            # Both end when it has been promoted.
            group.create_task(second.start())
            group.create_task(patient.open())
            async with EtcdStore([second.endpoint, first.endpoint], Config(connection_timeout=scaled(5))) as store:
                pair = await store.put("key", b"by a store that left the learner")
                number = await _number_of("n2", first)
                await eventually(partial(_promoted, number, first), within=20, message="the learner is promoted")
        assert await patient.get("key") == pair
        async with EtcdStore([second.endpoint, first.endpoint]) as store, store.watch("key") as watch:
            assert store.driver.hosts() == second.endpoint
            assert await anext(watch) == pair
            held = await store.new_lock("lock", ttl=TTL).acquire()
            alive = await store.put("alive", b"", ttl=TTL, keep_alive=True)
            async with asyncio.TaskGroup() as group:
                load = [group.create_task(_write(store, f"load/{writer}")) for writer in range(5)]
                await first.ctl("member", "remove", number)
                await eventually(lambda: store.driver.hosts() == first.endpoint, within=10, message="it is left")
                pair = await direct.put("key", b"after it was left")
                async with asyncio.timeout(scaled(5)):
                    assert await anext(watch) == pair
                for task in load:
                    task.cancel()
            assert held.is_held
            assert await store.put("guarded", b"", guard=held)
            assert await direct.get("alive") == alive


async def _number_of(name: str, server: EtcdServer) -> str:
    members = json.loads(await server.ctl("member", "list", "--write-out=json"))["members"]
    return next(f"{member['ID']:x}" for member in members if member.get("name", name) == name)


async def _promoted(number: str, server: EtcdServer) -> bool:
    with contextlib.suppress(ServerCommandError):  # until it knows all that the leader knows
        await server.ctl("member", "promote", number)
        return True
    return False


async def _write(store: EtcdStore, key: str) -> None:
    while True:
        with contextlib.suppress(NotReachableError):
            await store.put(key, b"")

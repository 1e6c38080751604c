"""Locks that `consul lock` and this library take from each other."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import ConsulServer
from aiolibkv.testing.servers.process import find_program
from stores import ConsulStore

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]

KEY = "job/.lock"
"""What the command makes of the name "job"."""


@asynccontextmanager
async def command(server: ConsulServer, prefix: str) -> AsyncIterator[Process]:
    """Run `consul lock` around a child that says "held" and ends with its input."""
    process = await asyncio.create_subprocess_exec(
        *(find_program("consul", "consul"), "lock", f"-http-addr={server.endpoint}", "-pass-stdin"),
        *(f"{prefix}/job", "echo held; cat"),
        stdin=PIPE,
        stdout=PIPE,
    )
    try:
        yield process
    finally:
        await ended(process)


async def ended(process: Process) -> int:
    """Let the child end, and the command with it."""
    assert process.stdin is not None
    process.stdin.close()
    return await asyncio.wait_for(process.wait(), scaled(20))


async def holds(process: Process) -> None:
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), scaled(20)) == b"held\n"


async def test_the_command_waits_for_the_lock(direct: ConsulStore, server: ConsulServer, prefix: str) -> None:
    async def has_begun() -> bool:
        sessions = json.loads(await server.api("GET", "/v1/session/list"))
        return any(not session["Name"].startswith("aiolibkv") for session in sessions)

    lock = direct.new_lock(KEY, value=b"me", ttl=60)
    held = await lock.acquire()
    async with command(server, prefix) as process:
        await eventually(has_begun, within=20, message="the command contends")
        assert process.stdout is not None
        reading = asyncio.ensure_future(process.stdout.readline())
        await asyncio.wait([reading], timeout=0.5)
        assert not reading.done()
        assert held.is_held
        await lock.release()
        assert await asyncio.wait_for(reading, scaled(20)) == b"held\n"
        assert await direct.new_lock(KEY).try_acquire() is None
        assert await ended(process) == 0


async def test_the_lock_waits_for_the_command(direct: ConsulStore, server: ConsulServer, prefix: str) -> None:
    lock = direct.new_lock(KEY, value=b"me", ttl=60)
    async with command(server, prefix) as process:
        await holds(process)
        assert await lock.try_acquire() is None
        waiting = asyncio.ensure_future(lock.acquire())
        await asyncio.wait([waiting], timeout=0.5)
        assert not waiting.done()
        assert await ended(process) == 0
        held = await asyncio.wait_for(waiting, scaled(20))
        assert (await direct.get(KEY)).value == b"me"
        assert held.is_held
        await lock.release()

"""A machine that is suspended while one of its processes holds a lock."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from aiolibkv.testing.scale import scaled
from locks.services import SERVICES

_TTL = 30.0


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["etcd", "zookeeper"])
async def test_who_slept_for_longer_than_the_ttl_holds_no_lock(name: str) -> None:
    """At once by its own clock; the body is cancelled though no timer is due, and the server knows the lock still."""
    async with SERVICES[name]() as service:
        program = [sys.executable, str(Path(__file__).with_name("sleeper.py"))]
        url = service.url(service.endpoint, "sleeping")
        sleeper = await asyncio.create_subprocess_exec(*program, url, str(_TTL), stdout=asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(scaled(20)):
                output = (await sleeper.communicate())[0].decode().split("\n")
        finally:
            if sleeper.returncode is None:
                sleeper.kill()
                await sleeper.wait()
    if output[0] != "held":
        pytest.skip(f"a time namespace cannot be made here: {output[0]}")
    assert output[1] == "True False"
    assert float(output[2]) < scaled(2)

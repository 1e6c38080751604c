"""Every example does what it says, on a real server."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from aiolibkv import open_store
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import EtcdServer
from aiolibkv.testing.servers.process import Port, http

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[EtcdServer]:
    async with EtcdServer() as running:
        yield running


@asynccontextmanager
async def example(name: str, *arguments: str) -> AsyncIterator[Process]:
    # Where whoever started the tests ignores the signal, a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(EXAMPLES / name), *arguments, stdout=PIPE, stderr=PIPE, stdin=DEVNULL
        )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), scaled(20))).decode().strip()


async def rest(process: Process) -> str:
    output, errors = await asyncio.wait_for(process.communicate(), scaled(30))
    assert (process.returncode, errors.decode()) == (0, "")
    return output.decode()


async def test_only_one_process_runs_the_job(server: EtcdServer) -> None:
    url = f"etcd://{server.endpoint}/jobs"
    async with (
        example("single_runner.py", url) as one,
        example("single_runner.py", url) as two,
        example("single_runner.py", url) as three,
    ):
        outputs = await asyncio.gather(rest(one), rest(two), rest(three))
    tokens = [int(output.split("fencing token ")[1].split()[0]) for output in outputs]
    assert len(set(tokens)) == 3
    assert all("is done" in output for output in outputs)


async def test_the_next_worker_is_elected_when_the_leader_dies(server: EtcdServer) -> None:
    url = f"etcd://{server.endpoint}/workers"
    async with example("elected_worker.py", url) as one:
        leader = f"node-{one.pid}"
        while await line(one) != f"{leader} works":
            pass
        async with example("elected_worker.py", url) as two:
            while await line(two) != f"the leader is {leader}":
                pass
            one.send_signal(signal.SIGINT)
            assert "stopped" in await rest(one)
            while await line(two) != f"node-{two.pid} works":
                pass


async def test_settings_reload(server: EtcdServer) -> None:
    url = f"etcd://{server.endpoint}/app"
    async with open_store(url) as store, example("reloading_config.py", url) as process:
        assert await line(process) == "settings: {}"
        await store.put("config/color", b"blue")
        assert await line(process) == "settings: {'color': 'blue'}"
        await store.put("config/stop", b"yes")
        assert await rest(process) == "settings: {'color': 'blue', 'stop': 'yes'}\n"


async def test_applications_find_each_other(server: EtcdServer) -> None:
    url = f"etcd://{server.endpoint}/shop"
    ports = [Port(), Port()]
    numbers = [port.number for port in ports]
    for port in ports:
        port.release()
    addresses = sorted(f"127.0.0.1:{number}" for number in numbers)

    async def seen(number: int) -> list[str]:
        try:
            _, body = await http(number, "GET", "/instances")
        except OSError:
            return []
        return sorted(json.loads(body))

    async def all_seen() -> bool:
        return await seen(numbers[0]) == await seen(numbers[1]) == addresses

    async with (
        example("discovery_app.py", url, str(numbers[0])),
        example("discovery_app.py", url, str(numbers[1])) as second,
    ):
        await eventually(all_seen, within=30, message="the applications find each other")
        second.send_signal(signal.SIGTERM)
        await asyncio.wait_for(second.wait(), scaled(10))
        assert await seen(numbers[0]) == [f"127.0.0.1:{numbers[0]}"]


async def test_the_demonstration_on_a_server(server: EtcdServer) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aiolibkv", "demo", "--url", f"etcd://{server.endpoint}"), stdout=PIPE, stderr=PIPE
    )
    output = await rest(process)
    for expected in ("Connected to EtcdStore", "lost: KeyModifiedError", "LockLostError", "keys deleted"):
        assert expected in output

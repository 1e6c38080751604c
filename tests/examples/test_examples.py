"""Every example does what it says, on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from aiolibkv import AsyncStore, KeyNotFoundError, open_store
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
async def program(*command: str, cwd: Path | None = None, store: str | None = None) -> AsyncIterator[Process]:
    environment = os.environ if store is None else os.environ | {"STORE": store}
    # Where whoever started the tests ignores the signal, a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *command),
            stdout=PIPE,
            stderr=PIPE,
            stdin=DEVNULL,
            cwd=cwd,
            env=environment,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        # The workers that uvicorn started too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


def example(name: str, *arguments: str, cwd: Path | None = None) -> AbstractAsyncContextManager[Process]:
    return program(str(EXAMPLES / name), *arguments, cwd=cwd)


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
        async with example("reloading_config.py", url, "color=blue") as other:
            assert await rest(other) == ""
        assert await line(process) == "settings: {'color': 'blue'}"
        await store.put("config/stop", b"yes")
        assert await rest(process) == "settings: {'color': 'blue', 'stop': 'yes'}\n"


async def test_without_a_url_the_processes_of_a_directory_share_a_store(tmp_path: Path) -> None:
    async with open_store(f"sqlite:///{tmp_path}/jobs.db") as store:
        lock = store.new_lock("nightly/lock")
        await lock.acquire()
        async with example("single_runner.py", cwd=tmp_path) as one, example("single_runner.py", cwd=tmp_path) as two:
            assert {(await line(one))[-5:], (await line(two))[-5:]} == {" turn"}
            one.send_signal(signal.SIGINT)
            assert await rest(one) == "stopped\n"
            await lock.release()
            assert "is done" in await rest(two)


@pytest.mark.parametrize("name", ["elected_worker.py", "reloading_config.py"])
async def test_an_interrupt_is_no_traceback(name: str, tmp_path: Path) -> None:
    async with example(name, cwd=tmp_path) as process:
        await line(process)
        process.send_signal(signal.SIGINT)
        assert (await rest(process)).endswith("stopped\n")


async def test_applications_find_each_other(server: EtcdServer) -> None:
    url = f"etcd://{server.endpoint}/shop"
    with Port() as one, Port() as two:
        numbers = [one, two]
        addresses = sorted(f"127.0.0.1:{number}" for number in numbers)

        async def seen(number: int) -> list[str]:
            try:
                _, body = await http(number, "GET", "/instances")
            except (OSError, EOFError):
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
    for expected in ("Connected to etcd", "lost: KeyModifiedError", "LockLostError", "keys deleted"):
        assert expected in output


@asynccontextmanager
async def service(framework: str, url: str, *, workers: int) -> AsyncIterator[tuple[int, list[Process]]]:
    async with AsyncExitStack() as stack:
        port = stack.enter_context(Port())
        commands: list[tuple[str, ...]]
        if framework == "aiohttp":
            commands = [(str(EXAMPLES / "aiohttp_service.py"), url, str(port))] * workers
        else:
            options = ("--port", str(port), "--log-level", "warning", "--workers", str(workers))
            commands = [("-m", "uvicorn", "--app-dir", str(EXAMPLES), *options, f"{framework}_service:app")]
        yield port, [await stack.enter_async_context(program(*command, store=url)) for command in commands]


async def ask(port: int, method: str, path: str) -> tuple[int, dict[str, object]]:
    try:
        status, body = await http(port, method, path)
    except (OSError, EOFError):
        return 0, {}
    return status, json.loads(body) if body.startswith("{") else {}


async def answers(port: int, method: str, path: str, name: str) -> list[object]:
    asked = await asyncio.gather(*(ask(port, method, path) for _ in range(6)))
    return [body.get(name) for _, body in asked]


async def leader(store: AsyncStore) -> str:
    try:
        return (await store.get("heartbeat")).value.decode()
    except KeyNotFoundError:
        return ""


@pytest.mark.parametrize("framework", ["fastapi", "starlette", "aiohttp"])
async def test_a_service_of_two_workers_goes_on_when_its_leader_is_killed(framework: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/service.db"
    workers: set[object] = set()

    async def both_answer() -> bool:
        assert [process.returncode for process in processes if process.returncode is not None] == []
        workers.update(await answers(port, "GET", "/", "worker"))
        return len(workers - {None}) == 2

    async def all_greet() -> bool:
        return set(await answers(port, "GET", "/", "greeting")) == {"bonjour"}

    async def another_leads() -> bool:
        return await leader(store) not in ("", first)

    async def it_goes_on() -> bool:
        now = await store.get("heartbeat")
        return now.value == beat.value and now.last_index > beat.last_index

    async def is_well() -> bool:
        return (await ask(port, "GET", "/health"))[0] == (await ask(port, "GET", "/ready"))[0] == 200

    async with open_store(url) as store, service(framework, url, workers=2) as (port, processes):
        await eventually(both_answer, within=20, message="both workers answer")
        await store.put("settings/greeting", b"bonjour")
        await eventually(all_greet, within=10, message="both workers have the setting")

        tokens = await answers(port, "POST", "/work", "token")
        assert None not in tokens
        assert len(set(tokens)) == 6

        await eventually(lambda: store.exists("heartbeat"), within=10, message="one leads")
        first = await leader(store)
        (report, *_) = await store.list("reports")
        os.kill(int(first.removeprefix("worker-")), signal.SIGKILL)
        await eventually(another_leads, within=10, message="another one leads")
        beat = await store.get("heartbeat")
        await eventually(it_goes_on, within=10, message="the other one goes on working")
        await eventually(is_well, within=10, message="the service is well")
        assert await store.get(report.key) == report

        alive = [process for process in processes if f"worker-{process.pid}" != first]
        for process in alive:
            process.send_signal(signal.SIGINT)
        for process in alive:
            _, errors = await asyncio.wait_for(process.communicate(), scaled(20))
            assert "Traceback" not in errors.decode()


async def test_services_tell_a_stale_mirror(server: EtcdServer) -> None:
    async def states(path: str) -> set[int]:
        return {status for status, _ in await asyncio.gather(*(ask(port, "GET", path) for port in ports))}

    async def all_ready() -> bool:
        return await states("/ready") == {200}

    async def none_ready() -> bool:
        return await states("/ready") == {503}

    async with AsyncExitStack() as stack:
        ports = []
        for framework in ("fastapi", "starlette", "aiohttp"):
            url = f"etcd://{server.endpoint}/{framework}"
            port, _ = await stack.enter_async_context(service(framework, url, workers=1))
            ports.append(port)
        await eventually(all_ready, within=20, message="the services are ready")
        await server.kill()
        try:
            await eventually(none_ready, within=20, message="the services tell that they are stale")
            assert await states("/health") == {200}
        finally:
            await server.start()
        await eventually(all_ready, within=30, message="the services are ready again")
        assert await states("/health") == {200}

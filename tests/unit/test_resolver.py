"""Look-ups of names: shared, bounded, in threads of their own."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from aiolibkv import NotReachableError, StoreClosedError
from aiolibkv.store.endpoints import Endpoint
from aiolibkv.store.resolver import Address, Resolver
from aiolibkv.testing.scale import scaled

SERVER = Endpoint("kv.example", 7)
OTHER = Endpoint("other.example", 7)


def address(ip: str, port: int = 7) -> Address:
    return Address(socket.AF_INET, (ip, port))


class System:
    """Stands in for getaddrinfo: it answers, fails, or waits until it is let go on."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {"kv.example": ["10.0.0.1", "10.0.0.2"], "other.example": ["10.0.0.9"]}
        self.asked: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.asking = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        self.threads.add(threading.current_thread())
        self.asking.set()
        if host == "kv.example":
            self.go_on.wait()
        if host not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in self.addresses[host]]

    async def stalled(self) -> None:
        while not self.asking.is_set():
            await asyncio.sleep(0.001)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    made = System()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    yield made
    made.go_on.set()


@pytest.mark.asyncio
async def test_names_are_looked_up_at_each_call_in_a_thread_that_ends(system: System) -> None:
    resolver = Resolver()
    assert await resolver.addresses(SERVER, 5) == [address("10.0.0.1"), address("10.0.0.2")]
    system.addresses["kv.example"] = ["10.0.0.3"]
    assert await resolver.addresses(SERVER, 5) == [address("10.0.0.3")]
    assert len(system.asked) == len(system.threads) == 2
    assert threading.main_thread() not in system.threads
    for thread in system.threads:
        thread.join(scaled(5))
        assert not thread.is_alive()
    assert asyncio.get_running_loop()._default_executor is None  # type: ignore[attr-defined]


@pytest.mark.asyncio
async def test_literal_addresses_need_no_look_up(system: System) -> None:
    resolver = Resolver()
    assert await resolver.addresses(Endpoint("127.0.0.1", 1), 5) == (Address(socket.AF_INET, ("127.0.0.1", 1)),)
    assert await resolver.addresses(Endpoint("::1", 1), 5) == (Address(socket.AF_INET6, ("::1", 1, 0, 0)),)
    assert await resolver.addresses(Endpoint("fe80::1%1", 1), 5) == (Address(socket.AF_INET6, ("fe80::1", 1, 0, 1)),)
    (socket_of_a_path,) = await resolver.addresses(Endpoint("/run/kv.sock", 0), 5)
    assert socket_of_a_path == Address(socket.AF_UNIX, "/run/kv.sock")
    assert (socket_of_a_path.host, address("10.0.0.1").host) == ("/run/kv.sock", "10.0.0.1")
    assert system.asked == []


@pytest.mark.asyncio
@pytest.mark.usefixtures("system")
async def test_an_address_that_failed_comes_last() -> None:
    resolver = Resolver()
    first, second = await resolver.addresses(SERVER, 5)
    resolver.failed(SERVER, first)
    assert await resolver.addresses(SERVER, 5) == [second, first]
    resolver.failed(SERVER, second)
    assert await resolver.addresses(SERVER, 5) == [first, second]
    resolver.failed(OTHER, first)
    assert await resolver.addresses(SERVER, 5) == [first, second]


@pytest.mark.asyncio
async def test_failures_of_addresses_that_are_gone_are_forgotten(system: System) -> None:
    resolver = Resolver()
    for number in range(100):
        system.addresses["kv.example"] = [f"10.0.1.{number}"]
        for found in await resolver.addresses(SERVER, 5):
            resolver.failed(SERVER, found)
    assert len(resolver._hosts[SERVER].failed) <= 2


@pytest.mark.asyncio
async def test_callers_share_a_look_up_and_a_cancelled_one_leaves_nothing(system: System) -> None:
    resolver = Resolver()
    system.go_on.clear()
    callers = [asyncio.create_task(resolver.addresses(SERVER, 30)) for _ in range(20)]
    await system.stalled()
    callers[0].cancel()
    await asyncio.wait(callers[:1])
    assert callers[0].cancelled()
    system.go_on.set()
    for answers in await asyncio.gather(*callers[1:]):
        assert answers == [address("10.0.0.1"), address("10.0.0.2")]
    assert system.asked == ["kv.example"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.asyncio
async def test_a_look_up_that_stalls_holds_up_no_other_name(system: System) -> None:
    resolver = Resolver()
    system.go_on.clear()
    mute = asyncio.create_task(resolver.addresses(SERVER, 0.01))
    await system.stalled()
    assert await resolver.addresses(OTHER, scaled(5)) == [address("10.0.0.9")]
    with pytest.raises(
        NotReachableError, match=r"kv\.example could not be looked up: no answer within 0\.01 s"
    ) as caught:
        await mute
    assert caught.value.endpoint == "kv.example:7"


@pytest.mark.asyncio
async def test_the_last_good_addresses_serve_while_a_look_up_fails_or_stalls(system: System) -> None:
    resolver = Resolver()
    loop = asyncio.get_running_loop()
    known = await resolver.addresses(SERVER, 5)
    del system.addresses["kv.example"]
    assert await resolver.addresses(SERVER, 5) == known
    system.go_on.clear()
    assert await resolver.addresses(SERVER, 0.2) == known
    # A stalled look-up was waited for once; further attempts do not wait for it again.
    began = loop.time()
    for _ in range(50):
        assert await resolver.addresses(SERVER, 60) == known
    assert loop.time() - began < scaled(10)
    assert len(system.asked) == 3
    system.addresses["kv.example"] = ["10.0.0.4"]
    system.go_on.set()
    async with asyncio.timeout(scaled(5)):
        while await resolver.addresses(SERVER, 5) != [address("10.0.0.4")]:
            await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_a_name_that_is_none_tells_why(system: System) -> None:
    with pytest.raises(NotReachableError, match=r"no\.example could not be looked up: .*Name or service") as caught:
        await Resolver().addresses(Endpoint("no.example", 7), 5)
    assert isinstance(caught.value.__cause__, socket.gaierror)
    system.addresses["none.example"] = []
    with pytest.raises(NotReachableError, match="it has no address"):
        await Resolver().addresses(Endpoint("none.example", 7), 5)


@pytest.mark.asyncio
@pytest.mark.usefixtures("system")
async def test_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    resolver = Resolver()
    known = await resolver.addresses(SERVER, 5)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert await resolver.addresses(SERVER, 5) == known
    with pytest.raises(NotReachableError, match="can't start new thread"):
        await resolver.addresses(OTHER, 5)


@pytest.mark.asyncio
async def test_closing_ends_the_waiting(system: System) -> None:
    resolver = Resolver()
    system.go_on.clear()
    waiting = asyncio.create_task(resolver.addresses(SERVER, 60))
    await system.stalled()
    resolver.close()
    with pytest.raises(StoreClosedError):
        await waiting
    # As a store does that could not connect and is entered again.
    again = asyncio.create_task(resolver.addresses(SERVER, 60))
    system.go_on.set()
    assert await again == [address("10.0.0.1"), address("10.0.0.2")]
    resolver.close()


@pytest.mark.asyncio
async def test_names_that_there_are_and_names_that_there_are_not() -> None:
    found = await Resolver().addresses(Endpoint("localhost", 7), scaled(5))
    assert {each.host for each in found} <= {"127.0.0.1", "::1"}
    assert {each.sockaddr[1] for each in found} == {7}
    for name in ("aiolibkv.invalid", "a" * 300, "\udc80"):
        with pytest.raises(NotReachableError, match="could not be looked up"):
            await Resolver().addresses(Endpoint(name, 7), scaled(5))


@pytest.mark.parametrize("address", [Address(socket.AF_INET, ("127.0.0.1", 1)), Address(socket.AF_UNIX, "/socket")])
def test_a_socket_sends_what_is_small_at_once(address: Address) -> None:
    with address.make_socket() as made:
        assert not made.getblocking()
        assert address.family == socket.AF_UNIX or made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_stalled_look_up_keeps_neither_run_nor_the_process_from_ending() -> None:
    code = """
import asyncio, socket, threading, time
from aiolibkv.store.endpoints import Endpoint
from aiolibkv.store.resolver import Resolver
socket.getaddrinfo = lambda *_, **__: time.sleep({stall})
async def main():
    resolver = Resolver()
    try:
        await resolver.addresses(Endpoint("kv.example", 7), 0.01)
    except ConnectionError:
        resolver.close()
asyncio.run(main())
{then}
"""
    for stall, then in (("3600", ""), ("0.05", "[each.join() for each in threading.enumerate() if each.daemon]")):
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", code.format(stall=stall, then=then)],
            capture_output=True,
            text=True,
            timeout=scaled(60),
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

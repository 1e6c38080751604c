"""Reads of single keys that begin together: how many requests they are, and that none is at another one's mercy."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aiolibkv import AccessDeniedError, Config, KeyNotFoundError, KVPair
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually
from aiolibkv.testing.servers import EtcdServer
from stores import EtcdStore

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]

KEYS = [f"open/{number:02}" for number in range(30)]
MOST_OPERATIONS = 31


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[EtcdServer]:
    extra = [f"--max-txn-ops={MOST_OPERATIONS}"]
    async with EtcdServer(auth=("root", "secret"), extra_args=extra) as running:
        await running.add_user("reader", "reading", prefix="open/", access="read")
        async with EtcdStore([running.endpoint], Config(username="root", password="secret")) as root:
            for key in [*KEYS, "closed"]:
                await root.put(key, key.encode())
        yield running


@pytest_asyncio.fixture
async def proxy(server: EtcdServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(server.host, server.port, protocol="http2") as running:
        yield running


@pytest_asyncio.fixture
async def store(proxy: FaultProxy) -> AsyncIterator[EtcdStore]:
    """A store of a user who may read what is below "open", and that gathers reads."""
    async with EtcdStore([proxy.endpoint], Config(username="reader", password="reading")) as store:
        await _read(store)
        yield store


async def _read(store: EtcdStore, *others: str) -> list[KVPair | BaseException]:
    return await asyncio.gather(*(store.get(key) for key in [*KEYS, *others]), return_exceptions=True)


def _are_right(pairs: list[KVPair | BaseException]) -> bool:
    found = [(pair.key, pair.value) for pair in pairs if isinstance(pair, KVPair)]
    return found == [(key, key.encode()) for key in KEYS]


async def test_reads_that_begin_together_are_one_request(store: EtcdStore, proxy: FaultProxy) -> None:
    with proxy.counting() as counts:
        *pairs, missing = await _read(store, "open/none")
        assert await asyncio.gather(*map(store.exists, [*KEYS, "open/none"])) == [*[True] * len(KEYS), False]
    assert _are_right(pairs)
    assert isinstance(missing, KeyNotFoundError)
    assert missing.key == "open/none"
    assert counts.requests == 2


async def test_a_key_that_may_not_be_read_denies_no_other(store: EtcdStore) -> None:
    *pairs, denied = await _read(store, "closed")
    assert _are_right(pairs)
    assert isinstance(denied, AccessDeniedError)
    assert denied.key == "closed"


async def test_more_than_a_server_takes_in_one_request(store: EtcdStore) -> None:
    others = [f"open/none/{number}" for number in range(MOST_OPERATIONS)]
    *pairs, _ = await _read(store, *others)
    assert _are_right(pairs[: len(KEYS)])
    assert all(isinstance(missing, KeyNotFoundError) for missing in pairs[len(KEYS) :])


async def test_large_values_are_read_one_by_one(server: EtcdServer, store: EtcdStore, proxy: FaultProxy) -> None:
    """So that what is small does not wait for them."""
    async with EtcdStore([server.endpoint], Config(username="root", password="secret")) as root:
        await root.put("open/large", bytes(500_000))
    await _read(store, "open/large")
    with proxy.counting() as counts:
        assert _are_right(await _read(store))
    assert counts.requests == len(KEYS)


async def test_large_values_are_read_together_ever_less_often(
    server: EtcdServer, store: EtcdStore, proxy: FaultProxy
) -> None:
    """The server makes an answer as a whole, in its memory."""
    async with EtcdStore([server.endpoint], Config(username="root", password="secret")) as root:
        await root.put("open/large", bytes(500_000))
    clock = asyncio.get_running_loop().time

    async def gathers() -> bool:
        with proxy.counting() as counts:
            await _read(store)
        return counts.requests == 1

    pauses = []
    for _ in range(2):
        began = clock()
        await _read(store, "open/large")
        await eventually(gathers, within=10, message="reads are gathered again")
        pauses.append(clock() - began)
    assert pauses[0] >= 1
    assert pauses[1] >= 2


async def test_large_answers_that_come_together_are_one_reason(server: EtcdServer) -> None:
    """They do not make the time without gathering longer."""
    clock = asyncio.get_running_loop().time
    keys = [f"large/{number}" for number in range(4)]
    async with EtcdStore([server.endpoint], Config(username="root", password="secret")) as root:
        for key in keys:
            await root.put(key, bytes(300_000))
        await asyncio.gather(*(root.get(key) for key in keys * 40))
        assert root.driver._gathering._pause_ends - clock() <= 1


async def test_a_cancelled_read_takes_no_other_with_it(store: EtcdStore, proxy: FaultProxy) -> None:
    """Neither before they have left nor while they are under way."""
    requests = proxy.requests
    proxy.blackhole(to_server=False)
    reading = [asyncio.ensure_future(store.get(key)) for key in [*KEYS, *KEYS[:2]]]
    *others, before, under_way = reading
    await asyncio.sleep(0)
    before.cancel()
    await eventually(lambda: proxy.requests > requests, within=5, message="they have left")
    under_way.cancel()
    proxy.heal()
    assert _are_right(await asyncio.gather(*others))
    assert [task.cancelled() for task in (before, under_way)] == [True, True]


async def test_reads_whose_answer_is_lost_are_made_again(store: EtcdStore, proxy: FaultProxy) -> None:
    proxy.cut_answers(2)
    assert _are_right(await _read(store))
    assert proxy.answers_cut == 2

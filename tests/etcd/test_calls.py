"""Calls against real servers: round trips, races, lost answers, large lists."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from aiolibkv import (
    AsyncStore,
    Config,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    KVPair,
    LockLostError,
    NotReachableError,
    Put,
    StoreError,
)
from aiolibkv.backends.etcd import reading
from aiolibkv.events import Connected, Disconnected, Event
from aiolibkv.store import Call, Guard, LeaseLostError, Lifetime, OwnCall, Removed
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import EtcdServer
from stores import EtcdStore

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[EtcdServer]:
    async with EtcdServer() as running:
        yield running


@pytest_asyncio.fixture
async def proxy(server: EtcdServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(server.host, server.port, protocol="http2") as running:
        yield running


@pytest_asyncio.fixture
async def direct(server: EtcdServer, request: pytest.FixtureRequest) -> AsyncIterator[EtcdStore]:
    """A store below a prefix of the test's own."""
    async with EtcdStore([server.endpoint], Config(prefix=_prefix(request), request_timeout=scaled(15))) as store:
        yield store


@pytest_asyncio.fixture
async def store(proxy: FaultProxy, request: pytest.FixtureRequest) -> AsyncIterator[EtcdStore]:
    """A store of the same prefix that goes through the proxy."""
    async with EtcdStore([proxy.endpoint], Config(prefix=_prefix(request), request_timeout=scaled(15))) as store:
        yield store


def _prefix(request: pytest.FixtureRequest) -> str:
    return f"calls/{request.node.name.replace('[', '-').replace(']', '')}"


Doing = Callable[[AsyncStore, KVPair], Awaitable[object]]

WRITES: dict[str, Doing] = {
    "put": lambda store, _: store.put("key", b"new"),
    "put with ttl": lambda store, _: store.put("key", b"new", ttl=100),
    "put and keep alive": lambda store, _: store.put("key", b"new", ttl=100, keep_alive=True),
    "create": lambda store, _: store.atomic_put("new", b"new", None),
    "atomic_put": lambda store, pair: store.atomic_put("key", b"new", pair),
    "delete": lambda store, _: store.delete("key"),
    "atomic_delete": lambda store, pair: store.atomic_delete("key", pair),
    "delete_tree": lambda store, _: store.delete_tree(""),
    "commit": lambda store, pair: store.commit(Put("key", b"new", pair), Put("new", b"new", None)),
}
READS: dict[str, Doing] = {
    "get": lambda store, _: store.get("key"),
    "get inconsistently": lambda store, _: store.get("key", consistent=False),
    "exists": lambda store, _: store.exists("key"),
    "list": lambda store, _: store.list(""),
    "list inconsistently": lambda store, _: store.list("", consistent=False),
    "get_many": lambda store, _: store.get_many(["key", *(f"none/{number}" for number in range(99))]),
    "get_many inconsistently": lambda store, _: store.get_many(["key", "none"], consistent=False),
    "keys": lambda store, _: store.keys(""),
    "children": lambda store, _: store.children(""),
    "scan": lambda store, _: anext(store.scan("")),
    "first item of a watch": lambda store, _: anext(store.watch("key")),
}


@pytest.mark.parametrize("name", [*WRITES, *READS])
async def test_round_trips(store: EtcdStore, proxy: FaultProxy, name: str) -> None:
    pair = await store.put("key", b"value")
    await store.put("alive", b"", ttl=100, keep_alive=True)
    with proxy.counting() as counts:
        await (WRITES | READS)[name](store, pair)
    assert counts.round_trips == (2 if name == "put with ttl" else 1)
    assert counts.connections == 0


async def test_round_trips_of_a_lock(store: EtcdStore, proxy: FaultProxy) -> None:
    """The lease is granted once, and kept for whoever acquires a lock of the same ttl."""
    lock = store.new_lock("lock", ttl=100)
    for expected in (2, 1, 1):
        with proxy.counting() as counts:
            await lock.acquire()
        assert counts.round_trips == expected
        # The holder's watch begins.
        await _until_watched(store)
        with proxy.counting() as counts:
            await lock.release()
        assert counts.round_trips == 1


async def _until_watched(store: EtcdStore) -> None:
    def is_watched() -> bool:
        stream = store.driver._watches._stream
        return stream is not None and bool(stream._created)

    await eventually(is_watched, within=5, message="the holder watches its key")


async def test_several_keys_are_of_one_instant(store: EtcdStore, direct: EtcdStore, proxy: FaultProxy) -> None:
    """Also when they take several transactions, between which others write."""
    keys = [f"key/{number:03}" for number in range(300)]

    async def write_all(value: bytes) -> None:
        for start in (200, 100, 0):
            await direct.commit(*(Put(key, value) for key in keys[start : start + 100]))

    await write_all(b"old")
    proxy.delay(0.05)
    with proxy.counting() as counts:
        reading_ = asyncio.ensure_future(store.get_many(keys))
        while not counts.answered_bytes:
            await asyncio.sleep(0)
        await write_all(b"new")
        found = await reading_
    assert counts.round_trips == 3
    assert [(key, pair.value) for key, pair in found.items()] == [(key, b"old") for key in keys]


async def test_children_with_many_keys_below(store: EtcdStore, direct: EtcdStore, proxy: FaultProxy) -> None:
    for child in "abc":
        await asyncio.gather(*(direct.commit(*_puts(f"dir/{child}", start, 100)) for start in range(0, 3000, 100)))
    with proxy.counting() as counts:
        assert await store.children("dir") == ["a/", "b/", "c/"]
    assert counts.round_trips == 4
    # A key is sent in some 50 bytes.
    assert counts.answered_bytes < 25_000
    await asyncio.gather(*(direct.commit(*_puts(f"many/{child:02}", 0, 100)) for child in range(60)))
    with proxy.counting() as counts:
        assert len(await store.children("many")) == 60
    # The server counts all that follows each time, so that to read more of it takes less than to pass over each child.
    assert counts.round_trips < 45
    await direct.commit(*(Put(f"flat/{number:03}", b"") for number in range(100)))
    with proxy.counting() as counts:
        assert len(await store.children("flat")) == 100
        assert len(await store.children("")) == 3
    assert counts.round_trips == 1 + 4


async def test_keys_are_read_without_values(store: EtcdStore, direct: EtcdStore, proxy: FaultProxy) -> None:
    await asyncio.gather(*(direct.put(f"dir/{number}", bytes(100_000)) for number in range(20)))
    with proxy.counting() as counts:
        assert len(await store.keys("dir")) == 20
    assert counts.answered_bytes < 5_000


async def test_a_scan_reads_a_page_in_one_round_trip(store: EtcdStore, direct: EtcdStore, proxy: FaultProxy) -> None:
    await asyncio.gather(*(direct.commit(*_puts("dir", start, 100)) for start in range(0, 2500, 100)))
    for page, expected in ((1000, 3), (100, 25), (2500, 1)):
        with proxy.counting() as counts:
            assert len([pair async for pair in store.scan("dir", page=page)]) == 2500
        assert counts.round_trips == expected


async def test_a_scan_past_keys_that_no_path_names(direct: EtcdStore, server: EtcdServer) -> None:
    prefix = direct.driver.config.prefix
    for number in range(5):
        await server.ctl("put", f"{prefix}/a//{number}", "x")
        await server.ctl("put", f"{prefix}/z//{number}", "x")
    await direct.put("b/c", b"")
    await direct.put("a/x", b"")
    assert [pair.key async for pair in direct.scan("", page=2)] == ["a/x", "b/c"]
    assert await direct.children("") == ["a/", "b/"]


async def test_a_key_of_the_reserved_name_that_others_wrote_is_not_seen(direct: EtcdStore, server: EtcdServer) -> None:
    prefix = direct.driver.config.prefix
    await server.ctl("put", f"{prefix}/.aiolibkv", "theirs")
    pair = await direct.put("key", b"")
    assert await direct.list("") == [pair]
    assert await direct.keys("") == ["key"]
    assert await direct.children("") == ["key"]
    assert [each async for each in direct.scan("")] == [pair]
    async with direct.watch_tree("") as watch:
        assert list(await anext(watch)) == [pair]
        await server.ctl("put", f"{prefix}/.aiolibkv", "theirs again")
        pair = await direct.put("key", b"again")
        assert list(await anext(watch)) == [pair]


def _puts(directory: str, start: int, count: int) -> list[Put]:
    return [Put(f"{directory}/{number:06}", b"") for number in range(start, start + count)]


async def test_a_lock_is_released_though_the_answer_is_lost(
    store: EtcdStore, direct: EtcdStore, proxy: FaultProxy
) -> None:
    lock = store.new_lock("lock", ttl=100)
    held = await lock.acquire()
    await _until_watched(store)
    proxy.cut_answers(1, matching=lambda sent: b"lock" in sent)
    await lock.release()
    assert proxy.answers_cut == 1
    async with asyncio.timeout(scaled(5)), direct.new_lock("lock", ttl=100) as next_held:
        assert next_held.fencing_token > held.fencing_token


async def test_a_release_frees_one_acquisition(direct: EtcdStore) -> None:
    driver, root = direct.driver, direct.driver.config.prefix
    lock, place = f"{root}/lock", f"{driver.hidden}/waiters/place"
    lease = driver.new_lease(Lifetime(30, keep_alive=True))
    await driver.grant(_call(), lease)
    first = await driver.acquire(_call(), lock, b"", lease, line=None)
    await driver.release(_call(), lock, first.last_index, None, lease)
    with pytest.raises(KeyNotFoundError):
        await driver.release(_call(), lock, first.last_index, None, lease)
    await driver.put(_call(), place, b"", expected=0, lease=lease, guard=None)
    second = await driver.acquire(_call(), lock, b"", lease, line=None)
    with pytest.raises(KeyModifiedError):
        await driver.release(_call(), lock, first.last_index, place, lease)
    assert await driver.get_many(_call(), [lock, place], consistent=True) == [
        KVPair(lock, b"", second.last_index),
        KVPair(place, b"", second.last_index - 1),
    ]
    await driver.release(_call(), lock, second.last_index, place, lease)
    assert await driver.get_many(_call(), [lock, place], consistent=True) == [None, None]
    assert await driver.renew(_call(), lease)
    await driver.revoke(_call(), lease)


async def test_who_is_ahead_in_line(direct: EtcdStore) -> None:
    driver = direct.driver
    line = f"{driver.hidden}/waiters/line"
    lease = driver.new_lease(Lifetime(30, keep_alive=True))
    await driver.grant(_call(), lease)
    places = [f"{line}/{name}" for name in "cab"]
    for place in places:
        await driver.put(_call(), place, b"", expected=0, lease=lease, guard=None)
    assert [await driver.place_ahead(_call(), line, place) for place in places] == [None, *places[:2]]
    await driver.delete(_call(), places[1], expected=None, guard=None)
    assert await driver.place_ahead(_call(), line, places[2]) == places[0]
    with pytest.raises(LeaseLostError):
        await driver.place_ahead(_call(), line, places[1])
    await driver.revoke(_call(), lease)


async def test_connections_are_told_once(proxy: FaultProxy, request: pytest.FixtureRequest) -> None:
    told: list[tuple[type[object], str]] = []

    def note(event: Event) -> None:
        if isinstance(event, Connected | Disconnected):
            told.append((type(event), event.endpoint))

    async with EtcdStore([proxy.endpoint], Config(prefix=_prefix(request), listener=note)) as store:
        await asyncio.gather(*(store.put(f"key/{number}", b"") for number in range(10)))
        proxy.reset()
        await asyncio.gather(*(store.list("key") for _ in range(10)))
    assert told == [(Connected, proxy.endpoint), (Disconnected, proxy.endpoint)] * 2


async def test_nothing_is_sent_while_nothing_waits(store: EtcdStore, proxy: FaultProxy) -> None:
    await store.put("key", b"")
    with proxy.counting() as counts:
        await asyncio.sleep(4)
    assert counts.requests == 0


async def test_one_of_twenty_writers_of_the_same_value_wins(direct: EtcdStore) -> None:
    for round_ in range(20):
        previous = await direct.put("key", b"same")
        outcomes = await asyncio.gather(
            *(direct.atomic_put("key", b"same", previous) for _ in range(20)), return_exceptions=True
        )
        won = [outcome for outcome in outcomes if isinstance(outcome, KVPair)]
        lost = [outcome for outcome in outcomes if isinstance(outcome, KeyModifiedError)]
        assert (len(won), len(lost)) == (1, 19), round_
        assert await direct.get("key") == won[0]
        assert not any(error.maybe_applied for error in lost)


@pytest.mark.parametrize("name", WRITES)
async def test_a_write_whose_answer_is_lost_is_reported_and_not_repeated(
    store: EtcdStore, direct: EtcdStore, proxy: FaultProxy, name: str
) -> None:
    pair = await direct.put("key", b"value")
    # The leases that keep-alive keys share are granted before the answer of the write itself is cut.
    await store.put("alive", b"", ttl=100, keep_alive=True)
    written = _is_write(direct, b"new" if "put" in name or name == "create" else b"")
    watch = direct.watch_tree("")
    first = await anext(watch)
    proxy.cut_answers(1, matching=written)
    with pytest.raises(NotReachableError) as caught:
        await WRITES[name](store, pair)
    assert proxy.answers_cut == 1
    assert caught.value.maybe_applied is True
    # It was applied, and once: whatever follows is the next change.
    seen = await anext(watch)
    assert seen.changes
    assert (await direct.put("marker", b"")).last_index == seen.last_index + 1
    assert first.last_index < seen.last_index
    await watch.aclose()


def _is_write(store: EtcdStore, value: bytes) -> Callable[[bytes], bool]:
    prefix = store.driver.config.prefix.encode()

    def matches(sent: bytes) -> bool:
        return prefix in sent and value in sent

    return matches


@pytest.mark.parametrize("name", WRITES)
async def test_a_write_that_certainly_was_not_sent_is_retried(store: EtcdStore, proxy: FaultProxy, name: str) -> None:
    pair = await store.put("key", b"value")
    proxy.refuse()
    proxy.reset()
    # Until somebody notices, a request counts as sent; from then on all attempts find nobody listening.
    reading_ = asyncio.ensure_future(store.get("key"))
    await eventually(lambda: store.driver._connection.server is None, within=5, message="the loss is noticed")
    writing = asyncio.ensure_future(WRITES[name](store, pair))
    await asyncio.sleep(0.3)
    assert not writing.done()
    proxy.accept()
    async with asyncio.timeout(scaled(5)):
        await asyncio.wait([writing, reading_])
    await writing
    assert reading_.exception() is None or isinstance(reading_.exception(), KeyNotFoundError)


async def test_a_write_to_a_refused_port_was_certainly_not_applied(
    proxy: FaultProxy, request: pytest.FixtureRequest
) -> None:
    config = Config(prefix=_prefix(request), request_timeout=scaled(0.5))
    async with EtcdStore([proxy.endpoint], config) as store:
        await store.put("key", b"value")
        proxy.refuse()
        proxy.reset()
        with pytest.raises(NotReachableError):
            await store.get("key")
        with pytest.raises(NotReachableError) as caught:
            await store.put("key", b"new")
        assert caught.value.maybe_applied is False
        assert proxy.endpoint in str(caught.value)


async def test_a_read_is_repeated_when_its_answer_is_lost(store: EtcdStore, proxy: FaultProxy) -> None:
    pair = await store.put("key", b"value")
    proxy.cut_answers(3)
    assert await store.get("key") == pair
    assert proxy.answers_cut == 3


@pytest.mark.parametrize("name", ["put", "get"])
async def test_a_task_that_was_cancelled_while_it_ran(store: EtcdStore, proxy: FaultProxy, name: str) -> None:
    """As by Ctrl-C: it hears of it at its next await, and nobody else does."""
    pair = await store.put("key", b"value")

    async def call() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await (WRITES | READS)[name](store, pair)

    calling = asyncio.ensure_future(call())
    others = [asyncio.ensure_future(store.exists("key")) for _ in range(5)]
    await asyncio.wait([calling])
    assert calling.cancelled()
    assert await asyncio.gather(*others) == [True] * 5
    assert proxy.connections_total == 1


async def test_when_a_dead_holders_lock_is_free(direct: EtcdStore) -> None:
    async with direct.new_lock("lock", ttl=10) as held:
        assert (held.ttl, held.freed_within) == (10, 11)


async def test_refusals_certainly_changed_nothing(direct: EtcdStore) -> None:
    pair = await direct.put("key", b"")
    await direct.put("key", b"")
    path, old = f"{direct.driver.config.prefix}/key", pair.last_index
    guard = Guard(path, old)

    async def refused(error: type[StoreError], doing: Callable[[Call], Awaitable[object]]) -> None:
        call = _call()
        with pytest.raises(error):
            await doing(call)
        assert not call.maybe_applied

    await refused(
        KeyModifiedError, lambda call: direct.driver.put(call, path, b"", expected=old, lease=None, guard=None)
    )
    await refused(KeyExistsError, lambda call: direct.driver.put(call, path, b"", expected=0, lease=None, guard=None))
    await refused(
        LockLostError, lambda call: direct.driver.put(call, path, b"", expected=None, lease=None, guard=guard)
    )
    await refused(KeyModifiedError, lambda call: direct.driver.delete(call, path, expected=old, guard=None))
    await refused(KeyNotFoundError, lambda call: direct.driver.delete(call, path + "/no", expected=old, guard=None))
    await refused(KeyNotFoundError, lambda call: direct.driver.delete(call, path + "/no", expected=None, guard=None))
    await refused(LockLostError, lambda call: direct.driver.delete(call, path, expected=None, guard=guard))
    call = _call()
    assert await direct.driver.delete_tree(call, path + "/no", guard=None) == Removed(0, exists=False)
    assert not call.maybe_applied
    await refused(LockLostError, lambda call: direct.driver.delete_tree(call, path, guard=guard))


async def test_a_list_of_many_small_pairs_has_few_pages(store: EtcdStore, direct: EtcdStore, proxy: FaultProxy) -> None:
    await asyncio.gather(*(direct.commit(*_puts("dir", start, 100)) for start in range(0, 10_000, 100)))
    expected = [f"dir/{number:06}" for number in range(10_000)]
    with proxy.counting() as counts:
        assert [pair.key for pair in await store.list("dir")] == expected
        assert await store.keys("dir") == expected
    # The server counts all that follows for each page.
    assert counts.round_trips == 2 * 4


async def test_a_large_list_is_read_in_pages_of_one_revision(
    direct: EtcdStore, server: EtcdServer, request: pytest.FixtureRequest
) -> None:
    count, value = 5000, bytes(6000)
    assert count > 2 * reading._PAGE_KEYS
    await asyncio.gather(*(_put_many(direct, range(start, count, 50), value) for start in range(50)))
    before = [pair.key for pair in await direct.list("many")]
    assert before == sorted(f"many/{number:05}" for number in range(count))

    writing = True

    async def change() -> None:
        number = 0
        while writing:
            # The last goes and the first comes, so that a mixture of revisions has one too many or too few.
            await direct.delete(f"many/{count - 1 - number:05}")
            await direct.put(f"many/!{number:05}", value)
            number += 1

    changing = asyncio.create_task(change())
    async with EtcdStore([server.endpoint], Config(prefix=_prefix(request))) as reader:
        for _ in range(3):
            assert len(await reader.list("many")) in (count, count - 1)
    writing = False
    await changing


async def _put_many(store: AsyncStore, numbers: range, value: bytes) -> None:
    for number in numbers:
        await store.put(f"many/{number:05}", value)


async def test_values_of_the_largest_size_are_listed(store: EtcdStore, direct: EtcdStore, proxy: FaultProxy) -> None:
    value = bytes(direct.capabilities.max_value_bytes)
    for number in range(70):
        await direct.put(f"large/{number:02}", value)
    # 70 MiB do not fit into one message of 64 MiB.
    expected = [(f"large/{number:02}", len(value)) for number in range(70)]
    assert [(pair.key, len(pair.value)) for pair in await direct.list("large")] == expected
    found = await direct.get_many([*(key for key, _ in expected), "none"])
    assert [(key, len(pair.value)) for key, pair in found.items()] == expected
    with proxy.counting() as counts:
        assert [(pair.key, len(pair.value)) async for pair in store.scan("large")] == expected
    # Only for the first page is more asked for than can be had.
    assert counts.round_trips < 10
    assert await direct.delete_tree("large") == 70


async def test_keys_that_no_path_names_are_not_seen(direct: EtcdStore, server: EtcdServer) -> None:
    prefix = direct.driver.config.prefix
    await direct.put("seen", b"")
    for foreign in (f"{prefix}//a", f"{prefix}/b/", f"{prefix}/c\udcff"):
        await server.ctl("put", foreign, "x")
    watch = direct.watch_tree("")
    assert [pair.key for pair in await anext(watch)] == ["seen"]
    assert [pair.key for pair in await direct.list("")] == ["seen"]
    await server.ctl("put", f"{prefix}//a", "y")
    await direct.put("seen too", b"")
    assert [pair.key for pair in await anext(watch)] == ["seen", "seen too"]


async def test_a_lost_grant_is_found_again_by_its_identifier(direct: EtcdStore) -> None:
    call, lease = _call(), direct.driver.new_lease(Lifetime(30, keep_alive=True))
    await direct.driver.grant(call, lease)
    lease.ttl = 30
    await direct.driver.grant(call, lease)
    assert lease.ttl == 30
    assert await direct.driver.renew(call, lease)
    await direct.driver.revoke(call, lease)
    await direct.driver.revoke(call, lease)
    assert not await direct.driver.renew(call, lease)


async def test_a_grant_that_is_cancelled_leaves_no_lease(direct: EtcdStore, server: EtcdServer) -> None:
    # The server may take a grant and the revocation that follows it at once in either order.
    async def acquire(suspensions: int) -> None:
        lock = direct.new_lock("lock", ttl=600)
        acquiring = asyncio.ensure_future(lock.try_acquire())
        for _ in range(suspensions):
            await asyncio.sleep(0)
        acquiring.cancel()
        await asyncio.wait([acquiring])
        if not acquiring.cancelled():
            await lock.release()

    async def leases() -> set[str]:
        return set((await server.ctl("lease", "list")).split()[3:])

    before = await leases()
    for number in range(200):
        await acquire(3 + number % 10)

    async def none_is_left() -> bool:
        return len(await leases() - before) <= direct._sessions.idle

    await eventually(none_is_left, within=5, message="no lease is left")


async def test_a_put_under_an_unknown_lease_writes_nothing(direct: EtcdStore) -> None:
    lease = direct.driver.new_lease(Lifetime(30, keep_alive=True))
    for expected in (None, 0):
        call = _call()
        with pytest.raises(LeaseLostError):
            await direct.driver.put(
                call, f"{direct.driver.config.prefix}/key", b"", expected=expected, lease=lease, guard=None
            )
        assert not call.maybe_applied
    assert not await direct.exists("key")


async def test_the_longest_ttl(direct: EtcdStore) -> None:
    await direct.put("key", b"", ttl=direct.driver.longest_ttl)
    with pytest.raises(ValueError, match="ttl"):
        await direct.put("key", b"", ttl=direct.driver.longest_ttl + 1)


def _call() -> Call:
    return OwnCall()

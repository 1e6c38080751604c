"""Watches share blocking queries, and never more of them than the server allows."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext

import pytest
import pytest_asyncio

from aiolibkv import AccessDeniedError, KVPair, NotReachableError, RequestTimeoutError, Watch
from aiolibkv.backends.consul import watching
from aiolibkv.backends.consul.encoding import Answer
from aiolibkv.backends.consul.trees import parse_tree
from aiolibkv.backends.consul.watching import Poll, Polls
from aiolibkv.store import Endpoint, Feed
from aiolibkv.store.tasks import Tasks
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import ConsulServer
from consul.conftest import Make
from stores import ConsulStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

DEFAULT_LIMIT = 200
"""Connections that Consul allows to a client."""

ENDPOINT = Endpoint("server", 8500)


async def _all_at(watches: Iterable[Watch[KVPair | None]], pairs: Sequence[KVPair | None], *, within: float) -> None:
    async def arrive(watch: Watch[KVPair | None], pair: KVPair | None) -> None:
        while await anext(watch) != pair:
            pass

    async with asyncio.timeout(scaled(within)), asyncio.TaskGroup() as tasks:
        for watch, pair in zip(watches, pairs, strict=True):
            tasks.create_task(arrive(watch, pair))


async def test_a_thousand_watches_of_a_key_share_a_poll(
    proxied: ConsulStore, proxy: FaultProxy, direct: ConsulStore
) -> None:
    pair = await direct.put("key", b"0")
    watches = [proxied.watch("key") for _ in range(1000)]
    with proxy.counting() as counts:
        await _all_at(watches, [pair] * 1000, within=10)
        for number in range(3):
            pair = await direct.put("key", str(number).encode())
            await _all_at(watches, [pair] * 1000, within=10)
    assert counts.requests < 20
    assert counts.connections <= 4
    assert len(proxied.driver._polls._polls) == 1
    for watch in watches[1:]:
        await watch.aclose()
    pair = await direct.put("key", b"last")
    await _all_at(watches[:1], [pair], within=5)
    await watches[0].aclose()


async def test_three_hundred_watches_within_the_limit(
    proxied: ConsulStore, proxy: FaultProxy, direct: ConsulStore
) -> None:
    keys = [f"dir/{number % 3}/{number}" for number in range(300)]
    watches = [proxied.watch(key) for key in keys]
    await _all_at(watches, [None] * 300, within=20)
    assert len(proxied.driver._polls._polls) <= 100
    assert proxy.connections_open < DEFAULT_LIMIT
    for _ in range(2):
        pairs = await asyncio.gather(*(proxied.put(key, b"") for key in keys))
        await _all_at(watches, pairs, within=20)
    assert len(await direct.list("dir")) == 300
    assert proxy.connections_total < DEFAULT_LIMIT
    for watch in watches:
        await watch.aclose()


async def test_watches_without_a_common_directory(proxied: ConsulStore) -> None:
    keys = [f"{number}/{number}/key" for number in range(150)]
    watches = [proxied.watch(key) for key in keys]
    trees = [proxied.watch_tree(f"{number}/{number}") for number in range(150)]
    async with asyncio.timeout(scaled(20)):
        await _all_at(watches, [None] * 150, within=20)
        for tree in trees:
            assert await anext(tree) == []
        assert len(proxied.driver._polls._polls) <= 100
        pairs = [await proxied.put(key, b"") for key in keys]
        await _all_at(watches, pairs, within=20)
        for tree, pair in zip(trees, pairs, strict=True):
            assert await anext(tree) == [pair]
        await proxied.delete(keys[-1])
        assert await anext(watches[-1]) is None
        assert await anext(trees[-1]) == []
    for watch in (*watches, *trees):
        await watch.aclose()


@pytest_asyncio.fixture
async def fresh() -> AsyncIterator[ConsulServer]:
    """Run a server on which nothing is parked."""
    async with ConsulServer() as running:
        yield running


async def test_cancelling_watches_and_making_new_ones(make: Make, fresh: ConsulServer) -> None:
    """What is left parked on the server neither locks the client out nor delays the new ones."""
    async with (
        FaultProxy(fresh.host, fresh.port, protocol="http1") as proxy,
        make(proxy.endpoint) as watching,
        make(fresh.endpoint) as writing,
    ):
        for round_ in range(3):
            keys = [f"{round_}/{number}" for number in range(300)]
            watches = [watching.watch(key) for key in keys]
            await _all_at(watches, [None] * 300, within=20)
            pairs = await asyncio.gather(*(writing.put(key, b"") for key in keys))
            await _all_at(watches, pairs, within=10)
            assert len(watching.driver._polls._polls) <= 100
            for watch in watches:
                await watch.aclose()
            assert await watching.get(keys[0]) == pairs[0]
        assert proxy.connections_total < DEFAULT_LIMIT


async def test_a_store_with_watches_that_is_closed_and_opened_again(make: Make) -> None:
    """Its queries stay on the server for a while, but briefly as long as the watches are young."""
    async with ConsulServer() as server, make(server.endpoint) as writing, asyncio.timeout(scaled(10)):
        for round_ in range(8):
            async with make(server.endpoint) as store:
                watches = [store.watch(f"{round_}/{number}") for number in range(30)]
                await _all_at(watches, [None] * 30, within=10)
                pairs = [await writing.put(f"{round_}/{number}", b"") for number in range(30)]
                await _all_at(watches, pairs, within=10)


async def test_more_watches_than_the_server_has_connections_for(make: Make) -> None:
    """Two stores are two clients to themselves and one to the server: who comes too late waits, and nothing breaks."""
    async with (
        ConsulServer(max_connections=40) as server,
        make(server.endpoint, request_timeout=scaled(1)) as first,
        make(server.endpoint, request_timeout=scaled(1)) as second,
    ):
        keys = [f"second/{number}" for number in range(30)]
        held = [first.watch(f"first/{number}") for number in range(30)]
        await _all_at(held, [None] * 30, within=20)
        async with AsyncExitStack() as entering:
            late = [await entering.enter_async_context(second.watch(key)) for key in keys]
            await eventually(lambda: any(watch.is_stale for watch in late), within=10, message="there is no room")
            outcomes = await asyncio.gather(*(second.put(key, b"") for key in keys), return_exceptions=True)
            for outcome in outcomes:
                assert isinstance(outcome, KVPair | NotReachableError | RequestTimeoutError)
            for watch in held:
                await watch.aclose()
            await eventually(lambda: not any(watch.is_stale for watch in late), within=30, message="there is room")
            pairs = [await second.put(key, b"last") for key in keys]
            await _all_at(late, pairs, within=20)


async def test_a_cancelled_query_stays_on_the_server() -> None:
    """Why polls are bounded and not cut short; pinned, because the design rests on it."""
    async with ConsulServer(max_connections=8) as narrow:
        held = []
        for number in range(8):
            reader, writer = await asyncio.open_connection(narrow.host, narrow.port)
            writer.write(f"GET /v1/kv/missing/{number}?index=1000000&wait=10s HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            await writer.drain()
            held.append((reader, writer))

        async def locked_out() -> bool:
            try:
                await narrow.api("GET", "/v1/status/leader")
            except (OSError, EOFError):
                return True
            return False

        await eventually(locked_out, within=5, message="the server refuses one connection more")
        for _, writer in held:
            writer.close()
        assert await locked_out()

        async def served() -> bool:
            return not await locked_out()

        await eventually(served, within=30, message="the queries end")


async def test_neighbours_of_a_missing_key(proxied: ConsulStore, direct: ConsulStore, proxy: FaultProxy) -> None:
    """They wake its query; they are not delivered, and do not make the client spin."""
    async with proxied.watch("dir/key") as watch:
        assert await anext(watch) is None
        pending = asyncio.ensure_future(anext(watch))
        with proxy.counting() as counts:
            for number in range(200):
                await direct.put(f"dir/key{number}", b"")
                await direct.put("dir/kex", b"")
        assert not pending.done()
        assert counts.requests < 100
        pair = await direct.put("dir/key", b"")
        assert await pending == pair


class Script:
    """A connection whose answers the test gives, in any order."""

    endpoint = "server"
    timeout = 5.0
    leader = None
    tokens_replaced = 0

    def __init__(self) -> None:
        self.requests: list[tuple[str, asyncio.Future[Answer]]] = []

    async def request(self, method: str, target: str, body: bytes | None = None, **_: object) -> Answer:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.requests.append((target, answer))
        return await answer

    async def check_access(self, *paths: str) -> None:
        """Deny nothing."""

    def understanding(self, _: Answer) -> AbstractContextManager[None]:
        return nullcontext()

    async def next(self, kind: str, number: int = -1) -> asyncio.Future[Answer]:
        """Return the answer to be given to a read ("read") or a blocking query ("query") that is under way."""
        found: list[asyncio.Future[Answer]] = []

        def look() -> bool:
            parked = {"read": False, "query": True}[kind]
            found[:] = [answer for target, answer in self.requests if ("index=" in target) is parked]
            found[:] = [answer for answer in found if not answer.done()]
            return bool(found)

        await eventually(look, within=5, message=f"there is a {kind}")
        return found[number]


def _value(value: bytes, index: int) -> Answer:
    return Answer(200, str(index), value, ENDPOINT)


def _gone(index: int) -> Answer:
    return Answer(404, str(index), b"", ENDPOINT)


class Watcher:
    """A feed, and what came out of it."""

    def __init__(self, poll: Poll) -> None:
        self.feed = Feed("key", tree=False, name=lambda path: path)
        self.seen: list[tuple[bytes | None, int]] = []
        poll.join(self.feed)

    def take(self) -> list[tuple[bytes | None, int]]:
        while (snapshot := self.feed.take()) is not None:
            pair = snapshot.get("key")
            self.seen.append((None, 0) if pair is None else (pair.value, pair.last_index))
        return self.seen

    async def wait(self, *expected: tuple[bytes | None, int]) -> None:
        await eventually(lambda: self.take() == list(expected), within=5, message=f"{expected}, not {self.seen}")


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class TestPoll:
    """The order of what overlapping reads tell, with a server that answers as the test likes."""

    def _poll(self, script: Script, tasks: Tasks, ended: Callable[[Poll], None] = lambda _: None) -> Poll:
        return Poll(script, tasks, "key", tree=False, own=True, on_end=ended)  # type: ignore[arg-type]

    async def test_a_late_watch_begins_with_a_read_of_its_own(self) -> None:
        script, tasks = Script(), Tasks()
        poll = self._poll(script, tasks)
        first = Watcher(poll)
        (await script.next("read")).set_result(_value(b"1", 10))
        await first.wait((b"1", 10))
        parked = await script.next("query")
        late = Watcher(poll)
        fresh = await script.next("read")
        assert late.take() == []
        # The parked query was answered before the second write; its answer is under way for long.
        fresh.set_result(_value(b"3", 12))
        await late.wait((b"3", 12))
        await first.wait((b"1", 10), (b"3", 12))
        parked.set_result(_value(b"2", 11))
        (await script.next("query")).set_result(_value(b"4", 13))
        await late.wait((b"3", 12), (b"4", 13))
        await first.wait((b"1", 10), (b"3", 12), (b"4", 13))
        await tasks.close()

    async def test_a_late_read_that_is_overtaken(self) -> None:
        script, tasks = Script(), Tasks()
        poll = self._poll(script, tasks)
        first = Watcher(poll)
        (await script.next("read")).set_result(_value(b"1", 10))
        parked = await script.next("query")
        late = Watcher(poll)
        fresh = await script.next("read")
        parked.set_result(_value(b"3", 12))
        await first.wait((b"1", 10), (b"3", 12))
        assert late.take() == []
        fresh.set_result(_value(b"2", 11))
        await late.wait((b"3", 12))
        await tasks.close()

    async def test_those_who_come_during_a_read_wait_for_the_next(self) -> None:
        script, tasks = Script(), Tasks()
        poll = self._poll(script, tasks)
        first = Watcher(poll)
        before = await script.next("read")
        second = Watcher(poll)
        before.set_result(_value(b"1", 10))
        await first.wait((b"1", 10))
        assert second.take() == []
        (await script.next("read")).set_result(_value(b"2", 11))
        await second.wait((b"2", 11))
        await first.wait((b"1", 10), (b"2", 11))
        assert sum("index=" not in target for target, _ in script.requests) == 2
        await tasks.close()

    async def test_a_server_that_went_back(self) -> None:
        script, tasks = Script(), Tasks()
        poll = self._poll(script, tasks)
        first = Watcher(poll)
        (await script.next("read")).set_result(_value(b"1", 1000))
        parked = await script.next("query")
        late = Watcher(poll)
        old = await script.next("read")
        parked.set_result(_value(b"restored", 20))
        await first.wait((b"1", 1000), (b"restored", 20))
        # This one was read before the restoration; it does not count, and is repeated.
        old.set_result(_value(b"1", 1000))
        (await script.next("read")).set_result(_value(b"restored", 20))
        await late.wait((b"restored", 20))
        assert first.take() == [(b"1", 1000), (b"restored", 20)]
        targets = [target for target, _ in script.requests if "index=" in target]
        assert "index=1000&" in targets[0]
        assert "index=20&" in targets[1]
        await tasks.close()

    async def test_what_is_not_changed_is_not_decoded_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A query of a tree that ends without a change brings the whole tree."""
        decoded: list[Answer] = []

        async def decode(answer: Answer) -> list[KVPair]:
            decoded.append(answer)
            return await parse_tree(answer)

        monkeypatch.setattr(watching, "parse_tree", decode)
        script, tasks = Script(), Tasks()
        poll = Poll(script, tasks, "dir", tree=True, own=True, on_end=lambda _: None)  # type: ignore[arg-type]
        feed = Feed("dir", tree=True, name=lambda path: path)
        poll.join(feed)
        for index in (10, 10, 10, 11):
            body = f'[{{"Key":"dir/key","Value":"MQ==","Flags":0,"ModifyIndex":{index}}}]'.encode()
            (await script.next("query" if decoded else "read")).set_result(Answer(200, str(index), body, ENDPOINT))
            await eventually(lambda index=index: feed.index == index, within=5, message="it is read")  # type: ignore[misc]
        assert [answer.index for answer in decoded] == [10, 11]
        await tasks.close()

    async def test_an_index_is_above_zero(self) -> None:
        script, tasks = Script(), Tasks()
        Watcher(self._poll(script, tasks))
        (await script.next("read")).set_result(_gone(0))
        await script.next("query")
        assert "index=1&" in script.requests[-1][0]
        await tasks.close()

    async def test_deletion_and_creation(self) -> None:
        script, tasks = Script(), Tasks()
        watcher = Watcher(self._poll(script, tasks))
        (await script.next("read")).set_result(_gone(5))
        await watcher.wait((None, 0))
        for answer in (_gone(6), _value(b"1", 7), _value(b"1", 7), _gone(9), _gone(8), _value(b"2", 10)):
            (await script.next("query")).set_result(answer)
        await watcher.wait((None, 0), (b"1", 7), (None, 0), (b"2", 10))
        await tasks.close()

    async def test_nobody_left(self) -> None:
        ended: list[Poll] = []
        script, tasks = Script(), Tasks()
        poll = self._poll(script, tasks, ended.append)
        watcher = Watcher(poll)
        (await script.next("read")).set_result(_value(b"1", 1))
        parked = await script.next("query")
        poll.leave(watcher.feed)
        again = Watcher(poll)
        (await script.next("read")).set_result(_value(b"1", 1))
        await again.wait((b"1", 1))
        parked.set_result(_value(b"2", 2))
        await again.wait((b"1", 1), (b"2", 2))
        parked = await script.next("query")
        poll.leave(again.feed)
        await _settle()
        assert not ended
        parked.set_result(_value(b"3", 3))
        await eventually(lambda: ended == [poll], within=5, message="the poll ends with its query")
        assert poll.failure is None
        assert again.take() == [(b"1", 1), (b"2", 2)]
        await tasks.close()

    @pytest.mark.parametrize("error", [NotReachableError("gone"), AccessDeniedError("no")])
    @pytest.mark.parametrize("kind", ["read", "query"])
    async def test_errors_end_it(self, kind: str, error: Exception) -> None:
        ended: list[Poll] = []
        script, tasks = Script(), Tasks()
        poll = self._poll(script, tasks, ended.append)
        Watcher(poll)
        if kind == "query":
            (await script.next("read")).set_result(_value(b"1", 1))
        (await script.next(kind)).set_exception(error)
        await eventually(lambda: ended == [poll], within=5, message="the poll ends")
        assert poll.failure is error
        await tasks.close()


async def test_a_watch_without_a_poll_of_its_own_is_stale_at_a_mute_server(make: Make, proxy: FaultProxy) -> None:
    async with make(proxy.endpoint, request_timeout=scaled(1)) as store:
        watches = [store.watch(str(number)) for number in range(100)]
        await _all_at(watches, [None] * 100, within=20)
        proxy.blackhole()
        async with store.watch("late") as late:
            await eventually(lambda: late.is_stale, within=5, message="the watch is stale")
            proxy.reset()
            proxy.heal()
            async with asyncio.timeout(scaled(10)):
                assert await anext(late) is None
        for watch in watches:
            await watch.aclose()


async def test_a_new_poll_waits_for_room(direct: ConsulStore) -> None:
    """Queries given up on a mute server count for as long as the server may keep them."""
    polls: Polls = direct.driver._polls
    now = asyncio.get_running_loop().time()
    polls._abandoned = [(now + 60, direct.driver._connection.endpoint)] * 200
    async with direct.watch("a/b/key") as watch, direct.watch_tree("a/b") as tree:
        assert await anext(watch) is None
        assert await anext(tree) == []
        assert list(polls._polls) == [(direct.driver.config.prefix, True)]
        pair = await direct.put("a/b/key", b"")
        assert await anext(watch) == pair
        assert await anext(tree) == [pair]
    polls._abandoned = [(now - 1, direct.driver._connection.endpoint)] * 200
    async with direct.watch("a/b/key") as watch:
        assert await anext(watch) == pair
        assert (f"{direct.driver.config.prefix}/a/b/key", False) in polls._polls


async def test_the_index_of_an_empty_directory(direct: ConsulStore, server: ConsulServer, prefix: str) -> None:
    """A directory without keys is watched from the index of everything, which is not 0."""
    await server.api("PUT", f"/v1/kv/{prefix}/other", "")
    async with direct.watch_tree("empty") as watch:
        assert await anext(watch) == []
        pair = await direct.put("empty/key", b"")
        snapshot = await anext(watch)
        assert snapshot == [pair]
        (item,) = json.loads(await server.api("GET", f"/v1/kv/{prefix}/empty/?recurse"))
        assert snapshot.last_index >= item["ModifyIndex"]

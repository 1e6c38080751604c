"""A backend as somebody else would write it, from the author's page alone: a dictionary behind a slow network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar
from uuid import uuid4

import pytest

from aiolibkv import Capabilities, Config, KVPair, new_store, register_backend, registry
from aiolibkv.errors import KeyExistsError, KeyModifiedError, KeyNotFoundError, LockLostError, NotReachableError
from aiolibkv.store import (
    Call,
    Condition,
    Driver,
    Feed,
    Guard,
    Lease,
    LeaseLostError,
    Lifetime,
    Listing,
    Removal,
    Removed,
    Step,
    Write,
)
from aiolibkv.testing.conformance import ConformanceSuite, CutOff, StoreFactory, cut_off_by_driver, factory_of

T = TypeVar("T")


@dataclass(eq=False)
class Session(Lease):
    """A lease; its identifier is chosen by the client, so that it can be granted again."""

    id: str = field(default_factory=lambda: uuid4().hex)


class Server:
    """The server: a dictionary, a counter, leases, and who wants to hear of changes."""

    of_name: ClassVar[dict[str, Server]] = {}

    def __init__(self) -> None:
        self.index = 0
        self.pairs: dict[str, tuple[KVPair, str | None]] = {}
        self.ends: dict[str, float] = {}
        self.changed = asyncio.Event()
        self.users = 0

    def now(self) -> float:
        now = asyncio.get_running_loop().time()
        ended = {lease for lease, end in self.ends.items() if end <= now}
        if ended:
            for lease in ended:
                del self.ends[lease]
            self.remove([path for path, (_, lease) in self.pairs.items() if lease in ended])
        return now

    def get(self, path: str) -> KVPair | None:
        self.now()
        found = self.pairs.get(path)
        return None if found is None else found[0]

    def below(self, directory: str) -> list[KVPair]:
        self.now()
        start = f"{directory}/" if directory else ""
        return sorted(
            (pair for pair, _ in self.pairs.values() if pair.key.startswith(start)), key=lambda pair: pair.key
        )

    def check(self, guard: Guard | None) -> None:
        if guard is not None:
            pair = self.get(guard.path)
            if pair is None or pair.last_index != guard.token:
                raise LockLostError

    def commit(self, steps: Sequence[Step], lease: str | None, guard: Guard | None) -> list[int]:
        self.check(guard)
        for step in steps:
            self.require(step)
        if lease is not None and lease not in self.ends:
            raise LeaseLostError
        if not all(isinstance(step, Condition) for step in steps):
            self.index += 1
            for step in steps:
                if isinstance(step, Write):
                    self.pairs[step.path] = KVPair(step.path, step.value, self.index), lease
                elif isinstance(step, Removal):
                    del self.pairs[step.path]
            self.tell()
        return [self.index if isinstance(step, Write) else 0 for step in steps]

    def require(self, step: Step) -> None:
        pair, expected = self.get(step.path), step.expected
        must_exist = isinstance(step, Removal) or (isinstance(step, Condition) and expected is None)
        if must_exist and pair is None:
            raise KeyNotFoundError(key=step.path)
        if expected == 0 and pair is not None:
            raise KeyExistsError(key=step.path)
        if expected and (pair is None or pair.last_index != expected):
            raise KeyModifiedError(key=step.path)

    def remove(self, paths: Sequence[str]) -> None:
        if paths:
            self.index += 1
            for path in paths:
                del self.pairs[path]
            self.tell()

    def tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Distant(Driver[Session]):
    """The driver: each request takes its time both ways, and what was sent is carried out whoever waits."""

    name = "distant"
    make_server: ClassVar[type[Server]] = Server
    capabilities = Capabilities(
        distributed=True,
        durable=False,
        survives_failover=False,
        every_change=False,
        min_ttl=0,
        max_value_bytes=300_000,
        max_operations=50,
        max_commit_bytes=400_000,
        ttl_overshoot=lambda _: 0.5,
    )

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        super().__init__(endpoints, config)
        self._server: Server | None = None
        self._requests: set[asyncio.Task[object]] = set()

    async def connect(self) -> None:
        await asyncio.sleep(0)
        self._server = Server.of_name.setdefault(self.endpoints[0], self.make_server())
        self._server.users += 1
        self.connected(self.endpoints[0])

    async def disconnect(self) -> None:
        if self._requests:
            await asyncio.wait(self._requests)
        if self._server is not None:
            self._server.users -= 1
            if not self._server.users:
                del Server.of_name[self.endpoints[0]]
            self._server = None

    async def get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
        return await self._ask(lambda server: server.get(path))

    async def get_many(self, call: Call, paths: Sequence[str], *, consistent: bool) -> Sequence[KVPair | None]:
        return await self._ask(lambda server: [server.get(path) for path in paths])

    async def list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
        return await self._ask(lambda server: Listing(server.below(directory), server.get(directory) is not None))

    async def commit(
        self, call: Call, steps: Sequence[Step], *, lease: Session | None = None, guard: Guard | None = None
    ) -> Sequence[int]:
        return await self._write(call, lambda server: server.commit(steps, None if lease is None else lease.id, guard))

    async def delete_tree(self, call: Call, directory: str, *, guard: Guard | None) -> Removed:
        def delete(server: Server) -> Removed:
            server.check(guard)
            paths = [pair.key for pair in server.below(directory) if not f"{pair.key}/".startswith(f"{self.hidden}/")]
            server.remove(paths)
            return Removed(len(paths), server.get(directory) is not None)

        return await self._write(call, delete)

    async def follow(self, feed: Feed) -> None:
        while True:
            changed = self._reached().changed
            pairs, index = await self._ask(lambda server: (self._state(server, feed), server.index))
            feed.reset(pairs, index)
            try:
                # What ends by itself is not told.
                async with asyncio.timeout(0.2):
                    await changed.wait()
            except TimeoutError:
                continue

    def new_lease(self, lifetime: Lifetime) -> Session:
        return Session(lifetime.ttl, overshoot=0.5)

    async def grant(self, call: Call, lease: Session) -> None:
        await self._ask(lambda server: server.ends.update({lease.id: server.now() + lease.ttl}))

    async def renew(self, call: Call, lease: Session) -> bool:
        def renew(server: Server) -> bool:
            end = server.now() + lease.ttl
            return lease.id in server.ends and not server.ends.update({lease.id: end})

        return await self._ask(renew)

    async def revoke(self, call: Call, lease: Session) -> None:
        def revoke(server: Server) -> None:
            server.ends.pop(lease.id, None)
            server.remove([path for path, (_, id_) in server.pairs.items() if id_ == lease.id])

        await self._ask(revoke)

    @staticmethod
    def _state(server: Server, feed: Feed) -> Sequence[KVPair]:
        if feed.tree:
            return server.below(feed.path)
        pair = server.get(feed.path)
        return [] if pair is None else [pair]

    def _reached(self) -> Server:
        if self._server is None:
            raise NotReachableError("the network is down")
        return self._server

    async def _ask(self, request: Callable[[Server], T]) -> T:
        """Send a request; it arrives, and is answered, whether or not somebody still waits."""
        server = self._reached()

        async def travel() -> T:
            await asyncio.sleep(0)
            result = request(server)
            await asyncio.sleep(0)
            return result

        task: asyncio.Task[T] = asyncio.create_task(travel())
        self._requests.add(task)
        task.add_done_callback(self._answered)
        return await asyncio.shield(task)

    def _answered(self, task: asyncio.Task[T]) -> None:
        self._requests.discard(task)
        if not task.cancelled():
            task.exception()

    async def _write(self, call: Call, request: Callable[[Server], T]) -> T:
        call.writing()
        try:
            return await self._ask(request)
        except (KeyExistsError, KeyModifiedError, KeyNotFoundError, LockLostError, LeaseLostError):
            call.settled()
            raise


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(registry, "_registered", {})
    register_backend("distant", Distant)
    return "distant"


def test_a_driver_class_is_a_backend(backend: str) -> None:
    assert repr(new_store(backend, ["one"], Config(prefix="app"))) == "<Store distant one, prefix 'app', not open>"
    with pytest.raises(ValueError, match="unknown option 'speed'"):
        new_store(backend, ["one"], Config(options={"speed": 1}))


class TestDistant(ConformanceSuite):
    """Every test of the suite."""

    @pytest.fixture
    def store_factory(self, backend: str) -> StoreFactory:
        return factory_of(backend, [uuid4().hex])

    @pytest.fixture
    def cut_off(self, store_factory: StoreFactory) -> CutOff:
        return cut_off_by_driver(store_factory)

"""Clients that do random things to a few keys at the same time, and what came of it."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from random import Random, randrange
from typing import Literal

from aiolibkv import (
    AsyncStore,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    KVPair,
    NotReachableError,
    RequestTimeoutError,
    StoreError,
    open_store,
)
from aiolibkv.testing.scale import eventually, scaled
from faults.clusters import Nodes
from faults.linearizability import Operation, Outcome, check

KEYS = ("a", "b", "c", "d/e")
_STEPS = {"get": 8, "exists": 2, "put": 4, "create": 2, "swap": 5, "delete": 1, "remove": 2}
"""What clients do, and how often."""
_PAUSE = 0.03
"""Seconds between two calls of a client at most."""
_CANCELLED = 0.02
"""The share of calls that their caller gives up."""
_IMPATIENT = 0.02
"""Seconds that such a caller waits at most."""
_LAG = 0.5
"""Seconds that the leader of ZooKeeper may need to carry out what its followers did; its own clients do not wait."""
_REFUSALS: dict[type[StoreError], Outcome] = {
    KeyNotFoundError: "missing",
    KeyExistsError: "exists",
    KeyModifiedError: "modified",
}

Kind = Literal["get", "exists", "put", "delete"]


class History:
    """What the clients of a test did.

    Attributes:
        operations: what had, may have had or saw an effect, in the order of their ends.
        failures: the errors of calls that found no server, in the same order.
        pairs: of each key, those that were seen or written lately.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.failures: list[StoreError] = []
        self.pairs: dict[str, deque[KVPair]] = defaultdict(lambda: deque(maxlen=5))

    async def call(
        self,
        client: str,
        key: str,
        kind: Kind,
        call: Awaitable[KVPair | bool | None],
        *,
        value: bytes | None = None,
        expected: int | None = None,
        patience: float | None = None,
    ) -> bool:
        """Await a call and note what it did.

        Args:
            client: who makes it.
            key: the key.
            kind: what it does.
            call: it is begun here.
            value: what is written.
            expected: as in Operation.
            patience: seconds after which the caller loses patience and cancels it.

        Returns:
            Whether the store gave a definite answer.

        Raises:
            StoreError: none that an outage may cause.
        """
        is_read = kind in {"get", "exists"}
        outcome: Outcome = "done"
        result: KVPair | bool | None = None
        began = time.monotonic()
        try:
            async with asyncio.timeout(patience) as impatience:
                result = await call
        except (KeyNotFoundError, KeyExistsError, KeyModifiedError) as refusal:
            outcome = _REFUSALS[type(refusal)]
        except (NotReachableError, RequestTimeoutError) as failure:
            self.failures.append(failure)
            if not failure.maybe_applied:
                return False
            if is_read:
                raise AssertionError("a read changes nothing") from failure
            outcome = "unknown"
        except TimeoutError:
            if not impatience.expired():
                raise
            if is_read:
                return False
            outcome = "unknown"
        ended = time.monotonic()
        index = None
        if isinstance(result, KVPair):
            assert result.key == key
            assert value in {None, result.value}
            value, index = result.value, result.last_index
            self.pairs[key].append(result)
        elif result is False:
            outcome = "missing"
        self.operations.append(
            Operation(
                client=client,
                key=key,
                call=kind,
                began=began,
                ended=math.inf if outcome == "unknown" else ended,
                outcome=outcome,
                value=value,
                index=index,
                expected=expected,
            )
        )
        return outcome != "unknown"

    async def go_on(self, *, reads: int, writes: int, within: float = 40.0) -> None:
        """Wait until so many reads and writes were begun and done from now on.

        Args:
            reads: how many.
            writes: how many.
            within: seconds, before scaling.
        """
        since, known = time.monotonic(), len(self.operations)

        def are_done() -> bool:
            news = self.operations[known:]
            done = [operation.call for operation in news if operation.began >= since and operation.outcome == "done"]
            count = sum(call in {"get", "exists"} for call in done)
            return count >= reads and len(done) - count >= writes

        await eventually(are_done, within=within, message=f"{reads} reads and {writes} writes are done")

    async def suffer(self, failures: int, *, within: float = 40.0) -> None:
        """Wait until so many calls more have failed.

        Args:
            failures: how many.
            within: seconds, before scaling.
        """
        wanted = len(self.failures) + failures
        await eventually(lambda: len(self.failures) >= wanted, within=within, message=f"{failures} calls fail")


class Client:
    """Does random things until it is told to stop."""

    def __init__(self, name: str, store: AsyncStore, history: History, random: Random) -> None:
        """Make a client of an open store."""
        self._name = name
        self._store = store
        self._history = history
        self._random = random
        self._written = 0
        self.stopped = False

    async def run(self) -> None:
        """Make one call after the other."""
        while not self.stopped:
            await self._step(self._random.choice(KEYS))
            await asyncio.sleep(self._random.uniform(0, _PAUSE))

    async def _step(self, key: str) -> None:
        store, value, previous = self._store, self._new_value(), self._previous(key)
        (step,) = self._random.choices([*_STEPS], [*_STEPS.values()])
        if previous is None or step == "create":
            await self._do(key, "put", store.atomic_put(key, value, None), value=value, expected=0)
        elif step == "swap":
            swap = store.atomic_put(key, value, previous)
            await self._do(key, "put", swap, value=value, expected=previous.last_index)
        elif step == "remove":
            await self._do(key, "delete", store.atomic_delete(key, previous), expected=previous.last_index)
        elif step == "put":
            await self._do(key, "put", store.put(key, value), value=value)
        elif step == "delete":
            await self._do(key, "delete", store.delete(key))
        elif step == "exists":
            await self._do(key, "exists", store.exists(key))
        else:
            await self._do(key, "get", store.get(key))

    async def _do(
        self,
        key: str,
        kind: Kind,
        call: Awaitable[KVPair | bool | None],
        *,
        value: bytes | None = None,
        expected: int | None = None,
    ) -> None:
        patience = self._random.uniform(0, _IMPATIENT) if self._random.random() < _CANCELLED else None
        await self._history.call(self._name, key, kind, call, value=value, expected=expected, patience=patience)

    def _previous(self, key: str) -> KVPair | None:
        """Return a pair of a key to compare with: mostly the last one that anybody saw, now and then one that was."""
        pairs = self._history.pairs[key]
        if not pairs:
            return None
        if self._random.random() < 0.8:
            return pairs[-1]
        # Only the index is to be compared, never the value.
        return replace(pairs[-1], last_index=self._random.choice(pairs).last_index)

    def _new_value(self) -> bytes:
        self._written += 1
        return f"{self._name}-{self._written}".encode()


async def record(
    stores: Sequence[AsyncStore], seed: int, fault: Callable[[History], Awaitable[None]], *, name: str = "client"
) -> History:
    """Have a client use each of some stores before, during and after a fault.

    Args:
        stores: not entered yet.
        seed: of what the clients do.
        fault: called when enough was done before; it returns when the fault is over.
        name: what the clients' names begin with.

    Returns:
        What was done.
    """
    history = History()
    random = Random(seed)
    clients = [Client(f"{name}{n}", store, history, Random(random.random())) for n, store in enumerate(stores)]
    async with AsyncExitStack() as stack:
        for store in stores:
            await stack.enter_async_context(store)
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.run())
            await history.go_on(reads=40, writes=40)
            await fault(history)
            await history.go_on(reads=40, writes=40)
            for client in clients:
                client.stopped = True
    return history


def record_alone(url: str, seed: int, name: str) -> list[Operation]:
    """Record what three clients do, without faults, in a process that was started for it.

    Args:
        url: of the stores.
        seed: as for record.
        name: as for record.
    """

    async def nothing(_: History) -> None:
        """No fault."""

    async def run() -> list[Operation]:
        return (await record([open_store(url) for _ in range(3)], seed, nothing, name=name)).operations

    return asyncio.run(run())


def stores_of(nodes: Nodes) -> list[AsyncStore]:
    """Make a store for each of nine clients: three know one node each, the others all, beginning with another one."""
    numbers = range(len(nodes.servers))
    alone = [nodes.store(number, request_timeout=2.0) for number in numbers]
    return [*alone, *(nodes.store(*numbers[first:], *numbers[:first]) for first in (*numbers, *numbers))]


async def check_history(stores: Sequence[AsyncStore], fault: Callable[[History], Awaitable[None]]) -> History:
    """Have clients use some stores before, during and after a fault, and check that each key behaves like a register.

    What the clients do is chosen at random, by a seed that is printed; AIOLIBKV_HISTORY_SEED repeats it.

    Args:
        stores: as for record.
        fault: as for record.
    """
    seed = int(os.environ.get("AIOLIBKV_HISTORY_SEED", randrange(2**32)))
    print(f"AIOLIBKV_HISTORY_SEED={seed}")
    began = time.monotonic()
    history = await record(stores, seed, fault)
    unknown = sum(operation.outcome == "unknown" for operation in history.operations)
    counts = f"{len(history.operations)} operations, {unknown} of them unknown, {len(history.failures)} failures"
    print(f"{counts}, in {time.monotonic() - began:.1f} s")
    capabilities = stores[0].capabilities
    lag = 0.0 if capabilities.linearizable_reads else scaled(_LAG)
    check(history.operations, exact_compare=capabilities.exact_compare, lag=lag)
    return history

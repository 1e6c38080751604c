"""What fails during a soak, at random, and the record of what happens."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from aiolibkv import NotReachableError, RequestTimeoutError, StoreError
from aiolibkv.testing.scale import scaled
from faults.clusters import Nodes

T = TypeVar("T")

REQUEST_TIMEOUT = 5.0
OUTAGE = (NotReachableError, RequestTimeoutError)
_SLACK = 3.0
"""Seconds that a call may take beyond its request_timeout, before scaling; the machine is busy."""
_LONGEST_FAULT = 4.0


class Record:
    """What happened, and what should not have.

    Attributes:
        seed: of everything random.
        violations: what broke a promise; the first one ends the soak.
        calls: how often each was made.
        outages: how many of them failed because of a fault.
        longest: seconds that each kind of call has taken at most.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.violations: list[str] = []
        self.calls: Counter[str] = Counter()
        self.outages: Counter[str] = Counter()
        self.longest: dict[str, float] = {}
        self._began = time.monotonic()
        self._said: deque[str] = deque(maxlen=40)

    def say(self, text: str) -> None:
        line = f"{time.monotonic() - self._began:7.2f} s  {text}"
        self._said.append(line)
        print(line, flush=True)

    def violated(self, text: str) -> None:
        self.violations.append(text)
        self.say(f"VIOLATION {text}")

    def report(self) -> None:
        """Say what was done."""
        for name in sorted(self.calls):
            longest = f", the longest {self.longest[name]:.2f} s" if name in self.longest else ""
            self.say(f"{name}: {self.calls[name]}, {self.outages[name]} failed in an outage{longest}")

    def check(self) -> None:
        """Fail when a promise was broken."""
        assert not self.violations, "\n".join([f"seed {self.seed}", *self.violations, "the last events:", *self._said])

    async def call(
        self,
        name: str,
        call: Awaitable[T],
        *,
        expected: tuple[type[StoreError], ...] = (),
        limit: float | None = REQUEST_TIMEOUT,
    ) -> T:
        """Make a call, which may fail as in an outage or as expected, and takes no longer than it may."""
        self.calls[name] += 1
        began = time.monotonic()
        try:
            return await call
        except OUTAGE:
            self.outages[name] += 1
            raise
        except expected:
            raise
        except StoreError as error:
            self.violated(f"{name} raised {error!r} from {error.__cause__!r}")
            raise
        finally:
            took = time.monotonic() - began
            self.longest[name] = max(took, self.longest.get(name, 0.0))
            if limit is not None and took > limit + scaled(_SLACK):
                self.violated(f"{name} took {took:.1f} s")


class Faults(ABC):
    """What fails, at random."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.random = Random(f"{record.seed} faults")
        self.number = 0

    @abstractmethod
    async def happen(self) -> None:
        """Let something fail for a while."""

    async def heal(self) -> None:  # noqa: B027 -- what ends by itself needs nothing
        """End all that fails."""

    async def leftovers(self) -> str:
        """Return what the servers still keep of clients that are gone."""
        return ""


class NoFaults(Faults):
    """Nothing can fail."""

    async def happen(self) -> None:
        await asyncio.sleep(1.0)


class ForeignTransactions(Faults):
    """Another connection to an SQLite file writes for a while."""

    def __init__(self, record: Record, file: Path) -> None:
        super().__init__(record)
        self._file = file

    async def happen(self) -> None:
        self.number += 1
        connection = sqlite3.connect(self._file, isolation_level=None, timeout=0)
        try:
            connection.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(self.random.uniform(0.1, 1.5))
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            self.number -= 1
        finally:
            connection.close()
        await asyncio.sleep(self.random.uniform(0.2, 2.0))


class ClusterFaults(Faults):
    """Servers of a cluster die and stop, the ways to them are cut, slow and mute."""

    def __init__(self, record: Record, nodes: Nodes) -> None:
        super().__init__(record)
        self._nodes = nodes
        self._kinds: list[Callable[[int, float], Coroutine[Any, Any, None]]] = [
            self._kill,
            self._restart,
            self._pause,
            self._reset,
            self._refuse,
            self._blackhole,
            self._deafen,
            self._delay,
            self._cut_answers,
        ]

    async def happen(self) -> None:
        """Have one node fail, or at times several at once."""
        self.number += 1
        kind = self.random.choice(self._kinds)
        chosen = self.random.sample(range(3), self.random.choice((1, 1, 1, 1, 2, 3)))
        seconds = self.random.uniform(0.2, _LONGEST_FAULT)
        self.record.say(f"{kind.__name__[1:]} {', '.join(map(str, sorted(chosen)))} for {seconds:.2f} s")
        await asyncio.gather(*(kind(number, seconds) for number in chosen))
        await asyncio.sleep(self.random.uniform(0.0, 3.0))

    async def heal(self) -> None:
        await self._nodes.heal()

    async def leftovers(self) -> str:
        cluster = self._nodes.cluster
        if self._nodes.backend == "etcd":
            found: str = await cluster.servers[0].ctl("lease", "list")
            return "" if found.startswith("found 0 leases") else found
        if self._nodes.backend == "consul":
            listed: str = await cluster.servers[0].api("GET", "/v1/session/list")
            return "" if listed.strip() == "[]" else listed
        dumped: str = await (await cluster.leader()).four_letter_word("dump")
        return "" if "Sessions with Ephemerals (0)" in dumped else dumped

    async def _kill(self, number: int, seconds: float) -> None:
        server = self._nodes.servers[number]
        await server.kill()
        await asyncio.sleep(seconds)

    async def _restart(self, number: int, seconds: float) -> None:
        server = self._nodes.servers[number]
        await server.stop()
        await asyncio.sleep(seconds)

    async def _pause(self, number: int, seconds: float) -> None:
        server = self._nodes.servers[number]
        if server.running:
            server.pause()
            await asyncio.sleep(seconds)
            server.resume()

    async def _reset(self, number: int, _: float) -> None:
        self._nodes.proxies[number].reset()

    async def _refuse(self, number: int, seconds: float) -> None:
        proxy = self._nodes.proxies[number]
        proxy.refuse()
        proxy.reset()
        await asyncio.sleep(seconds)
        proxy.accept()

    async def _blackhole(self, number: int, seconds: float) -> None:
        proxy = self._nodes.proxies[number]
        proxy.blackhole()
        await asyncio.sleep(seconds)
        proxy.heal()

    async def _deafen(self, number: int, seconds: float) -> None:
        """Let requests arrive and answers not, and lose those for good."""
        proxy = self._nodes.proxies[number]
        proxy.blackhole(to_server=False)
        await asyncio.sleep(seconds)
        proxy.reset()
        proxy.heal()

    async def _delay(self, number: int, seconds: float) -> None:
        proxy = self._nodes.proxies[number]
        proxy.delay(seconds / 10)
        await asyncio.sleep(seconds)
        proxy.heal()

    async def _cut_answers(self, number: int, seconds: float) -> None:
        proxy = self._nodes.proxies[number]
        proxy.cut_answers(5)
        await asyncio.sleep(seconds)
        proxy.heal()

"""Leader election: a lock whose value is the leader's name."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from aiolibkv.coordination.view import View
from aiolibkv.protocol import AsyncStore, HeldLock, Watch
from aiolibkv.types import KVPair

DEFAULT_TTL = 15.0


class Candidate:
    """A node that wants to be the leader.

    Either ``run_for_election`` and ``stop``, for a node that campaigns all the time and is told of each change, or
    ``lead``, for work that is done while being the leader.
    """

    def __init__(self, store: AsyncStore, key: str, node: str, *, ttl: float = DEFAULT_TTL) -> None:
        """Make a candidate; nothing is sent.

        Args:
            store: where the election is.
            key: the lock's key; its value is the leader's name.
            node: this node's name.
            ttl: seconds after which another node may lead when this one died.
        """
        self.node = node
        self._lock = store.new_lock(key, value=node.encode(), ttl=ttl)
        self._held: HeldLock | None = None
        self._campaign: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._stopped = False

    @property
    def is_leader(self) -> bool:
        """Tell whether this node leads, by its own clock."""
        return self._held is not None and self._held.is_held

    def run_for_election(self) -> Election:
        """Campaign until ``stop``, and iterate over being elected: False first, then each change.

        An iterator that is slow sees the present state, never the same one twice. Campaigning goes on through outages
        and losses, whether or not the iterator is asked.

        Cost: that of acquiring a lock, for each term.
        """
        return Election(self)

    def lead(self) -> Term:
        """Lead for the time of an ``async with``; it waits to be elected, and gives the held lock.

        The body is cancelled and LockLostError raised when the leadership is lost.
        """
        return Term(self)

    async def resign(self) -> None:
        """Give up the leadership, if it is held; a campaign goes on behind the other candidates.

        The body of a ``lead`` is cancelled and LockLostError raised, unless it is itself the one that resigns.

        Cancellation: the leadership is given up all the same.
        Cost: one round trip (ZooKeeper: two).
        """
        if self.is_leader:
            self._held = None
            await self._lock.release()

    async def stop(self) -> None:
        """End the campaign and the leadership; iterators end.

        Cancellation: the campaign ends and the leadership is given up all the same.
        Cost: one round trip (ZooKeeper: two) when there is something to give up.
        """
        self._stopped = True
        self._changed.set()
        if self._campaign is not None:
            self._campaign.cancel()
            await asyncio.wait({self._campaign})
        await self.resign()

    async def _run(self) -> None:
        try:
            while True:
                self._held = await self._lock.acquire()
                self._changed.set()
                await self._held.wait_lost()
                self._changed.set()
        finally:
            await self.resign()

    def _ended(self, campaign: asyncio.Task[None]) -> None:
        if not campaign.cancelled():
            campaign.exception()
        self._changed.set()

    async def _next(self, known: bool | None) -> bool:
        if self._campaign is None and not self._stopped:
            self._campaign = asyncio.get_running_loop().create_task(self._run())
            self._campaign.add_done_callback(self._ended)
        while not self._stopped:
            self._changed.clear()
            if self.is_leader != known:
                return self.is_leader
            if self._campaign is not None and self._campaign.done():
                self._campaign.result()
            await self._changed.wait()
        raise StopAsyncIteration


class Term:
    """The context manager of ``Candidate.lead``."""

    def __init__(self, candidate: Candidate) -> None:
        """Make a term that has not begun."""
        self._candidate = candidate

    async def __aenter__(self) -> HeldLock:
        """Wait until the candidate leads."""
        held = await self._candidate._lock.__aenter__()
        self._candidate._held = held
        return held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Give up the leadership; raise LockLostError when it was lost."""
        self._candidate._held = None
        return await self._candidate._lock.__aexit__(kind, error, trace)


class Election:
    """The iterator of ``Candidate.run_for_election``."""

    def __init__(self, candidate: Candidate) -> None:
        """Make an iterator; the campaign begins with it."""
        self._candidate = candidate
        self._known: bool | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bool:
        self._known = await self._candidate._next(self._known)
        return self._known


class Follower:
    """A node that wants to know who leads.

    Attributes:
        leader: the leader's name as last seen, None while there is none.
    """

    def __init__(self, store: AsyncStore, key: str) -> None:
        """Make a follower; nothing is sent.

        Args:
            store: where the election is.
            key: the lock's key.
        """
        self._store = store
        self._key = key
        self.leader: str | None = None

    def follow_election(self) -> Watch[str | None]:
        """Watch who leads: the present leader's name first, None while there is none, then each change.

        Cost: that of a watch.
        """
        return View(self._store.watch(self._key), self._see)

    def _see(self, pair: KVPair | None) -> str | None:
        self.leader = None if pair is None else pair.value.decode(errors="replace")
        return self.leader

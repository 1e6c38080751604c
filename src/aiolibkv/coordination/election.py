"""Leader election: a lock whose value is the leader's name."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable
from copy import copy
from types import TracebackType
from typing import Self, TypeVar

from aiolibkv.coordination.attempts import Attempts
from aiolibkv.coordination.holding import WhileHeld
from aiolibkv.coordination.view import View
from aiolibkv.errors import CannotLockError, LockLostError, StoreError
from aiolibkv.iteration import ClosableIterator
from aiolibkv.keys import normalize_key
from aiolibkv.protocol import AsyncStore, HeldLock, Watch
from aiolibkv.starting import start
from aiolibkv.types import KVPair

T = TypeVar("T")

DEFAULT_TTL = 15.0

_STANDING_BACK = 0.5
"""Seconds that who has resigned waits: those who have just begun to campaign get into the line meanwhile."""

_log = logging.getLogger("aiolibkv")


class Candidate:
    """A node that wants to be the leader.

    Three ways to use it: ``run`` calls a function while this node leads, ``lead`` does the same with a block of code,
    and ``run_for_election`` tells of each change. Once stopped, a candidate does not lead again.
    """

    def __init__(self, store: AsyncStore, key: str, node: str, *, ttl: float = DEFAULT_TTL) -> None:
        """Make a candidate; nothing is sent.

        Args:
            store: where the election is.
            key: the lock's key; its value is the leader's name.
            node: this node's name, which others see; it need not be unique.
            ttl: seconds after which another node may lead when this one died.

        Raises:
            TypeError: the node is not a str.
            InvalidKeyError: the key is not valid.
            ValueError: the ttl is not valid, as for ``put``.
        """
        if not isinstance(node, str):
            raise TypeError(f"a node is a str, not {type(node).__name__}")
        self.node = node
        self._key = key
        self._lock = store.new_lock(key, value=node.encode(), ttl=ttl)
        self._attempts = Attempts(store, key, f"the campaign for {key!r}", ttl)
        self._held: HeldLock | None = None
        self._term: Term | None = None
        self._campaign: Campaign | None = None
        self._waits: set[asyncio.Timeout] = set()
        self._has_resigned = False
        self._is_stopped = False

    def __repr__(self) -> str:
        state = "stopped" if self._is_stopped else "leading" if self.is_leader else "not leading"
        return f"<Candidate {self.node!r} for {self._key!r}, {state}>"

    @property
    def is_leader(self) -> bool:
        """Tell whether this node leads, by its own clock."""
        return self._held is not None and self._held.is_held

    def run_for_election(self) -> Election:
        """Campaign, and tell whether this node leads: False first, then each change, until ``stop``.

        The campaign begins when the iterator is entered or first asked, and lasts as long as the iterator. It goes on
        through outages, refusals and lost leaderships, also while nobody asks the iterator.

        Cost: that of acquiring a lock, for each term.
        """
        return Election(self)

    def lead(self) -> Term:
        """Lead for the time of an ``async with``; it waits to be elected, and gives the held lock.

        When the leadership is lost, or given up by another task, the body is cancelled and LockLostError is raised.
        LockLostError is raised also when the candidate is stopped before it is elected.

        Cancellation: of the wait, nothing is left behind; of the body, the leadership is given up.
        Cost: that of acquiring and releasing a lock.
        """
        return Term(self)

    async def run(self, work: Callable[[HeldLock], Awaitable[T]]) -> T:
        """Campaign, do the work while leading, and campaign again whenever the leadership was lost.

        When the leadership is lost, or given up by another task, work is cancelled; the next campaign begins when it
        has ended. A refusal that may pass (a full server, a missing right) is logged, and tried again.

        Args:
            work: called with the held lock, for guards, each time this node is elected, and awaited.

        Returns:
            What work returned.

        Raises:
            Exception: what work raised while leading.
            LockLostError: the candidate was stopped.

        Cancellation: work is cancelled and awaited, and the leadership given up.
        Cost: that of acquiring a lock, for each term.
        """
        while True:
            was_lost = True
            try:
                async with Term(self, is_patient=True) as held:
                    try:
                        return await work(held)
                    except Exception:
                        was_lost = not held.is_held
                        raise
            except LockLostError:
                if self._is_stopped or not was_lost:
                    raise
            except BaseExceptionGroup as group:
                # A task group tells a refused guard like this.
                if self._is_stopped or not was_lost or group.split(LockLostError)[1] is not None:
                    raise

    async def resign(self) -> None:
        """Give up the leadership, if this node leads; a campaign goes on, behind the other candidates.

        The body of ``lead`` or the work of ``run`` is cancelled first, and awaited, unless it is the one that calls
        this. A campaign goes on half a second later, so that whoever has just begun to campaign comes first.

        Cancellation: the leadership is given up all the same, as soon as such a body has ended.
        Cost: one round trip (ZooKeeper: two).
        """
        held, term = self._held, self._term
        if held is None or not held.is_held:
            return
        self._has_resigned = True
        if term is not None and not term.is_own:
            term.cancel()
            await term.over.wait()
        else:
            if term is not None:
                term.resign()
            self._held = None
            await self._lock.release()

    async def stop(self) -> None:
        """End the campaign and the leadership; iterators end, and so do those that wait to lead.

        Cancellation: the campaign ends and the leadership is given up all the same.
        Cost: one round trip (ZooKeeper: two) when there is something to give up.
        """
        self._is_stopped = True
        for wait in self._waits:
            wait.reschedule(asyncio.get_running_loop().time())
        if self._campaign is not None:
            self._campaign.task.cancel()
            await asyncio.wait({self._campaign.task})
        await self.resign()

    async def _win(self, *, is_patient: bool) -> HeldLock:
        """Wait to be elected; who is patient tries again what the server refuses for a time."""
        if self._is_stopped:
            raise self._stopped()
        if self._term is not None:
            # What leads may still be ending though its leadership is lost.
            raise CannotLockError("the candidate leads already, or its work has not ended yet", key=self._key)
        until_stop = asyncio.timeout(None)
        self._waits.add(until_stop)
        try:
            async with until_stop:
                if self._has_resigned:
                    await asyncio.sleep(_STANDING_BACK)
                    self._has_resigned = False
                while True:
                    try:
                        held = await self._lock.acquire()
                    except StoreError as error:
                        if not is_patient:
                            raise
                        await self._attempts.failed(error)
                    else:
                        self._attempts.succeeded()
                        self._held = held
                        return held
        except TimeoutError as error:
            if not until_stop.expired():
                raise
            raise self._stopped() from error
        finally:
            self._waits.discard(until_stop)

    def _stopped(self) -> LockLostError:
        return LockLostError("the candidate was stopped", key=self._key)

    def _join_campaign(self) -> Campaign | None:
        """Return the campaign that goes on, or begin one; None when the candidate was stopped."""
        if self._is_stopped:
            return None
        if self._campaign is None or self._campaign.is_over:
            self._campaign = Campaign(self, None if self._campaign is None else self._campaign.task)
        self._campaign.elections += 1
        return self._campaign


class Term:
    """The context manager of ``Candidate.lead``."""

    def __init__(self, candidate: Candidate, *, is_patient: bool = False) -> None:
        """Make a term that has not begun."""
        self.over: asyncio.Event = asyncio.Event()
        self._candidate = candidate
        self._is_patient = is_patient
        self._held: HeldLock | None = None
        self._block: WhileHeld | None = None

    @property
    def is_own(self) -> bool:
        """Tell whether the body runs in the present task."""
        return self._block is not None and self._block.is_own

    def cancel(self) -> None:
        """Have the body end as by a loss."""
        if self._block is not None:
            self._block.cancel()

    def resign(self) -> None:
        """Take note that the body itself gives up the leadership, and goes on."""
        if self._block is not None:
            self._block.release()

    async def __aenter__(self) -> HeldLock:
        """Wait until the candidate leads."""
        held = self._held = await self._candidate._win(is_patient=self._is_patient)
        self._candidate._term = self
        self._block = WhileHeld(held)
        await self._block.__aenter__()
        return held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give up the leadership; raise LockLostError when it was lost."""
        assert self._block is not None, "entered"
        try:
            await self._block.__aexit__(kind, error, trace)
        finally:
            await self._give_up()

    async def _give_up(self) -> None:
        candidate = self._candidate
        candidate._term = None
        try:
            if candidate._held is self._held:
                candidate._held = None
                await candidate._lock.release()
        finally:
            self.over.set()


class Campaign:
    """A task that campaigns and leads, until nobody wants it to.

    It does not know its elections: one that nothing else refers to leaves it.

    Attributes:
        task: the task.
        elections: how many want it.
        changed: set at the next change of the leadership; another one takes its place then.
    """

    def __init__(self, candidate: Candidate, before: asyncio.Task[None] | None) -> None:
        """Begin to campaign, once an earlier campaign of the candidate has ended."""
        self.elections: int = 0
        self.changed: asyncio.Event = asyncio.Event()
        self._candidate = candidate
        self._loop = asyncio.get_running_loop()
        self.task: asyncio.Task[None] = start(self._run(before))
        self.task.add_done_callback(self._ended)

    @property
    def is_over(self) -> bool:
        """Tell whether it has ended, or will."""
        return self.task.done() or self.elections == 0

    def leave(self) -> None:
        """Take note that one less wants it; it ends with the last one."""
        self.elections -= 1
        if self.elections == 0:
            self.task.cancel()

    def leave_from_anywhere(self) -> None:
        """Leave it from wherever the garbage collector happens to run."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.leave)

    async def _run(self, before: asyncio.Task[None] | None) -> None:
        candidate = self._candidate
        if before is not None:
            await asyncio.wait({before})
        while True:
            held = await candidate._win(is_patient=True)
            self._tell()
            try:
                await held.wait_lost()
            finally:
                if candidate._held is held:
                    candidate._held = None
                    if held.is_held:
                        await candidate._lock.release()
            self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("the campaign for %r has ended: %s", self._candidate._key, error)
        self._tell()


class Election(ClosableIterator):
    """The iterator of ``Candidate.run_for_election``, and a context manager; its campaign lives as long as it does.

    The campaign ends, and the leadership is given up, when the block is left, by ``aclose``, by the candidate's
    ``stop``, by the store's close, and when nothing refers to the election any more (as after ``break``, or a cancelled
    ``async for``). Elections of one candidate share a campaign, which ends with the last of them. A slow consumer sees
    the latest state, and never the same one twice. Iterating raises what waiting cannot heal, such as
    AccessDeniedError.

    Cancellation: cancelling ``anext`` loses nothing; the next ``anext`` goes on.
    """

    def __init__(self, candidate: Candidate) -> None:
        """Make an election; the campaign begins when it is entered or first asked."""
        self._candidate = candidate
        self._campaign: Campaign | None = None
        self._leave: weakref.finalize[[], Election] | None = None
        self._known: bool | None = None
        self._is_closed = False

    async def __anext__(self) -> bool:
        while (campaign := self._ensure_begun()) is not None:
            # The wait begins before the look: what changes in between is not missed.
            changed = campaign.changed
            is_leader = self._known is not None and self._candidate.is_leader
            if is_leader != self._known:
                self._known = is_leader
                return is_leader
            if campaign.task.done() and not campaign.task.cancelled():
                error = campaign.task.exception()
                assert error is not None, "it ends by nothing else"
                raise copy(error) from error.__cause__
            try:
                await changed.wait()
            except BaseException:
                # Who keeps the cancelled task keeps this frame, and must not keep the campaign by it.
                del self
                raise
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        """Begin the campaign."""
        self._ensure_begun()
        return self

    async def aclose(self) -> None:
        """End the campaign and the leadership; a pending or later ``anext`` ends the iteration.

        Cancellation: they end all the same.
        Cost: one round trip (ZooKeeper: two) when there is something to give up.
        """
        self._is_closed = True
        if self._campaign is not None and self._leave is not None and self._leave.detach() is not None:
            self._campaign.leave()
            self._campaign._tell()
            if self._campaign.is_over:
                await asyncio.wait({self._campaign.task})

    def _ensure_begun(self) -> Campaign | None:
        if self._is_closed or self._candidate._is_stopped:
            return None
        if self._campaign is None:
            self._campaign = self._candidate._join_campaign()
            if self._campaign is not None:
                self._leave = weakref.finalize(self, self._campaign.leave_from_anywhere)
                self._leave.atexit = False
        return self._campaign


class Follower:
    """A node that wants to know who leads.

    Attributes:
        leader: the leader's name, as ``follow_election`` has given it last; None while there is none.
    """

    def __init__(self, store: AsyncStore, key: str) -> None:
        """Make a follower; nothing is sent.

        Args:
            store: where the election is.
            key: the lock's key.

        Raises:
            InvalidKeyError: the key is not valid.
        """
        self._store = store
        self._key = normalize_key(key)
        self.leader: str | None = None

    def follow_election(self) -> Watch[str | None]:
        """Watch who leads: the name of the current leader first, or None, then each change.

        Cost: that of a watch.
        """
        return View(self._store.watch(self._key), self._see, copy)

    def _see(self, pair: KVPair | None) -> str | None:
        self.leader = None if pair is None else pair.value.decode(errors="replace")
        return self.leader

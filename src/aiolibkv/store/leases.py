"""Leases: granting, renewal, and revocation, which is repeated until the server has answered.

A *session* is a lease that the library renews, at each third of its ttl. A session that is not used any more is kept
for a while, so that the next lock of the same ttl needs no new one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiolibkv.errors import NotReachableError, RequestTimeoutError, StoreClosedError, StoreError
from aiolibkv.store.backoff import growing_pauses
from aiolibkv.store.calls import Call, Calls
from aiolibkv.store.driver import Lease, LeaseLostError, Lifetime
from aiolibkv.store.tasks import wait_shielded

T = TypeVar("T")

SHORTEST_TTL = 1.0
"""Seconds; a shorter session would be renewed all the time."""

_RENEWALS_PER_TTL = 3
_LEAST_MARGIN = 0.5
_MARGIN = 0.1
_LONGEST_PAUSE = 5.0
_REVOCATIONS_AT_ONCE = 50
_WAITING_TIME = 0.7
"""Seconds that a caller, or close, waits for revocations; they go on behind a caller, and leases end by themselves."""

_log = logging.getLogger("aiolibkv")

if hasattr(time, "CLOCK_BOOTTIME"):

    def clock() -> float:
        """Return seconds on a clock that nobody sets and that goes on while the machine sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    clock = time.monotonic


class Session:
    """A lease that is renewed until it is ended, or the server has lost it.

    Attributes:
        lease: the lease.
        renewed: when the last request that began or renewed it was sent, by ``clock``.
        is_over: whether it was ended or lost.
        on_lost: called once when the server says that it does not know the lease any more.
        on_agreed: called when the lease's ttl was agreed anew.
        revocation: ends the lease at the server; None before that began.
    """

    def __init__(self, calls: Calls, ttl: float) -> None:
        """Choose the lease's identifier; nothing is sent."""
        self._calls = calls
        self._tasks = calls.new_tasks()
        self.lease: Lease = calls.driver.new_lease(Lifetime(ttl, keep_alive=True))
        self.lease.on_agreed = self._agreed
        self.renewed: float = 0.0
        self.is_over: bool = False
        self.on_lost: Callable[[], None] | None = None
        self.on_agreed: Callable[[], None] | None = None
        self._is_begun = False
        self.revocation: asyncio.Task[None] | None = None

    @property
    def interval(self) -> float:
        """Seconds between two renewals."""
        return self.lease.ttl / _RENEWALS_PER_TTL

    @property
    def deadline(self) -> float:
        """When its owner stops relying on it, by ``clock``, unless it is renewed before."""
        ttl = self.lease.ttl
        return self.renewed + ttl - max(_LEAST_MARGIN, _MARGIN * ttl)

    @property
    def is_good(self) -> bool:
        """Tell whether its owner may rely on it."""
        return not self.is_over and clock() < self.deadline

    async def begin(self, call: Call) -> None:
        """Have the lease granted and start to renew it.

        Raises:
            NotReachableError: it was lost before it was granted, and may be begun again; or no server answered.
        """
        sent = clock()
        try:
            await self._calls.driver.grant(call, self.lease)
        except LeaseLostError as error:
            raise NotReachableError("the server has lost the lease") from error
        self.renewed = sent
        if not self.is_over:
            self._is_begun = True
            self._tasks.start(self._keep_renewed())

    def _agreed(self, sent: float) -> None:
        self.renewed = max(self.renewed, sent)
        if self._is_begun and not self.is_over:
            # The next renewal may be due sooner than before.
            self._tasks.cancel()
            self._tasks.start(self._keep_renewed())
            if self.on_agreed is not None:
                self.on_agreed()

    def lose(self) -> None:
        """Note that the server does not know the lease any more."""
        if not self.is_over:
            self.stop()
            if self.on_lost is not None:
                self.on_lost()

    def stop(self) -> None:
        """Stop renewing it."""
        self.is_over = True
        self._tasks.cancel()

    async def _keep_renewed(self) -> None:
        while True:
            await asyncio.sleep(self.renewed + self.interval - clock())
            if not await retry(self._calls, self._renew, longest_pause=self.interval / 4):
                self.lose()

    async def _renew(self) -> bool:
        sent = 0.0

        async def renew(call: Call) -> bool:
            # Of several attempts the last one counts: those before were not answered.
            nonlocal sent
            sent = clock()
            return await self._calls.driver.renew(call, self.lease)

        alive = await self._calls.run(renew)
        self.renewed = sent
        return alive


class Sessions:
    """The sessions of one store, and the revocation of all its leases."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._used: set[Session] = set()
        self._idle: dict[float, list[Session]] = {}
        self._timers: dict[Session, asyncio.TimerHandle] = {}
        self._revocations = calls.new_tasks()
        self._retries = asyncio.Semaphore(_REVOCATIONS_AT_ONCE)
        self._is_closed = False

    @property
    def idle(self) -> int:
        """How many sessions are kept though nobody uses them."""
        return len(self._timers)

    async def take(self, ttl: float, path: str | None = None) -> Session:
        """Return a session of some ttl for the caller alone: one that was kept, or a new one.

        When it cannot be begun, or the caller gives up, it is ended: the server may have begun it all the same.
        """
        while idle := self._idle.get(ttl):
            session = idle.pop()
            self._timers.pop(session).cancel()
            if session.is_good:
                self._used.add(session)
                return session
            self.end(session)
        session = Session(self._calls, ttl)
        self._used.add(session)
        try:
            await self._calls.run(session.begin, path)
        except BaseException:
            self.end(session)
            raise
        return session

    def adopt(self, session: Session) -> None:
        """Have close end a session that was begun elsewhere."""
        self._used.add(session)

    def give_back(self, ttl: float, session: Session) -> None:
        """Keep a session without any keys for the next ``take`` of that ttl."""
        self._used.discard(session)
        if self._calls.is_closed or not session.is_good:
            self.end(session)
            return
        session.on_lost = lambda: self._forget(ttl, session)
        self._idle.setdefault(ttl, []).append(session)
        self._timers[session] = self._calls.call_later(session.lease.ttl, self._expire, ttl, session)

    def end(self, session: Session) -> asyncio.Task[None]:
        """Begin to end a session, with the keys under it."""
        session.stop()
        self._used.discard(session)
        if session.revocation is None:
            session.revocation = self.revoke(session.lease)
        return session.revocation

    async def end_and_wait(self, session: Session) -> None:
        """End a session, also when the caller is cancelled meanwhile; do not wait long for a slow server."""
        await wait_shielded(self.end(session), _WAITING_TIME)

    def revoke(self, lease: Lease) -> asyncio.Task[None]:
        """Begin to revoke a lease; while the store is open that goes on until the server has answered."""
        return self._revocations.start(self._revoke(lease))

    async def close(self) -> None:
        """End all sessions, as far as the servers answer in time."""
        for timer in self._timers.values():
            timer.cancel()
        for session in (*self._used, *(session for idle in self._idle.values() for session in idle)):
            self.end(session)
        self._idle.clear()
        await self._revocations.settle(_WAITING_TIME)
        self._is_closed = True
        await self._revocations.close()

    def _expire(self, ttl: float, session: Session) -> None:
        self._forget(ttl, session)
        self.end(session)

    def _forget(self, ttl: float, session: Session) -> None:
        if timer := self._timers.pop(session, None):
            timer.cancel()
            self._idle[ttl].remove(session)
            if not self._idle[ttl]:
                del self._idle[ttl]

    async def _revoke(self, lease: Lease) -> None:
        calls = self._calls

        async def revoke(call: Call) -> None:
            await calls.driver.revoke(call, lease)

        if self._is_closed:
            return
        breaks = growing_pauses(longest=_LONGEST_PAUSE)
        try:
            try:
                await calls.run_while_closing(revoke)
                return
            except StoreError as error:
                self._note(lease, error)
            while not calls.is_closed:
                await asyncio.sleep(next(breaks))
                async with self._retries:
                    try:
                        await calls.run_while_closing(revoke)
                        calls.outages.healed(lease)
                        return
                    except StoreError as error:
                        self._note(lease, error)
        finally:
            calls.outages.ended(lease)

    def _note(self, lease: Lease, error: StoreError) -> None:
        _log.debug("%s: a lease is not revoked yet: %s", self._calls.driver.name, error)
        if not self._calls.is_closed:
            self._calls.outages.failed(lease, error)


async def retry(
    calls: Calls,
    attempt: Callable[[], Awaitable[T]],
    *,
    waiter: object = None,
    longest_pause: float = _LONGEST_PAUSE,
    only_outages: bool = False,
) -> T:
    """Repeat a call until the server does it, with growing pauses; the log is told.

    Args:
        calls: of the store.
        attempt: makes the call.
        waiter: who waits, for ``calls.outages``.
        longest_pause: seconds.
        only_outages: whether a refusal is raised, not met by another attempt.

    Raises:
        StoreClosedError: the store was closed meanwhile.
        StoreError: the server refused, if only outages are outlasted.
    """
    waiter = object() if waiter is None else waiter
    breaks = growing_pauses(longest=min(longest_pause, _LONGEST_PAUSE))
    try:
        while True:
            calls.outages.waits(waiter)
            try:
                result = await attempt()
            except StoreClosedError:
                raise
            except StoreError as error:
                if only_outages and not isinstance(error, NotReachableError | RequestTimeoutError):
                    raise
                calls.outages.failed(waiter, error)
            else:
                calls.outages.healed(waiter)
                return result
            await asyncio.sleep(next(breaks))
    finally:
        calls.outages.ended(waiter)

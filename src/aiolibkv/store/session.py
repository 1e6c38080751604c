"""A lease that is kept alive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from aiolibkv.errors import NotReachableError, RequestTimeoutError, StoreClosedError, StoreError
from aiolibkv.store.driver import Call, Lease, Lifetime
from aiolibkv.store.tasks import Tasks

if TYPE_CHECKING:
    from aiolibkv.store.base import BaseStore

T = TypeVar("T")

_RENEWALS_PER_TTL = 3

_log = logging.getLogger("aiolibkv")


class Session:
    """A lease that is renewed at a third of its ttl until it is ended, or the server has lost it.

    Attributes:
        lease: the lease.
        renewed: when the last request that began or renewed it was sent, in seconds of the loop's clock.
        is_over: whether it was ended or lost.
        on_lost: called once when the server says that it does not know the lease any more.
    """

    def __init__(self, store: BaseStore, ttl: float, on_lost: Callable[[], None]) -> None:
        """Choose the lease's identifier; nothing is sent.

        Args:
            store: whose backend keeps the lease.
            ttl: seconds, as wanted.
            on_lost: called once when the server says that it does not know the lease any more.
        """
        self._store = store
        self.on_lost = on_lost
        self._tasks = Tasks()
        self._revocation: asyncio.Task[None] | None = None
        self.lease: Lease = store._lease(Lifetime(ttl, keep_alive=True))
        self.renewed = 0.0
        self.is_over = False

    async def begin(self, call: Call) -> None:
        """Have the lease granted and start to renew it."""
        sent = asyncio.get_running_loop().time()
        await self._store._grant(call, self.lease)
        self.renewed = sent
        if not self.is_over:
            self._tasks.start(self._renew())

    def lose(self) -> None:
        """Take note that the server does not know the lease any more."""
        if not self.is_over:
            self.is_over = True
            self._tasks.cancel()
            self.on_lost()

    def end(self) -> asyncio.Task[None]:
        """Stop renewing and have the lease revoked; the task ends when that is done, or was given up."""
        if self._revocation is None:
            self.is_over = True
            self._tasks.cancel()
            self._revocation = asyncio.get_running_loop().create_task(revoke(self._store, self.lease))
        return self._revocation

    @property
    def interval(self) -> float:
        """Seconds between two renewals."""
        return self.lease.ttl / _RENEWALS_PER_TTL

    async def _renew(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self.renewed + self.interval - clock())
            if not await outlast(self._renew_once, self.interval):
                self.lose()

    async def _renew_once(self) -> bool:
        store, lease, clock = self._store, self.lease, asyncio.get_running_loop().time
        sent = 0.0

        async def renew(call: Call) -> bool:
            # Of several attempts the last one counts: those before were not answered.
            nonlocal sent
            sent = clock()
            return await store._renew(call, lease)

        alive = await store._run(renew)
        self.renewed = sent
        return alive


async def outlast(attempt: Callable[[], Awaitable[T]], pause: float) -> T:
    """Repeat a call until the server does it.

    Args:
        attempt: the call; an outage takes all its time, so that it may be made again at once.
        pause: seconds before it is made again when the server refused it.

    Raises:
        StoreClosedError: the store was closed meanwhile.
    """
    while True:
        try:
            return await attempt()
        except (NotReachableError, RequestTimeoutError) as error:
            _log.debug("tried again: %s", error)
        except StoreClosedError:
            raise
        except StoreError as error:
            _log.warning("tried again in %.3g s: %s", pause, error)
            await asyncio.sleep(pause)


async def revoke(store: BaseStore, lease: Lease) -> None:
    """Revoke a lease, also while the store is closed; if that fails for request_timeout, it is left to expire."""
    deadline = asyncio.timeout(store.config.request_timeout)
    try:
        await store._perform(lambda call: store._revoke(call, lease), None, deadline)
    except StoreError as error:
        _log.debug("a lease was left to expire: %s", error)

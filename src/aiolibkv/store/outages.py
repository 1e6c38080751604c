"""What waits for the server, told in the log: once per outage, and once more when it is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from aiolibkv.errors import NotReachableError, RequestTimeoutError, StoreError

TOLD_AFTER = 5.0
"""Seconds that something waits before the log says so."""

_log = logging.getLogger("aiolibkv")


@dataclass(eq=False, slots=True)
class _Wait:
    """One that waits: since when, by the loop's clock, and the last error that it met."""

    since: float
    error: StoreError | None


@dataclass(eq=False, slots=True)
class _Outage:
    """Those that wait for the same reason, in the order in which they began to; and whether the log has it."""

    timer: asyncio.TimerHandle
    waiting: dict[object, _Wait] = field(default_factory=dict)
    told_since: float | None = None


class Outages:
    """The outages of one store: servers that cannot be reached are one, each text of a refusal another."""

    def __init__(self, place: Callable[[], str]) -> None:
        """Begin without any.

        Args:
            place: names the backend and the endpoint.
        """
        self._place = place
        self._outages: dict[str, _Outage] = {}
        self._reason_of: dict[object, str] = {}

    def waits(self, waiter: object) -> None:
        """Take note that someone waits for a first answer, or for the next one."""
        if waiter not in self._reason_of:
            self._join(waiter, "", None)

    def failed(self, waiter: object, error: StoreError) -> None:
        """Take note that someone met an error and will try again."""
        is_outage = isinstance(error, NotReachableError | RequestTimeoutError)
        self._join(waiter, "" if is_outage else error.message, error)

    def healed(self, waiter: object) -> None:
        """Take note that someone goes on."""
        self._leave(waiter, is_over=True)

    def ended(self, waiter: object) -> None:
        """Take note that someone waits no longer, for whatever reason."""
        self._leave(waiter, is_over=False)

    def last_error(self, waiter: object) -> StoreError | None:
        """Return the last error that someone who waits met."""
        reason = self._reason_of.get(waiter)
        return None if reason is None else self._outages[reason].waiting[waiter].error

    def close(self) -> None:
        """Forget all."""
        for outage in self._outages.values():
            outage.timer.cancel()
        self._outages.clear()
        self._reason_of.clear()

    def _join(self, waiter: object, reason: str, error: StoreError | None) -> None:
        since = asyncio.get_running_loop().time()
        if self._reason_of.get(waiter, reason) != reason:
            since = self._outages[self._reason_of[waiter]].waiting[waiter].since
            self._leave(waiter, is_over=False)
        outage = self._outages.get(reason)
        if outage is None:
            outage = self._outages[reason] = _Outage(self._set_timer(since, reason))
        wait = outage.waiting.setdefault(waiter, _Wait(since, error))
        wait.error = error or wait.error
        self._reason_of[waiter] = reason

    def _leave(self, waiter: object, *, is_over: bool) -> None:
        reason = self._reason_of.pop(waiter, None)
        if reason is None:
            return
        outage = self._outages[reason]
        del outage.waiting[waiter]
        if outage.waiting:
            return
        del self._outages[reason]
        outage.timer.cancel()
        if outage.told_since is not None and is_over:
            seconds = asyncio.get_running_loop().time() - outage.told_since
            _log.info("%s: goes on, after %.1f s", self._place(), seconds)

    def _set_timer(self, since: float, reason: str) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_at(since + TOLD_AFTER, self._look, reason)

    def _look(self, reason: str) -> None:
        outage = self._outages[reason]
        first = next(iter(outage.waiting.values()))
        seconds = asyncio.get_running_loop().time() - first.since
        if seconds < TOLD_AFTER:
            outage.timer = self._set_timer(first.since, reason)
            return
        outage.told_since = first.since
        error = next((wait.error for wait in reversed(outage.waiting.values()) if wait.error is not None), None)
        why = "no answer yet" if error is None else str(error)
        _log.warning("%s: has waited for %.0f s and tries again and again: %s", self._place(), seconds, why)

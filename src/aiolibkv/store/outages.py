"""The log of outages: one line when something has waited for the server too long, one when it goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field

from aiolibkv.errors import NotReachableError, RequestTimeoutError, StoreError

TOLD_AFTER = 5.0
"""Seconds that something waits before the log says so."""

_log = logging.getLogger("aiolibkv")


@dataclass(eq=False, slots=True)
class _Wait:
    """A waiter: since when it waits, by the loop's clock, and the last error that it got."""

    since: float
    error: StoreError | None


@dataclass(eq=False, slots=True)
class _Outage:
    """All that wait for one reason.

    Attributes:
        waiting: the waiters, in the order in which they began to wait.
        failing_since: when the first of those that got an error began, if nobody was answered since.
        error: the last error that one of them got.
        noted: the last time that a waiter began to wait or got an error.
        told_since: the beginning of the outage as the log has it; None before the log has a line.
        timer: when the outage is looked at again.
    """

    waiting: dict[object, _Wait] = field(default_factory=dict)
    failing_since: float | None = None
    error: StoreError | None = None
    noted: float = 0.0
    told_since: float | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def since(self) -> float:
        """When it began."""
        oldest = next((wait.since for wait in self.waiting.values()), self.noted)
        return oldest if self.failing_since is None else min(oldest, self.failing_since)

    def note(self, error: StoreError | None, since: float) -> None:
        """Note that a waiter began to wait, or the error that it got."""
        self.noted = asyncio.get_running_loop().time()
        if error is not None:
            # That there was no answer tells less than what was met before.
            if self.failing_since is None or not isinstance(error, RequestTimeoutError):
                self.error = error
            self.failing_since = since if self.failing_since is None else self.failing_since


class Outages:
    """The outages of one store.

    All that cannot reach a server belong to one outage. All that are refused with the same text belong to one, too. A
    call that gives up and is made again belongs to the same outage, until some call is answered or none was made for a
    while.

    Attributes:
        context: the context variables in which the log is written; until it is set, those of the code that waits.
    """

    def __init__(self, place: Callable[[], str], longest_call: float) -> None:
        """Begin without any outage.

        Args:
            place: names the backend and the endpoint.
            longest_call: seconds after which a call without an answer has failed.
        """
        self._place = place
        self._patience = longest_call + TOLD_AFTER
        self._outages: dict[str, _Outage] = {}
        self._reason_of: dict[object, str] = {}
        self.context: Context | None = None

    @property
    def are_any(self) -> bool:
        """Tell whether anything waits, or a call has failed lately."""
        return bool(self._outages)

    @property
    def reason(self) -> NotReachableError | None:
        """Why no server could be reached last, if that is known and nobody was answered since."""
        outage = self._outages.get("")
        if outage is None or outage.failing_since is None or not isinstance(outage.error, NotReachableError):
            return None
        return outage.error

    def waits(self, waiter: object) -> None:
        """Note that a waiter waits for its first answer, or for the next one."""
        if waiter not in self._reason_of:
            self._join(waiter, "", None)

    def failed(self, waiter: object, error: StoreError) -> None:
        """Note that a waiter got an error and will try again."""
        is_outage = isinstance(error, NotReachableError | RequestTimeoutError)
        self._join(waiter, "" if is_outage else error.message, error)

    def call_failed(self, error: StoreError, since: float) -> None:
        """Note that a call, or one attempt of it, reached no server.

        Args:
            error: what was raised.
            since: when it began, by the loop's clock.
        """
        outage = self._outages.setdefault("", _Outage())
        outage.note(error, since)
        if outage.told_since is None and outage.noted >= outage.since + TOLD_AFTER:
            self._tell(outage)
        self._set_timer("", outage)

    def healed(self, waiter: object) -> None:
        """Note that a waiter was answered and goes on."""
        if (reason := self._leave(waiter)) is not None:
            self._answered(reason)

    def call_answered(self) -> None:
        """Note that a server answered a call."""
        if "" in self._outages:
            self._answered("")

    def ended(self, waiter: object) -> None:
        """Note that a waiter waits no longer, for whatever reason."""
        if (reason := self._leave(waiter)) is None:
            return
        outage = self._outages[reason]
        if not outage.waiting and outage.failing_since is None and outage.told_since is None:
            self._forget(reason)
        else:
            self._set_timer(reason, outage)

    def last_error(self, waiter: object) -> StoreError | None:
        """Return the last error that a waiter got."""
        reason = self._reason_of.get(waiter)
        return None if reason is None else self._outages[reason].waiting[waiter].error

    def close(self) -> None:
        """Forget all."""
        for reason in tuple(self._outages):
            self._forget(reason)
        self._reason_of.clear()

    def _join(self, waiter: object, reason: str, error: StoreError | None) -> None:
        since = asyncio.get_running_loop().time()
        if (before := self._reason_of.get(waiter, reason)) != reason:
            since = self._outages[before].waiting[waiter].since
            self.ended(waiter)
        outage = self._outages.setdefault(reason, _Outage())
        wait = outage.waiting.setdefault(waiter, _Wait(since, error))
        wait.error = error or wait.error
        outage.note(error, wait.since)
        self._reason_of[waiter] = reason
        if len(outage.waiting) == 1:
            self._set_timer(reason, outage)

    def _leave(self, waiter: object) -> str | None:
        reason = self._reason_of.pop(waiter, None)
        if reason is not None:
            del self._outages[reason].waiting[waiter]
        return reason

    def _answered(self, reason: str) -> None:
        outage = self._outages[reason]
        outage.failing_since = None
        if outage.waiting:
            return
        self._forget(reason)
        if outage.told_since is not None:
            seconds = asyncio.get_running_loop().time() - outage.told_since
            _log.info("%s: goes on, after %.1f s", self._place(), seconds)

    def _forget(self, reason: str) -> None:
        outage = self._outages.pop(reason)
        if outage.timer is not None:
            outage.timer.cancel()

    def _set_timer(self, reason: str, outage: _Outage) -> None:
        """Look at an outage again when the log is due, or, if nothing waits, when it can be forgotten."""
        if outage.timer is not None:
            outage.timer.cancel()
        when = outage.since + TOLD_AFTER if outage.waiting else outage.noted + self._patience
        if not outage.waiting or outage.told_since is None:
            outage.timer = asyncio.get_running_loop().call_at(when, self._look, reason, context=self.context)

    def _look(self, reason: str) -> None:
        outage = self._outages[reason]
        if not outage.waiting:
            self._forget(reason)
        elif asyncio.get_running_loop().time() >= outage.since + TOLD_AFTER:
            self._tell(outage)
        else:
            self._set_timer(reason, outage)

    def _tell(self, outage: _Outage) -> None:
        outage.told_since = outage.since
        seconds = asyncio.get_running_loop().time() - outage.since
        why = "no answer yet" if outage.error is None else str(outage.error)
        _log.warning("%s: has waited for %.0f s and tries again and again: %s", self._place(), seconds, why)

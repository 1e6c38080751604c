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
    """Those that wait for the same reason, in the order in which they began to.

    Attributes:
        waiting: they, by what they are.
        failing_since: when the first of them that met an error began, if nobody was answered since.
        error: the last error.
        noted: when somebody began or ceased to wait, or met an error, last.
        told_since: since when, by what the log has.
        timer: looks at it again.
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
        """Take note of who began to wait, or of the error that it met."""
        self.noted = asyncio.get_running_loop().time()
        if error is not None:
            # That there was no answer tells less than what was met before.
            if self.failing_since is None or not isinstance(error, RequestTimeoutError):
                self.error = error
            self.failing_since = since if self.failing_since is None else self.failing_since


class Outages:
    """The outages of one store: servers that cannot be reached are one, each text of a refusal another.

    Who gives up and begins again is in the same outage as before, until somebody is answered or nobody has tried for a
    while.
    """

    def __init__(self, place: Callable[[], str], longest_call: float) -> None:
        """Begin without any.

        Args:
            place: names the backend and the endpoint.
            longest_call: seconds that a call may take before it is known that it has failed.
        """
        self._place = place
        self._patience = longest_call + TOLD_AFTER
        self._outages: dict[str, _Outage] = {}
        self._reason_of: dict[object, str] = {}

    @property
    def are_any(self) -> bool:
        """Tell whether anybody waits, or has failed lately."""
        return bool(self._outages)

    @property
    def reason(self) -> NotReachableError | None:
        """Why no server could be reached last, if that is known and nobody was answered since."""
        outage = self._outages.get("")
        if outage is None or outage.failing_since is None or not isinstance(outage.error, NotReachableError):
            return None
        return outage.error

    def waits(self, waiter: object) -> None:
        """Take note that someone waits for a first answer, or for the next one."""
        if waiter not in self._reason_of:
            self._join(waiter, "", None)

    def failed(self, waiter: object, error: StoreError) -> None:
        """Take note that someone met an error and will try again."""
        is_outage = isinstance(error, NotReachableError | RequestTimeoutError)
        self._join(waiter, "" if is_outage else error.message, error)

    def met(self, error: StoreError, since: float) -> None:
        """Take note that a call found no server; whether it is made again is its caller's matter.

        Args:
            error: what it met.
            since: when it began.
        """
        outage = self._outages.setdefault("", _Outage())
        outage.note(error, since)
        if outage.told_since is None and outage.noted >= outage.since + TOLD_AFTER:
            self._tell(outage)
        self._set_timer("", outage)

    def healed(self, waiter: object) -> None:
        """Take note that someone goes on."""
        if (reason := self._leave(waiter)) is not None:
            self._answered(reason)

    def answered(self) -> None:
        """Take note that a server answered a call."""
        if "" in self._outages:
            self._answered("")

    def ended(self, waiter: object) -> None:
        """Take note that someone waits no longer, for whatever reason."""
        if (reason := self._leave(waiter)) is None:
            return
        outage = self._outages[reason]
        if not outage.waiting and outage.failing_since is None and outage.told_since is None:
            self._forget(reason)
        else:
            self._set_timer(reason, outage)

    def last_error(self, waiter: object) -> StoreError | None:
        """Return the last error that someone who waits met."""
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
        """Look again when it is to be told, or, if nobody waits, forgotten."""
        if outage.timer is not None:
            outage.timer.cancel()
        when = outage.since + TOLD_AFTER if outage.waiting else outage.noted + self._patience
        if not outage.waiting or outage.told_since is None:
            outage.timer = asyncio.get_running_loop().call_at(when, self._look, reason)

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

"""Calls to a driver, in one place for all of the store: opening and closing, deadlines, retries, located errors."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from threading import get_ident
from typing import Any, TypeVar

from aiolibkv.config import Config
from aiolibkv.errors import (
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    NotReachableError,
    RequestTimeoutError,
    StoreClosedError,
    StoreError,
)
from aiolibkv.events import Connected, Disconnected, Event
from aiolibkv.starting import start
from aiolibkv.store.backoff import growing_pauses
from aiolibkv.store.driver import Driver, OwnCall
from aiolibkv.store.outages import Outages
from aiolibkv.store.paths import Paths
from aiolibkv.store.tasks import Tasks, prepare, wait_shielded
from aiolibkv.store.tls import refuses_certificate

T = TypeVar("T")

_DISCONNECTING_TIME = 0.6
_NOT_OPEN = "the store is not open: write 'async with store:' or 'await store.open()' first"

_ANSWERS = KeyExistsError, KeyModifiedError, KeyNotFoundError  # only a server that is there can tell

_log = logging.getLogger("aiolibkv")


class _Forks:
    """Counts the forks that lie between this process and the one that imported the library."""

    number = 0

    @classmethod
    def count(cls) -> None:
        """Note, in the new process, that it was forked."""
        cls.number += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Forks.count)


class Call(OwnCall):
    """A call under way; ``driver.Call`` is the part of it that drivers use.

    It ends at its deadline, or when the store is closed. After that a driver cannot extend it any more.
    """

    __slots__ = (
        "_cancelling",
        "_deadlines",
        "_furthest",
        "_is_taken_back",
        "_page",
        "expired",
        "task",
        "when",
    )

    def __init__(self, deadlines: Deadlines, task: asyncio.Task[Any], when: float) -> None:
        super().__init__()
        self._deadlines = deadlines
        self._cancelling = task.cancelling()
        self._page = self._furthest = 0
        self.task: asyncio.Task[Any] = task
        self.when: float = when
        self._is_taken_back = False
        self.expired: bool = False

    def extend(self) -> None:
        """See ``driver.Call``."""
        self._page += 1
        if self._page > self._furthest:
            self._furthest = self._page
            self._deadlines.extend(self)

    def rewind(self) -> None:
        """See ``driver.Call``."""
        self._page = 0

    def expire(self) -> None:
        """Cancel the call, because its time is over."""
        self.expired = True
        self.task.cancel()

    def take_back(self) -> bool:
        """Take back the cancellation by ``expire``, if there was one; tell whether nobody else cancelled the task."""
        if not self.expired or self._is_taken_back:
            return False
        self._is_taken_back = True
        return self.task.uncancel() <= self._cancelling


class Deadlines:
    """The deadlines of a store's calls, which end in the order in which they began: one timer for all of them."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._calls: dict[Call, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        # An empty one: a timer has no use for the context of the call that sets it, and would keep it.
        self._context = contextvars.Context()

    def begin(self) -> Call:
        """Begin a call of the current task."""
        task = asyncio.current_task(self._loop)
        assert task is not None, "a call is made by a task"
        when = self._clock() + self._limit
        call = Call(self, task, when)
        self._calls[call] = None
        if self._timer is None:
            self._timer = self._loop.call_at(when, self._expire_due, context=self._context)
        return call

    def extend(self, call: Call) -> None:
        """Give a call the whole time again, unless it is over."""
        if self._calls.pop(call, call) is None:
            call.when = self._clock() + self._limit
            self._calls[call] = None

    def end(self, call: Call) -> None:
        """Forget a call."""
        self._calls.pop(call, None)

    def expire_all(self) -> None:
        """End all calls, because the store is closed."""
        for call in self._calls:
            call.expire()
        self._calls.clear()
        self.stop()

    def stop(self) -> None:
        """Stop the timer, because there will be no more calls."""
        if self._timer is not None:
            self._timer.cancel()

    def _expire_due(self) -> None:
        self._timer = None
        now = self._clock()
        for call in tuple(self._calls):
            if call.when > now:
                self._timer = self._loop.call_at(call.when, self._expire_due, context=self._context)
                return
            del self._calls[call]
            call.expire()


class Calls:
    """Carries out calls to a driver, while the store is open.

    Attributes:
        driver: the driver.
        config: its settings.
        paths: names of keys and their paths.
        outages: what waits for the server, for the log.
        is_closed: whether the store was closed, or is being closed.
        listener: is given the events; None when nobody listens.
        context: the context variables with which the store was entered, for all that goes on behind calls.
    """

    def __init__(self, driver: Driver[Any]) -> None:
        self.driver: Driver[Any] = driver
        self.config: Config = driver.config
        self.paths: Paths = Paths(self.config.prefix, driver.check_path)
        self.outages: Outages = Outages(
            lambda: f"{driver.name} at {driver.hosts()}" if driver.hosts() else driver.name, self.config.request_timeout
        )
        self.listener: Callable[[Event], object] | None = self.config.listener
        self.is_closed: bool = False
        self.context: contextvars.Context | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_running: Callable[[], bool] = bool
        self._thread = 0
        self._forks = -1
        self._is_entered = False
        self._is_open = False
        self._deadlines: Deadlines | None = None
        self._waiting: set[asyncio.Timeout] = set()
        self._closing: asyncio.Task[None] | None = None
        if self.listener is not None:
            driver.observer = self

    # -- open and closed -------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """The state of the store in a word, for its repr."""
        return "closed" if self.is_closed else "open" if self._is_open else "not open"

    def check_open(self) -> None:
        """Raise an error unless the store is open in this event loop and process.

        Raises:
            StoreClosedError: it is not open any more, or not yet.
            StoreError: it was opened in another event loop, or before a fork.
        """
        if self.is_closed or not self._is_open:
            raise self.located(StoreClosedError("" if self.is_closed else _NOT_OPEN))
        # What runs in that thread is this loop; to ask which one it is takes a system call on Python 3.11.
        if self._thread != get_ident() or not self._is_running() or self._forks != _Forks.number:
            self.check_home()

    async def open(self) -> None:
        """Connect; try again and again until connection_timeout is over.

        Raises:
            NotReachableError: no server could be reached in that time.
            StoreClosedError: the store was closed before or meanwhile.
            StoreError: what cannot heal, at once.
        """
        if self.is_closed:
            raise self.located(StoreClosedError("the store is closed and cannot be opened again; make another one"))
        if self._is_entered:
            raise self.located(StoreError("the store is entered already; it can be entered once"))
        self._loop, self._forks, self._is_entered = self._running_loop(), _Forks.number, True
        self._is_running, self._thread = self._loop.is_running, get_ident()
        prepare()
        self.context = self.outages.context = contextvars.copy_context()
        self._deadlines = Deadlines(self.config.request_timeout)
        limit = self.config.connection_timeout
        try:
            await self.within(limit, self._connect)
        except BaseException as error:
            self.outages.ended(self)
            try:
                await wait_shielded(start(self._disconnect()))
            finally:
                self._is_entered = False
            if isinstance(error, StoreError):
                self.located(error)
            raise
        self._is_open = True

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        try:
            return asyncio.get_running_loop()
        except RuntimeError as error:
            raise self.located(
                StoreError("a store runs in asyncio's event loop, not in trio or without one")
            ) from error

    async def within(self, limit: float | None, work: Callable[[], Awaitable[T]]) -> T:
        """Await some work for at most limit seconds, and until the store is closed.

        Raises:
            StoreClosedError: the store was closed.
            NotReachableError: the time is over.
        """
        timeout = asyncio.timeout(limit)
        try:
            async with timeout:
                self._waiting.add(timeout)
                try:
                    return await work()
                finally:
                    self._waiting.discard(timeout)
        except TimeoutError as error:
            if not timeout.expired():
                raise
            if self.is_closed:
                raise self.located(StoreClosedError()) from error
            last = self.outages.last_error(self)
            late = f"no server answered within {limit:g} s" + (f": {last.message}" if last is not None else "")
            raise self.located(NotReachableError(late)) from (last or error)

    async def _connect(self) -> None:
        breaks = growing_pauses()
        self.outages.waits(self)
        while True:
            try:
                await self.driver.connect()
            except NotReachableError as error:
                if refuses_certificate(error):
                    raise
                self.outages.failed(self, error)
            else:
                self.outages.healed(self)
                return
            await self._disconnect()
            await asyncio.sleep(next(breaks))

    async def close(self, end: Callable[[], None], shut_down: Callable[[], Awaitable[None]]) -> None:
        """End all calls, have the parts of the store end, and disconnect; a second call waits for the first.

        Args:
            end: wakes all that wait; it does not wait itself.
            shut_down: ends the parts of the store, while the driver is still connected.
        """
        if not self._is_entered:
            self.is_closed = True
            return
        self.check_home()
        if self._closing is None:
            self.is_closed = True
            now = asyncio.get_running_loop().time()
            for timeout in self._waiting:
                timeout.reschedule(now)
            assert self._deadlines is not None, "entered"
            self._deadlines.expire_all()
            end()
            self._closing = start(self._shut_down(shut_down))
        await wait_shielded(self._closing)

    async def _shut_down(self, shut_down: Callable[[], Awaitable[None]]) -> None:
        await shut_down()
        await self._disconnect()
        self.outages.close()

    async def _disconnect(self) -> None:
        try:
            async with asyncio.timeout(_DISCONNECTING_TIME):
                await self.driver.disconnect()
        except TimeoutError:
            _log.debug("%s: the connection was dropped, not closed", self.driver.name)

    def check_home(self) -> None:
        """Raise StoreError in another event loop than the store was opened in, or after a fork."""
        if self._forks != _Forks.number:
            raise self.located(StoreError("the store was opened before a fork; open one in the new process"))
        if asyncio.get_running_loop() is not self._loop:
            raise self.located(StoreError("the store belongs to another event loop; open one in this event loop"))

    # -- calls -----------------------------------------------------------------------------------------------------

    def run(
        self, operation: Callable[[Call], Awaitable[T]], path: str | None = None, *, is_repeated: bool = True
    ) -> Coroutine[Any, Any, T]:
        """Carry out a call, when awaited, within request_timeout, and before the store is closed.

        It is repeated while it raises NotReachableError and certainly was not applied.

        Args:
            operation: calls the driver.
            path: what it is about, for errors.
            is_repeated: False makes it one attempt.

        Raises:
            StoreClosedError: the store is closed, or was meanwhile.
            RequestTimeoutError: the time is over and the last attempt had no answer.
            NotReachableError: the time is over and the last attempt failed so, or the write is in doubt.
        """
        self.check_open()
        assert self._deadlines is not None, "open"
        return self._perform(operation, path, self._deadlines, is_repeated=is_repeated)

    async def run_while_closing(self, operation: Callable[[Call], Awaitable[T]]) -> T:
        """Carry out a call as ``run`` does, also while the store is being closed.

        Its success ends no outage in the log: a lease that was never granted is given back without asking a server.
        """
        deadlines = Deadlines(self.config.request_timeout)
        try:
            return await self._perform(operation, None, deadlines)
        finally:
            deadlines.stop()

    async def _perform(
        self,
        operation: Callable[[Call], Awaitable[T]],
        path: str | None,
        deadlines: Deadlines,
        *,
        is_repeated: bool = True,
    ) -> T:
        call = deadlines.begin()
        unreachable: NotReachableError | None = None
        breaks: Iterator[float] | None = None
        try:
            while True:
                try:
                    result = await operation(call)
                    self._note_answered(deadlines)
                    return result
                except NotReachableError as error:
                    unreachable = error
                    self._note_failed(error, call)
                    if call.maybe_applied or not is_repeated:
                        break
                breaks = breaks or growing_pauses()
                await asyncio.sleep(next(breaks))
                call.rewind()
        except asyncio.CancelledError:
            if not call.take_back():
                raise
        except StoreError as error:
            if isinstance(error, _ANSWERS):
                self._note_answered(deadlines)
            error.maybe_applied = error.maybe_applied or call.maybe_applied
            self.located(error, path)
            raise
        finally:
            deadlines.end(call)
            if call.expired:
                call.take_back()
        late = unreachable or self.timed_out()
        failure = StoreClosedError() if self.is_closed and call.expired else late
        failure.maybe_applied = call.maybe_applied
        self.located(failure, path)
        self._note_failed(failure, call)
        raise failure from failure.__cause__

    def _note_answered(self, deadlines: Deadlines) -> None:
        if self.outages.are_any and deadlines is self._deadlines:
            self.outages.call_answered()

    def _note_failed(self, error: StoreError, call: Call) -> None:
        if not self.is_closed:
            self.outages.call_failed(error, call.when - self.config.request_timeout)

    def timed_out(self) -> RequestTimeoutError:
        """Return what to raise when request_timeout is over, with the reason of the outage if there is a known one."""
        text = f"no answer within {self.config.request_timeout:g} s"
        if (reason := self.outages.reason) is None:
            return RequestTimeoutError(text)
        error = RequestTimeoutError(f"{text}; before that: {reason.message}")
        error.__cause__ = reason
        return error

    # -- what goes on behind the calls -------------------------------------------------------------------------------

    def new_tasks(self) -> Tasks:
        """Return an owner of tasks; they run in the context variables with which the store was entered."""
        return Tasks(lambda: self.context)

    def call_later(self, delay: float, callback: Callable[..., object], *arguments: object) -> asyncio.TimerHandle:
        """Call something after delay seconds, in the context variables with which the store was entered."""
        assert self._loop is not None, "open"
        return self._loop.call_later(delay, callback, *arguments, context=self.context)

    def located(self, error: StoreError, path: str | None = None) -> StoreError:
        """Fill in where an error happened, as far as it is not known yet, and return it."""
        if error.backend is None and error.key is not None:
            error.key = self.paths.name(error.key)
        error.locate(self.driver.name, self.driver.hosts(), None if path is None else self.paths.name(path))
        return error

    # -- events ----------------------------------------------------------------------------------------------------

    def tell(self, kind: type[Event], *values: object, endpoint: str | None = None) -> None:
        """Give an event to the listener, if there is one; what it raises is logged.

        Args:
            kind: of the event.
            values: of its fields after backend and endpoint.
            endpoint: the server, if another one than is spoken to.
        """
        if self.listener is None:
            return
        try:
            self.listener(kind(self.driver.name, endpoint or self.driver.hosts(), *values))
        except Exception:  # noqa: BLE001 - whatever a listener raises changes nothing
            _log.exception("%s: the listener failed", self.driver.name)

    def connected(self, endpoint: str) -> None:
        """Tell the listener that the driver is connected."""
        self.tell(Connected, endpoint=endpoint)

    def disconnected(self, endpoint: str, reason: str) -> None:
        """Tell the listener that a connection of the driver ended."""
        self.tell(Disconnected, reason, endpoint=endpoint)

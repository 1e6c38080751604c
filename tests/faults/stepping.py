"""Cancel a coroutine at its n-th suspension, whatever the event loop does in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from typing import Any, Generic, Literal, TypeVar

from aiolibkv.testing.scale import scaled

T = TypeVar("T")

Moment = Literal["waiting", "answered", "twice"]
"""When a coroutine is cancelled: as soon as it waits; when what it waits for has come and it does not know yet; or as
soon as it waits, and again at the next suspension, which is one of its clean-up."""
MOMENTS: tuple[Moment, ...] = ("waiting", "answered", "twice")

_ENDING_TIME = 15.0
"""Seconds that a cancelled call has to end."""
_LONGEST_CALL = 400


class Step:
    """One run of a call: it is cancelled at a chosen suspension, if it gets there.

    Attributes:
        number: of the suspension, from 1.
        moment: when exactly.
        was_cancelled: whether the call was cancelled; False when it was done before.
        was_idle: whether it was cancelled because nothing happened any more before that suspension.
    """

    def __init__(self, number: int, moment: Moment) -> None:
        self.number = number
        self.moment = moment
        self.was_cancelled = False
        self.was_idle = False

    @property
    def name(self) -> str:
        """A name that no other step of one call has, for its key."""
        return f"{self.moment}-{self.number}"

    async def __call__(self, call: Coroutine[Any, Any, T], *, idle: float | None = None) -> T | None:
        """Run a call in a task of its own.

        Args:
            call: the call.
            idle: seconds without a suspension after which the call is cancelled where it is; None waits for ever.

        Returns:
            What the call returned; None when it was cancelled.

        Raises:
            AssertionError: it did not end as a cancelled call has to end.
        """
        run = self.start(call)
        while idle is not None and not run.counted.is_cancelled:
            before = run.counted.suspensions
            await asyncio.wait({run.task}, timeout=scaled(idle))
            if run.task.done():
                break
            if run.counted.suspensions == before and not run.counted.is_cancelled:
                self.was_idle = True
                run.counted.cancel()
        return await run.end()

    def start(self, call: Coroutine[Any, Any, T], *, after: Callable[[], bool] = lambda: True) -> Run[T]:
        """Begin to run a call, for what has to happen meanwhile; to be followed by ``Run.end``.

        Args:
            call: the call.
            after: only the suspensions at which this is true are counted.
        """
        return Run(self, call, after)


class Run(Generic[T]):
    """A call under way; made by ``Step.start``.

    Attributes:
        task: in which it runs.
        counted: the call.
    """

    def __init__(self, step: Step, call: Coroutine[Any, Any, T], after: Callable[[], bool]) -> None:
        self._step = step
        self.counted = _Counted(call, step.number, step.moment, after)
        self.task = asyncio.ensure_future(self.counted.run())

    def cancel_now(self) -> None:
        """Cancel the call where it is."""
        self.counted.cancel()

    async def end(self) -> T | None:
        """Wait for the end of the call; see ``Step``."""
        task, counted = self.task, self.counted
        if not counted.is_cancelled:
            watching = asyncio.ensure_future(counted.cancelled.wait())
            await asyncio.wait({task, watching}, return_when=asyncio.FIRST_COMPLETED)
            watching.cancel()
            await asyncio.wait({watching})
        await asyncio.wait({task}, timeout=scaled(_ENDING_TIME))
        where = f"cancelled ({self._step.moment}) at suspension {counted.stopped_at}"
        if not task.done():
            stack = task.get_stack()
            task.cancel()
            raise AssertionError(f"{where}, the call did not end: {stack}")
        self._step.was_cancelled = counted.is_cancelled
        if not counted.is_cancelled:
            assert task.cancelling() == 0, "a call asked its own task to cancel and left it so"
            return task.result()
        if not task.cancelled():
            error = task.exception()
            raise AssertionError(f"{where}, the call went on: {task!r}") from error
        assert task.cancelling() == counted.cancellations, f"{where}, the call took the cancellation back"
        return None


def steps(moment: Moment, *, first: int = 1) -> Iterator[Step]:
    """Give step after step, until one was done without being cancelled, or was cancelled because nothing happened."""
    for number in range(first, _LONGEST_CALL):
        step = Step(number, moment)
        yield step
        if step.was_idle or not step.was_cancelled:
            return
    raise AssertionError(f"the call is not done after {_LONGEST_CALL} suspensions")


def every_step(moments: Sequence[Moment] = MOMENTS) -> Iterator[Step]:
    """Give the steps of all moments, one moment after the other."""
    for moment in moments:
        yield from steps(moment)


class _Counted(Generic[T]):
    """A coroutine whose suspensions are counted.

    Attributes:
        suspensions: so far.
        cancellations: how often the task was cancelled from here.
        cancelled: set when it was.
        stopped_at: the suspension at which it was, counted from the first of those that count.
    """

    def __init__(self, call: Coroutine[Any, Any, T], number: int, moment: Moment, after: Callable[[], bool]) -> None:
        self._call = call
        self._number = number
        self._moment = moment
        self._after = after
        self._counted = 0
        self.suspensions = 0
        self.cancellations = 0
        self.cancelled = asyncio.Event()
        self.stopped_at = 0
        self._task: asyncio.Task[Any] | None = None

    @property
    def is_cancelled(self) -> bool:
        return self.cancelled.is_set()

    async def run(self) -> T:
        self._task = asyncio.current_task()
        return await self

    def cancel(self) -> None:
        """Cancel the call now."""
        assert self._task is not None, "it runs"
        self.stopped_at = self.stopped_at or self._counted
        self.cancellations += 1
        self.cancelled.set()
        self._task.cancel()

    def __await__(self) -> Generator[Any, Any, T]:
        inner = self._call.__await__()
        advance: Callable[[], Any] = lambda: next(inner)  # noqa: E731 - one of several below
        while True:
            try:
                future = advance()
            except StopIteration as end:
                result: T = end.value
                return result
            self.suspensions += 1
            self._suspended(future)
            try:
                sent = yield future
            except BaseException as thrown:  # noqa: BLE001 - forwarded, whatever it is
                advance = _bound(inner.throw, thrown)
            else:
                advance = _bound(inner.send, sent)

    def _suspended(self, future: Any) -> None:
        if self._moment == "twice" and self.cancellations == 1:
            self.cancel()
        if self.is_cancelled or not self._after():
            return
        self._counted += 1
        if self._counted != self._number:
            return
        if self._moment == "answered" and isinstance(future, asyncio.Future):
            # It is called before the task learns of it: that one is added when this suspension is done.
            future.add_done_callback(self._answered)
        else:
            self.cancel()

    def _answered(self, _: object) -> None:
        if not self.is_cancelled:
            self.cancel()


def _bound(function: Callable[[Any], Any], argument: Any) -> Callable[[], Any]:
    return lambda: function(argument)

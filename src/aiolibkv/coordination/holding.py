"""Blocks that last as long as a lock is held."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from aiolibkv.errors import LockLostError
from aiolibkv.protocol import HeldLock
from aiolibkv.starting import start


class WhileHeld:
    """A block that is cancelled, and LockLostError raised in its place, when a lock is lost.

    It is cancelled as ``asyncio.timeout`` does it: a cancellation from outside stays one.
    """

    def __init__(self, held: HeldLock) -> None:
        """Make a block; it begins with ``async with``.

        Args:
            held: the lock; it is not released at the end.
        """
        self._held = held
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._is_cancelled = False
        self._is_released = False
        self._watching: asyncio.Task[None] | None = None

    @property
    def is_own(self) -> bool:
        """Tell whether the block runs in the present task."""
        return self._task is asyncio.current_task()

    def cancel(self) -> None:
        """Have the block end as by a loss."""
        if self._task is not None and not self._is_cancelled:
            self._is_cancelled = True
            self._task.cancel("the lock was lost")

    def release(self) -> None:
        """Take note that the block itself gives up the lock, and goes on."""
        self._is_released = True
        self._stop_watching()

    async def __aenter__(self) -> Self:
        """Begin the block."""
        self._task = asyncio.current_task()
        assert self._task is not None, "async with runs in a task"
        self._cancelling = self._task.cancelling()
        self._watching = start(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the block; raise LockLostError unless it failed by itself or was cancelled from outside."""
        task, self._task = self._task, None
        assert task is not None, "entered"
        self._stop_watching()
        is_lost = self._is_cancelled or not (self._held.is_held or self._is_released)
        is_ours = self._is_cancelled and task.uncancel() <= self._cancelling and kind is asyncio.CancelledError
        if is_ours or (is_lost and kind is None):
            raise LockLostError(key=self._held.key) from error

    async def _watch(self) -> None:
        await self._held.wait_lost()
        self.cancel()

    def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()

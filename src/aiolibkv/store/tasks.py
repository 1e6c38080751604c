"""Background tasks that somebody owns, and clean-up that a cancellation cannot stop."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

from anyio import CancelScope

from aiolibkv.errors import StoreError
from aiolibkv.starting import start

T = TypeVar("T")

_CANCELLATIONS = 3
"""How often tasks are cancelled: one that is cancelled may start another."""
_CANCELLING_TIME = 0.1

_log = logging.getLogger("aiolibkv")


class Tasks:
    """Tasks that run until they end or are closed; whoever has this object owns them."""

    def __init__(self, context: Callable[[], Context | None] = lambda: None) -> None:
        """Begin without any.

        Args:
            context: gives the context variables for the tasks; None means those of the code that starts a task.
        """
        self._context = context
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine as a task of this owner; what it raises is logged."""
        context = self._context()
        task = start(work, context)
        self._running.add(task)
        task.add_done_callback(self._ended, context=context)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, StoreError):
            _log.debug("a background task ended: %s", error)
        else:
            task.get_loop().call_exception_handler(
                {"message": "a background task of a store failed", "exception": error, "task": task}
            )

    def cancel(self) -> None:
        """Cancel all tasks, without waiting for them."""
        for task in self._running:
            task.cancel()

    async def settle(self, limit: float) -> None:
        """Wait until the tasks have ended, at most limit seconds."""
        if self._running:
            await asyncio.wait(self._running, timeout=limit)

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended; do not wait long for one that ignores it."""
        for _ in range(_CANCELLATIONS):
            if self._running:
                self.cancel()
                await asyncio.wait(self._running, timeout=_CANCELLING_TIME)


def prepare() -> None:
    """Load what ``wait_shielded`` needs, in an event loop: later no file descriptor may be left to load it with."""
    CancelScope()  # AnyIO imports the half that is for asyncio when one is made first


async def wait_shielded(work: asyncio.Task[None], limit: float = math.inf) -> None:
    """Wait until a clean-up has ended, whatever cancels the caller meanwhile, at most limit seconds.

    A cancellation that arrived is raised afterwards. AnyIO's scopes cancel at every await again, so they are
    shielded off; a task's own cancellation is remembered.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + limit
    cancelled: asyncio.CancelledError | None = None
    with CancelScope(shield=True):
        while not work.done() and clock() < end:
            try:
                await asyncio.wait({work}, timeout=None if end == math.inf else end - clock())
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled
    if work.done():
        work.result()

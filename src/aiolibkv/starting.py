"""Starting a task that runs in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


def start(work: Coroutine[Any, Any, T], context: Context | None = None) -> asyncio.Task[T]:
    """Run a coroutine as a task that begins after who starts it goes on.

    The loop's task factory is not asked: an eager one would have the task begin in the middle of who starts it, before
    it is known there, and where its context may be entered already.
    """
    return asyncio.Task(work, loop=asyncio.get_running_loop(), context=context)

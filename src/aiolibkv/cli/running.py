"""How a command's work runs: with a store, until it is done or a signal ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiolibkv import AsyncStore, StoreError
from aiolibkv.cli.failures import INTERRUPTED
from aiolibkv.cli.settings import Settings
from aiolibkv.cli.text import hosts

if TYPE_CHECKING:
    from aiolibkv.events import Event

Work = Callable[[AsyncStore], Awaitable[int | None]]

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that end the work."""


class Received:
    """The signals that this process gets while work runs.

    Attributes:
        ending: the first one that ends the work, None while there is none.
        end: acts as if a signal had come that ends the work.
        listener: is given each of them: the child that runs.
        child_code: the exit code of the child that was ended.
    """

    def __init__(self) -> None:
        self.ending: signal.Signals | None = None
        self.end: Callable[[signal.Signals], None] = lambda _: None
        self.listener: Callable[[signal.Signals], None] | None = None
        self.child_code: int | None = None

    def exit_code(self, ending: signal.Signals) -> int:
        """Return the exit code of a process that a signal ended."""
        if ending is signal.SIGINT:
            return INTERRUPTED
        return self.child_code if self.child_code is not None else 128 + ending


received: Received = Received()
"""What this process, which runs one command, has received."""


def run_with_store(settings: Settings, work: Work, listener: Callable[[Event], object] | None = None) -> int | None:
    """Run work on the store that the settings mean.

    Args:
        settings: which store.
        work: is given it, entered.
        listener: is given what the store tells.

    Returns:
        The exit code, None for 0.

    Raises:
        StoreError: as the work does.
    """

    async def entered() -> int | None:
        url = settings.resolved_url()
        try:
            async with settings.store(url, listener) as store:
                return await work(store)
        except StoreError as error:
            # What was noticed on this side of the store does not say where.
            error.locate(url.partition("://")[0], hosts(url), None)
            raise

    return run(settings, entered)


def run(settings: Settings, work: Callable[[], Awaitable[int | None]]) -> int | None:
    """Run work until it is done, or a signal cancels it.

    Returns:
        The exit code, None for 0.
    """
    settings.start_log()
    try:
        return asyncio.run(_until_signal(work))
    except asyncio.CancelledError:
        if received.ending is None:
            raise
        return received.exit_code(received.ending)
    except BrokenPipeError:
        # Nobody reads any more, which Python would tell when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


async def _until_signal(work: Callable[[], Awaitable[int | None]]) -> int | None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"

    def end(number: signal.Signals) -> None:
        if received.listener is not None:
            received.listener(number)
        # The work is cancelled once: what it does in the end must not be cut off by who presses Ctrl-C twice.
        if received.ending is None:
            received.ending = number
            task.cancel()

    received.end = end
    for each in ENDING:
        # What nohup or a shell in the background have told this process to ignore stays ignored.
        if signal.getsignal(each) is not signal.SIG_IGN:
            try:
                loop.add_signal_handler(each, end, each)
            except NotImplementedError:  # Windows; there asyncio itself cancels the work at Ctrl-C
                break
    return await work()

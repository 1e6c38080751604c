"""Asking together what many tasks want to know: one question to the server is under way, what comes meanwhile waits."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from aiolibkv.errors import StoreClosedError, StoreError
from aiolibkv.store import Tasks

Q = TypeVar("Q")
A = TypeVar("A")


class Gatherer(Generic[Q, A]):
    """Puts questions together, as many as there are when the answer to those before has arrived."""

    def __init__(
        self,
        tasks: Tasks,
        send: Callable[[Sequence[Q]], Awaitable[Sequence[A | StoreError]]],
        *,
        most: int,
        size: Callable[[Q], int] = lambda _: 0,
        most_bytes: int = 0,
    ) -> None:
        """Make one; nothing is sent.

        Args:
            tasks: owns the task that sends.
            send: asks the server, and gives an answer to each question, or why there is none.
            most: how many questions go together.
            size: the bytes of a question.
            most_bytes: no more are added to so many bytes.
        """
        self._tasks = tasks
        self._send = send
        self._most = most
        self._size = size
        self._most_bytes = most_bytes
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._is_sending = False

    async def ask(self, question: Q) -> A:
        """Return the answer to a question. What is cancelled before it is sent is not sent.

        Raises:
            StoreError: what ``send`` raises; a copy for each.
        """
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if not self._is_sending:
            self._is_sending = True
            self._tasks.start(self._send_all()).add_done_callback(self._ended)
        return await future

    def _take(self) -> list[tuple[Q, asyncio.Future[A]]]:
        taken: list[tuple[Q, asyncio.Future[A]]] = []
        size = 0
        while self._waiting and len(taken) < self._most and size <= self._most_bytes:
            question, future = self._waiting.popleft()
            if not future.done():
                taken.append((question, future))
                size += self._size(question)
        return taken

    async def _send_all(self) -> None:
        while taken := self._take():
            futures = [future for _, future in taken]
            try:
                answers = await self._send([question for question, _ in taken])
            except asyncio.CancelledError:
                _fail(futures, StoreClosedError())
                raise
            except Exception as error:  # noqa: BLE001 - each of those who asked is told
                _fail(futures, error)
                continue
            for future, answer in zip(futures, answers, strict=True):
                if isinstance(answer, StoreError):
                    _fail([future], answer)
                elif not future.done():
                    future.set_result(answer)
        self._is_sending = False

    def _ended(self, task: asyncio.Task[None]) -> None:
        # Not in the task itself: one that is cancelled before its first step never runs.
        if task.cancelled():
            self._is_sending = False
            _fail([future for _, future in self._waiting], StoreClosedError())
            self._waiting.clear()


def _fail(futures: Sequence[asyncio.Future[A]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            own = copy.copy(error).with_traceback(None)
            own.__cause__ = error.__cause__
            future.set_exception(own)

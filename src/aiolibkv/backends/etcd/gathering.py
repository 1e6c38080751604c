"""Reads of single keys that begin together, as one request, which takes the server a fraction of the work."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Sequence

from aiolibkv.backends.etcd.codec import Operation, Range, RangeAnswer, Txn
from aiolibkv.backends.etcd.connection import Connection
from aiolibkv.errors import NotReachableError, StoreError
from aiolibkv.store.tasks import Tasks

_FEW = 4
"""Reads that are not worth a request in common."""
_MOST = 32
"""Reads in one request, whose answer a server makes as a whole, and a value may have 1.5 MiB."""
_LARGE = 256 * 1024
"""Bytes of the values of one answer after which keys are read one by one: what is small would wait for the others."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
"""Seconds for which they are, twice as long each time; also after a refusal, which may be due to one of the keys."""

_Waiting = tuple[Range, "asyncio.Future[RangeAnswer | None]"]


class Gathering:
    """Sends reads of the present state of single keys.

    Where many are under way, those that begin before the event loop comes round leave as one transaction that writes
    nothing. None waits for the answer to another one before it leaves. What cannot be read together, as when one of the
    keys may not be read, is read one by one.
    """

    def __init__(self, connection: Connection, limit: float) -> None:
        """Make one; nothing is sent.

        Args:
            connection: to the server.
            limit: seconds after which nobody waits for an answer any more.
        """
        self._connection = connection
        self._limit = limit
        self._tasks = Tasks()
        self._under_way = 0
        self._gathers = False
        self._pause = _FIRST_PAUSE
        self._pause_ends = -math.inf
        self._waiting: list[_Waiting] = []

    async def close(self) -> None:
        """End what is under way."""
        await self._tasks.close()

    async def read(self, request: Range) -> RangeAnswer:
        """Read one key, at a server that has a leader.

        Raises:
            StoreError: as for ``Connection.call``.
        """
        if self._gathers or self._under_way >= _FEW:
            loop = asyncio.get_running_loop()
            if not self._waiting:
                loop.call_soon(self._leave)
            future: asyncio.Future[RangeAnswer | None] = loop.create_future()
            self._waiting.append((request, future))
            if (answer := await future) is not None:
                return answer
        self._under_way += 1
        try:
            return await self._connection.call(request, RangeAnswer)
        finally:
            self._under_way -= 1

    def _leave(self) -> None:
        waiting = [(request, future) for request, future in self._waiting if not future.done()]
        self._waiting = []
        self._gathers = len(waiting) >= _FEW and asyncio.get_running_loop().time() >= self._pause_ends
        if not self._gathers:
            _tell(waiting, [None] * len(waiting))
            return
        for first in range(0, len(waiting), _MOST):
            self._tasks.start(self._send(waiting[first : first + _MOST]))

    async def _send(self, waiting: Sequence[_Waiting]) -> None:
        answers: Sequence[RangeAnswer | StoreError | None] = [None] * len(waiting)
        request = Txn(success=[Operation(range=each) for each, _ in waiting])
        try:
            async with asyncio.timeout(self._limit):
                steps = (await self._connection.txn(request)).responses
            answers = [step.range for step in steps]
            size = sum([len(kv.value) for step in steps if step.range is not None for kv in step.range.kvs])
            if size > _LARGE:
                self._rest()
        except TimeoutError:
            pass  # those who wait have no more time
        except NotReachableError as error:
            answers = [_copied(error) for _ in waiting]
        except StoreError:
            self._rest()
        finally:
            _tell(waiting, answers)

    def _rest(self) -> None:
        """Have keys be read one by one for a while; what left before that began is no reason for a longer one."""
        now = asyncio.get_running_loop().time()
        if now >= self._pause_ends:
            self._pause_ends = now + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)


def _tell(waiting: Sequence[_Waiting], answers: Sequence[RangeAnswer | StoreError | None]) -> None:
    """Give those who wait their answers, None to have each ask by itself."""
    for (_, future), answer in zip(waiting, answers, strict=True):
        if future.done():
            continue
        if isinstance(answer, StoreError):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def _copied(error: StoreError) -> StoreError:
    """Return an error for one of those who wait; where it happened is filled in for each."""
    own = copy.copy(error).with_traceback(None)
    own.__cause__ = error.__cause__
    return own

"""Keys with a ttl: their leases, their deletion on time, and their creation again after a lease was lost.

A plain ttl key has a lease of its own that is never renewed. It is revoked when the ttl is over, if the server would
keep the key longer, and when the key is overwritten. All keys kept alive with the same ttl share a session; when the
server has lost it, they are created again under a new one.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from sortedcontainers import SortedDict

from aiolibkv.errors import (
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    NotReachableError,
    StoreClosedError,
    StoreError,
)
from aiolibkv.events import LeaseLost
from aiolibkv.store.calls import Call, Calls
from aiolibkv.store.driver import Guard, Lease, LeaseLostError, Lifetime
from aiolibkv.store.leases import SHORTEST_TTL, Session, Sessions, retry

T = TypeVar("T")

_CREATED_AT_ONCE = 50

_log = logging.getLogger("aiolibkv")


class _Shared:
    """The session of all keys kept alive with one ttl.

    Attributes:
        ttl: seconds, as the caller gave them.
        session: the session, granted when ``opening`` has ended well.
        opening: the attempt to begin it that is under way, or was the last one.
        users: how many keys are under it, and how many puts wait for it.
        timer: ends it when it has had no users for a while.
    """

    def __init__(self, ttl: float, session: Session) -> None:
        self.ttl = ttl
        self.session = session
        self.opening: asyncio.Task[None] | None = None
        self.users = 0
        self.timer: asyncio.TimerHandle | None = None


@dataclass(eq=False, slots=True)
class _Record:
    """A key with a lifetime that this store wrote.

    Attributes:
        value: what a key kept alive is created with again; empty for a plain ttl key, which is not created again.
        index: the index of its last write.
        lifetime: the ttl and keep_alive of its put.
        lease: the lease that the key is under.
        shared: the session of that lease, for a key kept alive.
        timer: deletes a plain ttl key on time.
        in_doubt: whether a request without an answer may still create it.
    """

    value: bytes
    index: int
    lifetime: Lifetime
    lease: Lease
    shared: _Shared | None = None
    timer: asyncio.TimerHandle | None = None
    in_doubt: bool = False


class Lifetimes:
    """The keys with a lifetime that one store has written."""

    def __init__(self, calls: Calls, sessions: Sessions) -> None:
        self._calls = calls
        self._sessions = sessions
        self._tasks = calls.new_tasks()
        self._records: SortedDict[str, _Record] = SortedDict()
        self._shared: dict[float, _Shared] = {}
        self._in_doubt: dict[Lease, asyncio.TimerHandle] = {}

    async def put(
        self, path: str, value: bytes, *, expected: int | None, lifetime: Lifetime, guard: Guard | None
    ) -> int:
        """Write a key with a lifetime and return its index."""
        self._calls.check_open()
        before = self._records.get(path)
        if lifetime.keep_alive:
            return await self._put_kept(path, value, expected, lifetime, guard, before)
        return await self._put_plain(path, value, expected, lifetime, guard, before)

    def ended_by(self, write: Awaitable[T], call: Call, paths: Iterable[str]) -> Awaitable[T]:
        """Forget the lifetimes of these keys after a write, unless it certainly was not applied.

        A deletion that finds no key counts too: a key that is gone with a lost lease must not be created again then.
        When a commit is refused for it, only this one key is forgotten.

        Args:
            write: not awaited yet.
            call: told of it.
            paths: of the keys that it writes or deletes.
        """
        return self._forget_after(write, call, paths) if self._records else write

    async def _forget_after(self, write: Awaitable[T], call: Call, paths: Iterable[str]) -> T:
        before = [(path, self._records[path]) for path in paths if path in self._records]
        certain = False
        try:
            result = await write
            certain = True
        except KeyNotFoundError as error:
            certain = True
            before = [(path, record) for path, record in before if error.key in {None, path}]
            raise
        finally:
            if certain or call.maybe_applied:
                for path, record in before:
                    self._drop(path, record, revoke=certain)
        return result

    def below(self, directory: str) -> list[str]:
        """Return the keys with a lifetime below a directory."""
        if not directory:
            return list(self._records)
        return list(self._records.irange(f"{directory}/", f"{directory}0", inclusive=(True, False)))

    async def close(self) -> None:
        """Forget all keys; the server deletes those kept alive when their sessions are revoked."""
        for record in self._records.values():
            if record.timer is not None:
                record.timer.cancel()
        for timer in self._in_doubt.values():
            timer.cancel()
        for shared in self._shared.values():
            if shared.timer is not None:
                shared.timer.cancel()
        self._records.clear()
        await self._tasks.close()

    # -- plain ttl keys ------------------------------------------------------------------------------------------

    async def _put_plain(
        self,
        path: str,
        value: bytes,
        expected: int | None,
        lifetime: Lifetime,
        guard: Guard | None,
        before: _Record | None,
    ) -> int:
        driver = self._calls.driver
        lease, is_granted, is_in_doubt = driver.new_lease(lifetime), False, False

        async def write(call: Call) -> int:
            nonlocal is_granted, is_in_doubt, lease
            try:
                if not is_granted:
                    await driver.grant(call, lease)
                    is_granted = True
                return await driver.put(call, path, value, expected=expected, lease=lease, guard=guard)
            except LeaseLostError as error:
                lease, is_granted = driver.new_lease(lifetime), False
                raise NotReachableError("the server has lost the lease") from error
            finally:
                is_in_doubt = call.maybe_applied

        try:
            index = await self._calls.run(write, path)
        except BaseException:
            if not is_in_doubt:
                self._sessions.revoke(lease)
            else:
                self._drop(path, before, revoke=False)
                if lease.ttl > lifetime.ttl and not self._calls.is_closed:
                    self._end_on_time(lease, lifetime)
            raise
        self._note(path, _Record(b"", index, lifetime, lease))
        return index

    def _end_on_time(self, lease: Lease, lifetime: Lifetime) -> None:
        """Revoke the lease of a put in doubt when the ttl is over: if it was applied, its key has to go then."""

        def end() -> None:
            del self._in_doubt[lease]
            self._sessions.revoke(lease)

        self._in_doubt[lease] = self._calls.call_later(lifetime.ttl, end)

    def _end_ttl(self, path: str, record: _Record) -> None:
        self._drop(path, record, revoke=record.lease.ttl > record.lifetime.ttl)

    # -- keys kept alive -----------------------------------------------------------------------------------------

    async def _put_kept(
        self,
        path: str,
        value: bytes,
        expected: int | None,
        lifetime: Lifetime,
        guard: Guard | None,
        before: _Record | None,
    ) -> int:
        is_in_doubt = False
        shared: _Shared | None = None

        async def write(call: Call) -> tuple[int, _Shared]:
            nonlocal is_in_doubt, shared
            self._leave(shared)
            shared = self._join(max(lifetime.ttl, SHORTEST_TTL))
            await self._open(shared)
            lease = shared.session.lease
            try:
                index = await self._calls.driver.put(call, path, value, expected=expected, lease=lease, guard=guard)
            except LeaseLostError as error:
                shared.session.lose()
                raise NotReachableError("the server has lost the lease") from error
            finally:
                is_in_doubt = call.maybe_applied
            return index, shared

        try:
            index, under = await self._calls.run(write, path)
            under.users += 1
            self._note(path, _Record(value, index, lifetime, under.session.lease, under))
            if under.session.is_over:
                # It was lost between the write and its answer.
                self._tasks.start(self._replace(under, are_there=False))
        except BaseException:
            if is_in_doubt:
                self._drop(path, before, revoke=False)
            raise
        finally:
            self._leave(shared)
        return index

    def _join(self, ttl: float) -> _Shared:
        shared = self._shared.get(ttl)
        if shared is None:
            shared = self._shared[ttl] = _Shared(ttl, Session(self._calls, ttl))
            shared.session.on_lost = lambda: self._lost(shared)
        shared.users += 1
        if shared.timer is not None:
            shared.timer.cancel()
            shared.timer = None
        return shared

    def _leave(self, shared: _Shared | None) -> None:
        if shared is None:
            return
        shared.users -= 1
        if not shared.users and self._shared.get(shared.ttl) is shared and not self._calls.is_closed:
            shared.timer = self._calls.call_later(shared.session.lease.ttl, self._end, shared)

    def _end(self, shared: _Shared) -> None:
        if self._shared.get(shared.ttl) is shared:
            del self._shared[shared.ttl]
        if shared.opening is not None:
            shared.opening.cancel()
        self._sessions.end(shared.session)

    async def _open(self, shared: _Shared) -> None:
        """Wait until a session is begun; all callers that wait share one attempt, and each gets an error of its own."""
        opening = shared.opening
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            self._sessions.adopt(shared.session)
            opening = shared.opening = self._tasks.start(self._calls.run(shared.session.begin, is_repeated=False))
        try:
            await asyncio.shield(opening)
        except StoreError as error:
            raise copy.copy(error).with_traceback(None) from error.__cause__

    def _lost(self, shared: _Shared) -> None:
        if self._shared.get(shared.ttl) is shared:
            del self._shared[shared.ttl]
        self._sessions.end(shared.session)
        if shared.users:
            _log.warning("%s: a lease was lost; its keys are created again", self._calls.driver.name)
            self._calls.tell(LeaseLost, "the server does not know it any more")
            self._tasks.start(self._replace(shared, are_there=False))

    def _abandon(self, shared: _Shared) -> None:
        """Give up a session under which an unwanted key may still be created; its other keys move to a new one."""
        if self._shared.get(shared.ttl) is shared:
            del self._shared[shared.ttl]
            self._tasks.start(self._replace(shared, are_there=True))

    async def _replace(self, old: _Shared, *, are_there: bool) -> None:
        """Write the keys of a session again under its successor.

        Args:
            old: the session.
            are_there: whether its keys are still there; if not, they are created, never over another's value.
        """
        new = self._join(old.ttl)
        try:
            await retry(self._calls, lambda: self._open(new), longest_pause=new.session.interval / 4)
            orphans = [(path, record) for path, record in self._records.items() if record.shared is old]
            for _, record in orphans:
                record.shared, record.lease = new, new.session.lease
                new.users += 1
            old.users = 0
            while orphans:
                at_once = asyncio.Semaphore(_CREATED_AT_ONCE)
                refused = await asyncio.gather(
                    *(self._is_refused(path, record, new, at_once, is_there=are_there) for path, record in orphans)
                )
                orphans = [orphan for orphan, again in zip(orphans, refused, strict=True) if again]
                if orphans:
                    await asyncio.sleep(new.session.interval)
        finally:
            self._leave(new)
        if are_there:
            self._sessions.end(old.session)
            if any(record.shared is old for record in self._records.values()):
                # Written under it meanwhile.
                self._tasks.start(self._replace(old, are_there=False))

    async def _is_refused(
        self, path: str, record: _Record, shared: _Shared, at_once: asyncio.Semaphore, *, is_there: bool
    ) -> bool:
        """Write a key again; tell whether the server refuses it for now."""
        async with at_once:
            if record.shared is not shared or not self._is_current(path, record):
                return False
            try:
                await self._write_again(path, record, shared, expected=record.index if is_there else 0)
            except LeaseLostError:
                shared.session.lose()
            except (KeyExistsError, KeyModifiedError):
                self._drop(path, record, revoke=False)
            except StoreClosedError:
                raise
            except StoreError as error:
                self._calls.outages.failed(record, error)
                return True
            self._calls.outages.healed(record)
            return False

    async def _write_again(self, path: str, record: _Record, shared: _Shared, *, expected: int) -> None:
        calls, lease = self._calls, shared.session.lease
        try:
            record.index = await calls.run(
                lambda call: calls.driver.put(call, path, record.value, expected=expected, lease=lease, guard=None),
                path,
            )
        except (KeyExistsError, KeyModifiedError):
            pair = await calls.run(lambda call: calls.driver.get(call, path, consistent=True), path)
            if not record.in_doubt or pair is None or pair.value != record.value:
                raise
            record.index = pair.last_index
        except StoreError as error:
            record.in_doubt = record.in_doubt or error.maybe_applied
            if record.in_doubt and not self._is_current(path, record):
                self._abandon(shared)
            raise
        record.in_doubt = False
        if not self._is_current(path, record):
            self._tasks.start(self._take_back(path, record))

    async def _take_back(self, path: str, record: _Record) -> None:
        """Delete a key that was created again while the application deleted or overwrote it."""
        calls = self._calls

        async def delete() -> None:
            try:
                await calls.run(lambda call: calls.driver.delete(call, path, expected=record.index, guard=None), path)
            except (KeyNotFoundError, KeyModifiedError) as error:
                _log.debug("nothing to take back: %s", error)

        await retry(calls, delete)

    # -- records -------------------------------------------------------------------------------------------------

    def _note(self, path: str, record: _Record) -> None:
        other = self._records.get(path)
        if other is not None and other.index > record.index:
            self._retire(record, revoke=True)
            return
        self._drop(path, other, revoke=True)
        self._records[path] = record
        if not record.lifetime.keep_alive:
            record.timer = self._calls.call_later(record.lifetime.ttl, self._end_ttl, path, record)

    def _drop(self, path: str, record: _Record | None, *, revoke: bool) -> None:
        if record is None or not self._is_current(path, record):
            return
        del self._records[path]
        self._calls.outages.ended(record)
        if record.timer is not None:
            record.timer.cancel()
        self._retire(record, revoke=revoke)

    def _is_current(self, path: str, record: _Record) -> bool:
        return self._records.get(path) is record

    def _retire(self, record: _Record, *, revoke: bool) -> None:
        if record.shared is not None:
            self._leave(record.shared)
            if record.in_doubt:
                self._abandon(record.shared)
        elif revoke:
            self._sessions.revoke(record.lease)

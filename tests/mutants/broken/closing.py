"""Errors, closing and cancellation, broken."""

# ruff: noqa: ARG001, ARG005 - what is patched keeps its signature

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import aiolibkv.keys
import aiolibkv.store.calls
import aiolibkv.store.watch
from aiolibkv import (
    KeyNotFoundError,
    KVPair,
    RequestTimeoutError,
    StoreClosedError,
)
from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.backends.memory.space import Space
from aiolibkv.store import Feed, Store
from aiolibkv.store.calls import Calls, _Forks
from aiolibkv.testing.conformance.cancelling import Cancelling
from aiolibkv.testing.conformance.closing import Closing, Errors
from aiolibkv.testing.conformance.watching import Watching
from mutants.broken.registry import mutant


@mutant(Errors)
def key_error_reads_like_a_repr(patch: pytest.MonkeyPatch) -> None:
    """The text of KeyNotFoundError is that of a KeyError."""
    patch.setattr(KeyNotFoundError, "__str__", lambda self: repr(super(KeyNotFoundError, self).__str__()))


@mutant(Errors)
def errors_do_not_say_where(patch: pytest.MonkeyPatch) -> None:
    """An error names neither backend nor key."""
    patch.setattr(Calls, "located", lambda self, error, path=None: error)


@mutant(Errors)
def foreign_error_leaks(patch: pytest.MonkeyPatch) -> None:
    """The driver's own error comes out of a get."""
    get = MemoryDriver.get

    async def leak(self: MemoryDriver, call: Any, path: str, *, consistent: bool) -> KVPair:
        pair = await get(self, call, path, consistent=consistent)
        if pair is None:
            raise LookupError(path)
        return pair

    patch.setattr(MemoryDriver, "get", leak)


@mutant(Cancelling)
def cancellation_is_swallowed(patch: pytest.MonkeyPatch) -> None:
    """A put goes on though it was cancelled."""
    put = MemoryDriver.put

    async def insist(self: MemoryDriver, *args: Any, **conditions: Any) -> int:
        try:
            return await put(self, *args, **conditions)
        except asyncio.CancelledError:
            return await put(self, *args, **conditions)

    patch.setattr(MemoryDriver, "put", insist)


@mutant(Errors)
def cancellation_looks_like_a_timeout(patch: pytest.MonkeyPatch) -> None:
    """Whatever cancels a call, it says that the server was too slow."""
    run = Calls.run

    async def convert(self: Calls, *args: Any) -> Any:
        try:
            return await run(self, *args)
        except asyncio.CancelledError:
            raise RequestTimeoutError from None

    patch.setattr(Calls, "run", convert)


@mutant(Cancelling)
def cancelled_call_leaves_a_task(patch: pytest.MonkeyPatch) -> None:
    """The request of a cancelled call goes on by itself."""
    reach = MemoryDriver._reach

    async def shielded(self: MemoryDriver) -> Space:
        waiting = asyncio.ensure_future(asyncio.sleep(20))
        try:
            return await reach(self)
        except asyncio.CancelledError:
            waiting = asyncio.ensure_future(asyncio.shield(waiting))
            raise
        finally:
            if not isinstance(waiting, asyncio.Task) or not asyncio.current_task().cancelling():  # type: ignore[union-attr]
                waiting.cancel()

    patch.setattr(MemoryDriver, "_reach", shielded)


@mutant(Cancelling)
def cancelled_keep_alive_cancels_others(patch: pytest.MonkeyPatch) -> None:
    """Calls that share a lease share the cancellation of the first."""
    patch.setattr("aiolibkv.store.lifetimes.asyncio.shield", lambda opening: opening)


@mutant(Watching)
def close_leaves_watches_waiting(patch: pytest.MonkeyPatch) -> None:
    """close does not fail what is pending."""
    patch.setattr(Feed, "fail", lambda self, error: None)


@mutant(Closing)
def close_leaves_a_task(patch: pytest.MonkeyPatch) -> None:
    """A task of the store outlives it."""
    connect = MemoryDriver.connect

    async def start(self: MemoryDriver) -> None:
        await connect(self)
        self._kept = asyncio.ensure_future(asyncio.sleep(3600))  # type: ignore[attr-defined]

    patch.setattr(MemoryDriver, "connect", start)


@mutant(Closing)
def close_does_not_await_what_it_cancels(patch: pytest.MonkeyPatch) -> None:
    """A task is still running when close returns."""
    connect, disconnect = MemoryDriver.connect, MemoryDriver.disconnect

    async def start(self: MemoryDriver) -> None:
        await connect(self)
        self._kept = asyncio.ensure_future(linger())  # type: ignore[attr-defined]

    async def linger() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            for _ in range(50):
                await asyncio.sleep(0)

    async def end(self: MemoryDriver) -> None:
        self._kept.cancel()  # type: ignore[attr-defined]
        await disconnect(self)

    patch.setattr(MemoryDriver, "connect", start)
    patch.setattr(MemoryDriver, "disconnect", end)


@mutant(Closing)
def close_leaves_an_exception(patch: pytest.MonkeyPatch) -> None:
    """A task of the store fails and nobody asks for its exception."""
    disconnect = MemoryDriver.disconnect

    async def fail() -> None:
        raise OSError

    async def end(self: MemoryDriver) -> None:
        await asyncio.wait([asyncio.ensure_future(fail())])
        await disconnect(self)

    patch.setattr(MemoryDriver, "disconnect", end)


@mutant(Closing)
def close_forgets_to_await(patch: pytest.MonkeyPatch) -> None:
    """A coroutine is made and not awaited."""
    disconnect = MemoryDriver.disconnect

    async def end(self: MemoryDriver) -> None:
        _ = asyncio.sleep(0)
        await disconnect(self)

    patch.setattr(MemoryDriver, "disconnect", end)


@mutant(Closing)
def close_twice_is_an_error(patch: pytest.MonkeyPatch) -> None:
    """A closed store cannot be closed."""
    close = Store.close

    async def once(self: Store[Any]) -> None:
        if self._calls.is_closed:
            raise StoreClosedError
        await close(self)

    patch.setattr(Store, "close", once)


@mutant(Closing)
def close_is_not_final(patch: pytest.MonkeyPatch) -> None:
    """A closed store can be entered again."""
    close = Store.close

    async def reopen(self: Store[Any]) -> None:
        await close(self)
        self._calls._is_entered = self._calls._is_open = self._calls.is_closed = False
        self._calls._closing = None

    patch.setattr(Store, "close", reopen)


@mutant(Cancelling)
def close_can_be_cancelled(patch: pytest.MonkeyPatch) -> None:
    """A cancelled close stops half way."""

    async def wait(work: asyncio.Task[None], limit: float = 0) -> None:
        await work

    patch.setattr(aiolibkv.store.calls, "wait_shielded", wait)


@mutant(Closing)
def close_drops_the_data(patch: pytest.MonkeyPatch) -> None:
    """A store takes the data with it."""
    disconnect = MemoryDriver.disconnect

    async def wipe(self: MemoryDriver) -> None:
        if self.space is not None:
            self.space.delete_tree(self.config.prefix, "\0", None)
        await disconnect(self)

    patch.setattr(MemoryDriver, "disconnect", wipe)


@mutant(Closing)
def any_loop_and_process_will_do(patch: pytest.MonkeyPatch) -> None:
    """Use from another event loop or after a fork is not noticed."""
    patch.setattr(Calls, "check_home", lambda self: None)


@mutant(Closing)
def forks_are_not_noticed(patch: pytest.MonkeyPatch) -> None:
    """Use after a fork is not noticed."""
    patch.setattr(Calls, "_forks", property(lambda self: _Forks.number, lambda self, number: None), raising=False)


@mutant(Closing)
def entering_twice_is_silent(patch: pytest.MonkeyPatch) -> None:
    """An entered store is entered again."""
    enter = Store.__aenter__

    async def again(self: Store[Any]) -> Store[Any]:
        return self if self._calls._is_open and not self._calls.is_closed else await enter(self)

    patch.setattr(Store, "__aenter__", again)

"""What the parts of the suite have in common: stores that share their data, and waiting for items."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, NamedTuple, Protocol, Self, TypeVar
from uuid import uuid4

import pytest
import pytest_asyncio

from aiolibkv import AsyncStore, Config, KeyNotFoundError, Watch, new_store
from aiolibkv.store import Store
from aiolibkv.testing.faults import FaultyDriver
from aiolibkv.testing.scale import scaled

T = TypeVar("T")

_COMMON = "conformance"
"""The directory below which every test has one of its own."""


class StoreFactory(Protocol):
    """Makes stores that have not been entered and that share one set of data: what a backend's author provides."""

    def __call__(self, *, prefix: str | None = None, **overrides: Any) -> AsyncStore:
        """Make a store.

        Args:
            prefix: the directory that it is rooted at; none when not given.
            overrides: other fields of Config that are not to be as usual.
        """
        ...


def factory_of(backend: str, endpoints: Sequence[str] = (), **settings: Any) -> StoreFactory:
    """Return a factory for the stores of one backend.

    Args:
        backend: as for ``new_store``.
        endpoints: as for ``new_store``.
        settings: fields of Config for all of the stores.
    """

    def make(*, prefix: str | None = None, **overrides: Any) -> AsyncStore:
        return new_store(backend, endpoints, Config(**{**settings, **overrides, "prefix": prefix or ""}))

    return make


class CutOff(NamedTuple):
    """Stores that can be cut off from their server; what a backend's author may provide.

    Attributes:
        factory: of stores that share their data with those of ``store_factory``.
        cut: from its call on none of them is answered any more, and their connections stay open.
        heal: from its call on they are answered again.
    """

    factory: StoreFactory
    cut: Callable[[], None]
    heal: Callable[[], None]


def cut_off_by_driver(factory: StoreFactory) -> CutOff:
    """Return a CutOff of stores whose drivers are wrapped by one that fails: for what has no network to be cut.

    Args:
        factory: of stores on drivers, not of classes that are stores by themselves.
    """
    drivers: list[FaultyDriver] = []
    is_down = False

    def make(*, prefix: str | None = None, **overrides: Any) -> AsyncStore:
        store = factory(prefix=prefix, **overrides)
        assert isinstance(store, Store), "a store on a driver"
        driver = FaultyDriver(store.driver)
        driver.is_down = is_down
        drivers.append(driver)
        return Store(driver)

    def set_down(*, down: bool) -> None:
        nonlocal is_down
        is_down = down
        for driver in drivers:
            driver.is_down = down

    return CutOff(make, partial(set_down, down=True), partial(set_down, down=False))


class Stores:
    """The stores of one test, all below a directory of its own; those entered are closed when it ends."""

    def __init__(self, factory: StoreFactory, prefix: str, closing: AsyncExitStack) -> None:
        self._factory = factory
        self._prefix = prefix
        self._closing = closing

    def make(self, prefix: str = "", **overrides: Any) -> AsyncStore:
        """Make a store that is not entered.

        Args:
            prefix: below the test's own directory.
            overrides: other fields of Config.
        """
        return self._factory(prefix=f"{self._prefix}/{prefix}" if prefix else self._prefix, **overrides)

    def through(self, factory: StoreFactory) -> Self:
        """Make stores of the same test by another factory."""
        return type(self)(factory, self._prefix, self._closing)

    async def open(self, prefix: str = "", **overrides: Any) -> AsyncStore:
        """Make a store and enter it."""
        return await self._closing.enter_async_context(self.make(prefix, **overrides))


def needs(store: AsyncStore, *capabilities: str) -> None:
    """Skip the test unless the store has all these capabilities."""
    for name in capabilities:
        if not getattr(store.capabilities, name):
            pytest.skip(f"this backend does not have the capability {name}")


async def next_of(watch: Watch[T], *, within: float = 10) -> T:
    """Return a watch's next item.

    Raises:
        AssertionError: it does not come in time; ``within`` is in seconds, before scaling.
    """
    try:
        async with asyncio.timeout(scaled(within)) as bound:
            return await anext(watch)
    except TimeoutError:
        if not bound.expired():
            raise
    error = f"the watch gave nothing within {scaled(within):g} s"
    raise AssertionError(error)


async def follow(watch: Watch[T], last: Callable[[T], object], *, within: float = 10) -> list[T]:
    """Return a watch's items up to the first that is as asked.

    Raises:
        AssertionError: it does not come in time; ``within`` is in seconds, before scaling.
    """
    items: list[T] = []
    try:
        async with asyncio.timeout(scaled(within)) as bound:
            while not items or not last(items[-1]):
                items.append(await anext(watch))
    except TimeoutError:
        if not bound.expired():
            raise
        error = f"the last state did not come within {scaled(within):g} s, but {len(items)} items: {items[-3:]}"
        raise AssertionError(error) from None
    return items


@pytest.mark.leaves_nothing_behind
@pytest.mark.asyncio(loop_scope="function")
class Suite:
    """Base of the suite's parts."""

    @pytest_asyncio.fixture(loop_scope="function")
    async def stores(self, store_factory: StoreFactory, leaves_nothing_behind: None) -> AsyncIterator[Stores]:
        """Make stores for the test, and remove afterwards what it has written."""
        own = uuid4().hex
        async with AsyncExitStack() as closing:
            yield Stores(store_factory, f"{_COMMON}/{own}", closing)
        async with store_factory(prefix=_COMMON) as cleaner:
            try:
                await cleaner.delete_tree(own)
            except KeyNotFoundError:
                pass

    @pytest_asyncio.fixture(loop_scope="function")
    async def store(self, stores: Stores) -> AsyncStore:
        """Open a store."""
        return await stores.open()

    @pytest_asyncio.fixture(loop_scope="function")
    async def other(self, stores: Stores) -> AsyncStore:
        """Open another store on the same data."""
        return await stores.open()

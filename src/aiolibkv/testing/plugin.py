"""A pytest plugin: the fixtures of the conformance suite's surroundings, and a check that a test leaves nothing behind.

Load it with ``pytest_plugins = ["aiolibkv.testing.plugin"]`` in the topmost conftest.py, or with
``-p aiolibkv.testing.plugin``. The conformance suite needs it. Other tests are left alone unless they ask for the
check with ``@pytest.mark.leaves_nothing_behind``.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
import pytest_asyncio

from aiolibkv.testing.scale import scaled

pytest.register_assert_rewrite("aiolibkv.testing.conformance")

_MARKER = "leaves_nothing_behind"

# Both kinds of warning are given by a finaliser, where an error cannot be raised: pytest turns it into a warning again.
_ERRORS = ("error::RuntimeWarning", "error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        f"{_MARKER}: fail when the test leaves a task running, a coroutine not awaited, a socket open, "
        "or something for the event loop's exception handler.",
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Make errors of the warnings that tell of something left behind."""
    if item.get_closest_marker(_MARKER) is not None:
        for warning in _ERRORS:
            item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(autouse=True)
def _check_what_is_left(request: pytest.FixtureRequest) -> None:
    """Set up the check before everything else of a marked test, so that it is torn down last."""
    if request.node.get_closest_marker(_MARKER) is not None:
        request.getfixturevalue(_name_of_check(_loop_scope(request.node)))


def _name_of_check(loop_scope: str) -> str:
    return _MARKER if loop_scope == "function" else f"_{_MARKER}_in_the_loop_of_its_{loop_scope}"


def _loop_scope(item: pytest.Item) -> str:
    """Return which of pytest-asyncio's event loops a test runs in."""
    marker = item.get_closest_marker("asyncio")
    own = marker.kwargs.get("loop_scope") if marker else None
    return str(own or item.config.getini("asyncio_default_test_loop_scope"))


@pytest.fixture
def cut_off() -> None:
    """Skip the suite's tests of stores that are cut off, where their backend's tests do not override this."""
    pytest.skip("the fixture cut_off is not provided: nothing here can cut off a store")


@asynccontextmanager
async def _leaving_nothing() -> AsyncIterator[None]:
    """Fail when there are new tasks in the end, or something was given to the event loop's exception handler."""
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    reported: list[dict[str, Any]] = []
    known = asyncio.all_tasks()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    # What exists already need not be looked at when the test's own garbage is collected.
    gc.freeze()
    yield
    left = {task for task in asyncio.all_tasks() - known - {asyncio.current_task()} if not _is_anyios(task)}
    descriptions = [f"a task is left over: {task!r}" for task in left]
    for task in left:
        task.cancel()
    if left:
        # What was interrupted while the loop itself ran, by a time limit of a test, may never end.
        await asyncio.wait(left, timeout=scaled(5))
    left.clear()
    # The exception of a task that nobody asked for is reported when the task is collected.
    gc.collect()
    gc.unfreeze()
    loop.set_exception_handler(handler)
    descriptions += [f"the loop's exception handler was called: {_describe(context)}" for context in reported]
    if descriptions:
        pytest.fail("\n".join(descriptions), pytrace=False)


def _is_anyios(task: asyncio.Task[Any]) -> bool:
    """Tell whether a task is one of those by which AnyIO runs tests and fixtures that are its own."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    return frame is not None and frame.f_globals["__name__"] == "anyio._backends._asyncio"


def _check(loop_scope: Literal["function", "class", "module", "package", "session"]) -> object:
    @pytest_asyncio.fixture(loop_scope=loop_scope, name=_name_of_check(loop_scope))
    async def check() -> AsyncIterator[None]:
        async with _leaving_nothing():
            yield

    return check


# A check sees the tasks of the loop that it runs in.
_in_its_own_loop = _check("function")
_in_the_loop_of_its_class = _check("class")
_in_the_loop_of_its_module = _check("module")
_in_the_loop_of_its_package = _check("package")
_in_the_loop_of_the_session = _check("session")


def _describe(context: dict[str, Any]) -> str:
    error = context.get("exception")
    return context["message"] if error is None else f"{context['message']}: {error!r}"

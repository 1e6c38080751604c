"""A pytest plugin: tests whose servers are not installed are skipped, but not in CI, where the variable CI is set."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from aiolibkv.testing.servers import ServerMissingError


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    """Skip a test whose fixture needs a server that is missing."""
    yield from _skipping()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Skip a test that needs a server that is missing."""
    yield from _skipping()


def _skipping() -> Generator[None, None, None]:
    try:
        yield
    except ServerMissingError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))

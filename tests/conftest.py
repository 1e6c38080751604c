"""What all tests share."""

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import uuid4

import hypothesis
import pytest
import pytest_asyncio

from aiolibkv.store import endpoints

# An example may take long on a machine that does other things.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")

pytest_plugins = ["aiolibkv.testing.plugin", "pytester", "secrecy", "missing"]


# What a shell starts in the background ignores SIGINT, and so would the commands whose end by it is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Make the option of the soak known."""
    parser.addoption(
        "--soak", type=float, default=0.0, metavar="MINUTES", help="soak for so long (default: not at all)"
    )


@pytest.fixture(autouse=True)
def endpoints_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the stores of tests begin at the first endpoint; which one it is matters to many."""
    monkeypatch.setattr(endpoints, "shuffle", lambda _: None)


@pytest.fixture
def prefix() -> str:
    """Name a directory for the test alone."""
    return f"tests/{uuid4().hex}"


@pytest_asyncio.fixture
async def entering() -> AsyncIterator[AsyncExitStack]:
    """Close what the test enters."""
    async with AsyncExitStack() as stack:
        yield stack

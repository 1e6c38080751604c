"""What all tests share."""

import pytest

from aiolibkv.store import endpoints

pytest_plugins = ["aiolibkv.testing.plugin", "pytester", "secrecy", "missing"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Make the option of the soak known."""
    parser.addoption(
        "--soak", type=float, default=0.0, metavar="MINUTES", help="soak for so long (default: not at all)"
    )


@pytest.fixture(autouse=True)
def endpoints_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the stores of tests begin at the first endpoint; which one it is matters to many."""
    monkeypatch.setattr(endpoints, "shuffle", lambda _: None)

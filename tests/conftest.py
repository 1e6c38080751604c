"""What all tests share."""

import pytest

pytest_plugins = ["aiolibkv.testing.plugin", "pytester", "secrecy"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Make the option of the soak known."""
    parser.addoption(
        "--soak", type=float, default=0.0, metavar="MINUTES", help="soak for so long (default: not at all)"
    )

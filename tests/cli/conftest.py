"""Stores that the command line is tried on."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.tool import Tool


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    """The command line on a database of the test's own."""
    return Tool(f"sqlite:///{tmp_path / 'test.db'}")

"""The command doctor."""

from __future__ import annotations

import pytest

from cli.tool import Tool


@pytest.mark.parametrize("backend", ["consul", "etcd", "postgresql", "zookeeper"])
def test_a_name_that_nobody_knows_is_told(backend: str) -> None:
    ended = Tool(f"{backend}://aiolibkv.invalid:1/?connection_timeout=0.5").run("doctor")
    assert ended.code == 3
    assert b"aiolibkv.invalid could not be looked up" in ended.out

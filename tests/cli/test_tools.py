"""doctor, backends, completion, and the page made from --help."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from aiolibkv.cli.commands import MODULES
from aiolibkv.cli.reference import page
from cli.tool import Tool


def test_doctor(tool: Tool) -> None:
    found = {item["check"]: item for item in tool("doctor", "--json").items}
    assert all(item["ok"] for item in found.values())
    assert found["store"]["detail"] == tool.url
    assert b"\tyes\n" in tool("doctor").out
    assert "median" in found["put"]["detail"]
    assert found["atomic_list"]["detail"] is True
    assert tool.values() == {}


def test_backends(tool: Tool) -> None:
    found = {item["backend"]: item for item in tool("backends", "--json").items}
    assert found["sqlite"]["installed"]
    assert found["zookeeper"]["exact_compare"] is False
    assert "zk" not in found
    assert tool("backends").lines[0].split() == sorted(found)


def test_completion(tool: Tool) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert b"_AIOLIBKV_COMPLETE" in tool("completion", shell).out
    tool.put("config/limit")

    def completed(*words: str) -> list[str]:
        found = tool(_AIOLIBKV_COMPLETE="bash_complete", COMP_WORDS=" ".join(words), COMP_CWORD=str(len(words) - 1))
        return [line.partition(",")[2] for line in found.lines]

    assert completed("aiolibkv", "el") == ["elect"]
    assert completed("aiolibkv", "get", "--js") == ["--json"]
    assert completed("aiolibkv", "get", "c") == ["config/"]
    assert completed("aiolibkv", "get", "config/") == ["config/limit"]


def test_each_command_has_examples() -> None:
    for name, module in MODULES.items():
        command = getattr(import_module(f"aiolibkv.cli.{module}"), f"{name.replace('-', '_')}_command")
        assert f"aiolibkv {name}" in command.epilog, name


def test_the_page_of_the_commands_is_current() -> None:
    made = Path(__file__).parents[2] / "docs" / "cli.md"
    assert made.read_text() == page(), f"{sys.executable} -m aiolibkv.cli.reference > docs/cli.md"

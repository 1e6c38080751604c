"""export, import and cp between databases."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from aiolibkv import open_store
from aiolibkv.testing.scale import scaled
from cli.tool import Tool, until

VALUES = {"a": bytes(range(256)), "a/b": b"", "d/e": b"text\n"}


@pytest.fixture
def other(tmp_path: Path) -> Tool:
    """The command line on another database."""
    return Tool(f"sqlite:///{tmp_path / 'other.db'}")


def filled(tool: Tool) -> None:
    for key, value in VALUES.items():
        tool.put(key, value)


def test_export_and_import(tool: Tool, other: Tool, tmp_path: Path) -> None:
    filled(tool)
    exported = tool("export")
    assert [item["key"] for item in exported.items] == list(VALUES)
    file = tmp_path / "export.jsonl"
    assert tool("export", "--output", str(file)).out == b""
    assert file.read_bytes() == exported.out
    assert [item["key"] for item in tool("export", "d").items] == ["d/e"]
    assert tool.run("export", "nothing", "--output", str(file)).code == 1
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".jsonl"] == [file.name]
    assert file.read_bytes() == exported.out

    assert other("import", "--dry-run", stdin=exported.out).lines == ["create\ta", "create\ta/b", "create\td/e"]
    assert other.values() == {}
    other("import", str(file))
    assert other.values() == VALUES
    assert other("import", str(file)).out == b""


def test_import_changes_what_it_says(tool: Tool) -> None:
    for key in ("into/a", "into/b", "into/c", "other"):
        tool.put(key, b"old")
    lines = b'{"key": "a", "value": "new"}\n{"key": "b", "value": "old"}\n{"key": "d", "value_base64": "/w=="}\n'
    assert tool("import", "--into", "into", "--create-only", stdin=lines).lines == ["create\tinto/d"]
    assert tool("import", "--into", "into", "--delete", "--json", stdin=lines).items == [
        {"event": "change", "key": "into/a"},
        {"event": "delete", "key": "into/c"},
    ]
    after = {"into/a": b"new", "into/b": b"old", "into/d": b"\xff", "other": b"old"}
    assert tool.values() == after
    for line in (b"no JSON", b'{"key": "a"}', b'{"key": "d", "value": ""}\n{"key": "d", "value": ""}', b"[]"):
        assert tool.run("import", stdin=b'{"key": "x", "value": ""}\n' + line).code == 2
    assert tool.values() == after


def test_import_checks_everything_first(tool: Tool) -> None:
    fitting = b'{"key": "x", "value": ""}\n'
    too_large = json.dumps({"key": "y", "value": "y" * 1024 * 1024 * 17}).encode()
    empty = b'{"key": "/", "value": ""}'
    wrong = b'{"key": "a//b", "value": ""}'
    for line, reason in ((wrong, "'q/a//b'"), (too_large, "key 'q/y'"), (empty, "line 2: the key is empty")):
        ended = tool.run("import", "--into", "q", stdin=fitting + line)
        assert (ended.code, ended.out) == (8, b"")
        assert reason in ended.err
    assert tool.values() == {}


def test_import_is_interrupted_while_it_reads(tool: Tool) -> None:
    with tool.start("import", stdin=subprocess.PIPE) as reading:
        assert reading.process.stdin is not None
        reading.process.stdin.write(b"x" * 1024 * 1024)  # more than there is room for in a pipe
        reading.send(signal.SIGINT)
        assert reading.process.wait(scaled(20)) == 130


def test_export_replaces_what_a_link_leads_to_and_no_device(tool: Tool, tmp_path: Path) -> None:
    filled(tool)
    file, link = tmp_path / "export", tmp_path / "link"
    file.touch(mode=0o640)
    link.symlink_to(file)
    tool("export", "--output", str(link))
    assert link.is_symlink()
    assert len(file.read_bytes().splitlines()) == len(VALUES)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert tool("export", "--output", "/dev/stdout").out == file.read_bytes()


def test_memory_is_bounded(tool: Tool, other: Tool, tmp_path: Path) -> None:
    size, number = 1024 * 1024, 40

    async def fill() -> None:
        async with open_store(tool.url) as store:
            for at in range(number):
                await store.put(f"dir/{at}", b"x" * size)

    asyncio.run(fill())
    file = str(tmp_path / "export")
    most = tool.memory("get", "dir/0") + 30 * size
    for command in (["export", "-o", file], ["ls", "-l", "dir"], ["cp", tool.url, other.url]):
        assert tool.memory(*command) < most, command
    assert other.memory("import", file, "--into", "new", "--delete") < most
    assert len(other.values()) == 2 * number


def test_cp_is_not_into_itself(tool: Tool) -> None:
    for source, destination in (
        (tool.url, f"{tool.url}?prefix=a"),
        ("etcd://u:p@h/a/b", "etcd://h/a"),
        ("zk://h/a/b", "zookeeper://h/a"),
        ("etcd://h/a/b", "etcd://H:2379/a"),
        ("etcd://h,g/a/b", "etcd://i,h/a"),
    ):
        ended = tool.run("cp", source, destination)
        assert (ended.code, "into itself" in ended.err) == (2, True)


def test_cp(tool: Tool, other: Tool) -> None:
    filled(tool)
    other.put("a", b"other")
    other.put("more", b"")
    source, destination = f"{tool.url}?prefix=", f"{other.url}?prefix="
    assert tool("cp", source, destination, "--dry-run", "--delete").lines == [
        "change\ta",
        "create\ta/b",
        "create\td/e",
        "delete\tmore",
    ]
    assert tool("cp", source, destination, "--json").items == [{"keys": 3, "written": 3, "refused": 0}]
    assert other.values() == {**VALUES, "more": b""}
    assert tool("cp", source, destination, "--delete", "--json").items == [{"keys": 3, "written": 1, "refused": 0}]
    assert other.values() == VALUES


def test_cp_follows(tool: Tool, other: Tool) -> None:
    filled(tool)
    with tool.start("cp", tool.url, other.url, "--follow") as following:
        until(lambda: other.values() == VALUES, within=20)
        tool.put("new", b"1")
        tool.delete("a")
        until(lambda: other.values().get("new") == b"1" and "a" not in other.values(), within=20)
        following.send(signal.SIGINT)
        assert following.ended().code == 130

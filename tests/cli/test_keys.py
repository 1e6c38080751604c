"""get, put, rm and ls."""

from __future__ import annotations

import base64
from pathlib import Path

from cli.tool import Tool

ALL_BYTES = bytes(range(256))


def test_values_are_bytes(tool: Tool, tmp_path: Path) -> None:
    tool("put", "all", stdin=ALL_BYTES)
    assert tool("get", "all").out == ALL_BYTES
    (pair,) = tool("get", "all", "--json").items
    assert base64.b64decode(pair.pop("value_base64")) == ALL_BYTES
    assert pair.keys() == {"key", "last_index"}
    file = tmp_path / "empty"
    file.touch()
    (written,) = tool("put", "/empty/", "--file", str(file), "--json").items
    assert written == {"key": "empty", "value": "", "last_index": written["last_index"]}
    assert written["last_index"] > pair["last_index"]
    assert tool("get", "empty").out == b""
    tool("put", "text", "é\n")
    (text,) = tool("--json", "get", "text").items
    assert text["value"] == "é\n"


def test_put_compares(tool: Tool) -> None:
    assert tool("put", "key", "1", "--create").out == b""
    refused = tool.run("put", "key", "2", "--create")
    assert (refused.code, refused.out) == (5, b"")
    assert "the key exists already (sqlite at " in refused.err
    assert "'key'" in refused.err
    first = tool.put("key", b"2")
    (pair,) = tool("put", "key", "3", "--if-index", str(first), "--json").items
    assert tool.run("put", "key", "4", "--if-index", str(first)).code == 5
    assert tool.run("rm", "key", "--if-index", str(first)).code == 5
    assert tool.values() == {"key": b"3"}
    tool("rm", "key", "--if-index", str(pair["last_index"]))
    assert tool.run("get", "key").code == 1


def test_rm(tool: Tool) -> None:
    for key in ("a", "a/b", "a/b/c", "ab", "d"):
        tool.put(key)
    assert tool("rm", "-r", "a").lines == ["3"]
    some = tool.run("rm", "gone", "d")
    assert (some.code, len(some.err.splitlines())) == (1, 1)
    assert tool.values().keys() == {"ab"}
    assert tool.run("rm", "-r", "a").code == 1
    assert tool("rm", "-r", "/", "--json").items == [{"key": "/", "deleted": 1}]
    assert tool.values() == {}


def test_ls(tool: Tool) -> None:
    values = {"a": b"1", "a/b c": b"x" * 100, "d/e/f": b"a\tb\\"}
    first, second, third = (tool.put(key, value) for key, value in values.items())
    assert tool("ls").lines == ["a", "a/", "d/"]
    assert tool("ls", "--json").items == [{"name": "a"}, {"name": "a/"}, {"name": "d/"}]
    assert tool("ls", "-R").lines == ["a", "a/b c", "d/e/f"]
    assert tool("ls", "-R", "d", "--json").items == [{"key": "d/e/f"}]
    assert tool("ls", "-l", "a/").lines == [f"{second}\t100\tb c\t{'x' * 60}..."]
    assert tool("ls", "-l").lines == [f"{first}\t1\ta\t1", "-\t-\ta/\t", "-\t-\td/\t"]
    assert tool("ls", "-lR", "d").lines == [f"{third}\t4\td/e/f\ta\\tb\\\\"]
    assert tool("ls", "--tree").lines == [
        "├── a",
        "│   └── b c",
        "└── d/",
        "    └── e/",
        "        └── f",
    ]
    assert tool.run("ls", "b").code == 1


def test_what_is_shown_stays_in_its_line(tool: Tool) -> None:
    index = tool.put("key", b"\x1b[2J\r\n\xe2\x80\xae\xff\\xff")
    assert tool("ls", "-l").lines == [f"{index}\t14\tkey\t\\x1b[2J\\r\\n\\u202e\\xff\\\\xff"]
    error = tool.run("get", "a\x1b\nb\udcff").err
    assert len(error.splitlines()) == 1
    assert "\x1b" not in error

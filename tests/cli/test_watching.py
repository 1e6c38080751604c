"""The command watch."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aiolibkv.testing.scale import scaled
from cli.tool import Running, Tool, until


def test_watch(tool: Tool) -> None:
    with tool.start("watch", "key", "--count", "3") as watch:
        assert watch.line() == "key\t-"
        index = tool.put("key", b"a\nb")
        assert watch.line() == f"key\t{index}\ta\\nb"
        tool.delete("key")
        assert watch.line() == "key\t-"
        assert watch.ended().code == 0


def test_watch_tree(tool: Tool) -> None:
    first = tool.put("dir/a", b"1")
    with tool.start("watch", "--tree", "dir", "--json") as watch:
        assert json.loads(watch.line()) == {"key": "dir/a", "value": "1", "last_index": first}
        second = tool.put("dir/b", b"\xff")
        assert json.loads(watch.line()) == {"key": "dir/b", "value_base64": "/w==", "last_index": second}
        tool.delete("dir/a")
        assert json.loads(watch.line()) == {"key": "dir/a", "value": None, "last_index": None}
        watch.send(signal.SIGINT)
        ended = watch.ended()
        assert (ended.code, ended.err) == (130, "")


@pytest.mark.parametrize(
    "command",
    [["watch", "key"], ["leader", "key", "-f"], ["services", "-f"], ["instances", "web", "-f"], ["watch", "-t", ""]],
)
def test_who_follows_ends_when_nobody_reads(tool: Tool, command: list[str]) -> None:
    tool.put("services/web/1", b'{"service": "web", "id": "1", "address": "10.0.0.1:80", "metadata": {}}')
    with tool.start(*command) as following:
        following.line()
        assert following.process.stdout is not None
        following.process.stdout.close()
        assert following.process.wait(scaled(20)) == 0
        assert following.process.stderr is not None
        assert following.process.stderr.read() == b""


def test_a_pipe_that_is_open_for_reading_too(tool: Tool, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    both = os.open(fifo, os.O_RDWR)
    try:
        command = [sys.executable, "-m", "aiolibkv", "watch", "key", "--count", "2", "--url", tool.url]
        with Running(subprocess.Popen(command, stdout=both)) as watch:
            until(lambda: select.select((both,), (), (), 0)[0], within=20)
            index = tool.put("key", b"value")
            assert watch.process.wait(scaled(20)) == 0
        assert os.read(both, 100) == f"key\t-\nkey\t{index}\tvalue\n".encode()
    finally:
        os.close(both)


def test_watch_runs_a_command(tool: Tool) -> None:
    index = tool.put("key", b"value")
    command = 'echo "$AIOLIBKV_KEY $AIOLIBKV_INDEX $AIOLIBKV_EVENT $(cat)"; exit 3'
    with tool.start("watch", "key", "--count", "2", "--exec", command) as watch:
        assert watch.line() == f"key {index} put value"
        tool.delete("key")
        assert watch.line() == "key  delete "
        ended = watch.ended()
        assert (ended.code, len(ended.err.splitlines())) == (0, 2)

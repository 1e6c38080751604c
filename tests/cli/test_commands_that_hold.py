"""lock, elect, register and put --keep-alive: what lasts as long as a process, and commands that run meanwhile."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from aiolibkv.testing.scale import scaled
from cli.tool import Tool, children, is_alive, until

SLEEP = "echo $$; exec sleep 60"
WITH_ANOTHER = "sleep 60 & echo $$ $!; wait"
STUBBORN = "trap '' TERM INT; echo $$; while :; do sleep 0.1; done"


def test_lock_runs_a_command(tool: Tool) -> None:
    ended = tool.run("lock", "key", "--", "sh", "-c", 'echo "$AIOLIBKV_LOCK_KEY $AIOLIBKV_FENCING_TOKEN"; exit 9')
    assert (ended.code, ended.err) == (9, "")
    key, token = ended.lines[0].split()
    assert key == "key"
    assert int(token) > 0
    assert tool.values() == {}
    assert tool.run("lock", "key", "--", "sh", "-c", "kill -KILL $$").code == 128 + signal.SIGKILL
    assert tool.run("lock", "key", "--", "/nonsense").code == 127
    assert tool.run("lock", "key", "--", "/").code == 126


def test_lock_waits_no_longer_than_it_may(tool: Tool) -> None:
    tool.put("key", b"by hand")
    for wait in ("0", "0.2"):
        ended = tool.run("lock", "key", "--wait", wait, "--", "echo", "held")
        assert (ended.code, ended.out, len(ended.err.splitlines())) == (6, b"", 1)
    with tool.start("lock", "key", "--", "echo", "held") as waiting:
        tool.delete("key")
        assert waiting.line() == "held"
        assert waiting.ended().code == 0


@pytest.mark.parametrize("script", [SLEEP, STUBBORN])
def test_a_lost_lock_ends_the_command(tool: Tool, script: str) -> None:
    with tool.start("lock", "key", "--", "sh", "-c", script) as lock:
        child = int(lock.line())
        tool.delete("key")
        until(lambda: not is_alive(child), within=2)
        ended = lock.ended()
        assert (ended.code, len(ended.err.splitlines())) == (7, 1)
        assert "the lock was lost while the command ran: " in ended.err
        assert "(sqlite at " in ended.err


@pytest.mark.parametrize("command", [["lock", "key"], ["elect", "key"], ["register", "web", "10.0.0.1:80"]])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_command_and_lock(tool: Tool, command: list[str], number: signal.Signals, code: int) -> None:
    with tool.start(*command, "--", "sh", "-c", SLEEP) as running:
        child = int(running.line())
        running.send(number)
        ended = running.ended()
        assert (ended.code, ended.err) == (code, "")
        assert not is_alive(child)
    assert tool.values() == {}


def test_a_command_ends_in_its_own_way(tool: Tool) -> None:
    with tool.start("lock", "key", "--", "sh", "-c", "trap 'exit 5' TERM; echo; while :; do sleep 0.1; done") as lock:
        lock.line()
        lock.send(signal.SIGTERM)
        assert lock.ended().code == 5


@pytest.mark.parametrize("command", [["lock", "key"], ["elect", "key"]])
def test_a_killed_process_takes_its_command_along(tool: Tool, command: list[str]) -> None:
    with tool.start(*command, "--", "sh", "-c", WITH_ANOTHER) as running:
        group = [int(process) for process in running.line().split()]
        below = children(running.process.pid)
        running.send(signal.SIGKILL)
        until(lambda: not any(map(is_alive, [*group, *below])), within=2)


def test_a_killed_command_takes_its_group_along(tool: Tool) -> None:
    with tool.start("lock", "key", "--", "sh", "-c", WITH_ANOTHER) as lock:
        command, another = (int(process) for process in lock.line().split())
        below = children(lock.process.pid)
        os.kill(command, signal.SIGKILL)
        assert lock.ended().code == 128 + signal.SIGKILL
        assert not any(map(is_alive, [another, *below]))


def test_signals_are_passed_on(tool: Tool) -> None:
    with tool.start(
        "lock", "key", "--", "sh", "-c", "trap 'echo got; exit 0' USR1; echo; while :; do sleep 0.1; done"
    ) as lock:
        lock.line()
        lock.send(signal.SIGUSR1)
        assert lock.line() == "got"
        assert lock.ended().code == 0


def test_elect_runs_the_command_again(tool: Tool) -> None:
    assert tool.run("leader", "key").code == 1
    with tool.start("elect", "key", "--node", "ann", "--", "sh", "-c", SLEEP) as elect:
        first = int(elect.line())
        assert tool("leader", "key").lines == ["ann"]
        assert tool("leader", "key", "--json").items == [{"key": "key", "leader": "ann"}]
        tool.delete("key")
        assert int(elect.line()) != first
        assert not is_alive(first)
    assert tool.run("elect", "other", "--", "sh", "-c", "exit 4").code == 4


def test_leader_follows(tool: Tool) -> None:
    with tool.start("leader", "key", "--follow") as leader:
        assert leader.line() == ""
        assert tool.run("elect", "key", "--node", "ann", "--", "true").code == 0
        assert leader.line() == "ann"
        assert leader.line() == ""


def test_register(tool: Tool) -> None:
    assert tool("instances", "web").lines == []
    with tool.start("instances", "web", "--follow") as following, tool.start("services", "--follow") as services:
        with tool.start("register", "web", "10.0.0.1:80", "--id", "1", "--metadata", "zone=a=b") as registered:
            assert following.line() == "+\t1\t10.0.0.1:80\tzone=a=b"
            assert services.line() == "+\tweb"
            assert tool("services").lines == ["web"]
            assert tool("instances", "web").lines == ["1\t10.0.0.1:80\tzone=a=b"]
            fields = {"service": "web", "id": "1", "address": "10.0.0.1:80", "metadata": {"zone": "a=b"}}
            assert tool("instances", "web", "--json").items == [fields]
            registered.send(signal.SIGTERM)
            assert registered.ended().code == 143
        assert following.line() == "-\t1\t10.0.0.1:80\tzone=a=b"
        assert services.line() == "-\tweb"
    assert tool.run("register", "web", "10.0.0.1:80", "--", "sh", "-c", "exit 4").code == 4
    assert tool("services").lines == []


def test_put_keeps_alive(tool: Tool) -> None:
    with tool.start("put", "key", "value", "--keep-alive", "--ttl", f"{scaled(1)}", "--json") as put:
        index = json.loads(put.line())["last_index"]
        with tool.start("watch", "key") as watch:
            assert watch.line() == f"key\t{index}\tvalue"
            put.send(signal.SIGTERM)
            assert put.ended().code == 143
            assert watch.line() == "key\t-"
    tool("put", "key", "value", "--ttl", "0.2")
    with tool.start("watch", "key") as watch:
        until(lambda: watch.line() == "key\t-", within=20)


def test_every_runs_each_slot_once(tool: Tool, tmp_path: Path) -> None:
    file = tmp_path / "slots"
    file.touch()
    command = ["every", "0.5", "job", "--", "sh", "-c", f"echo $AIOLIBKV_SLOT >> {file}; exit 3"]
    with ExitStack() as stack:
        processes = [stack.enter_context(tool.start(*command)) for _ in range(5)]
        until(lambda: len(file.read_text().split()) >= 6, within=30)
        for process in processes:
            process.send(signal.SIGTERM)
        ends = [process.ended() for process in processes]
    slots = file.read_text().split()
    assert len(slots) == len(set(slots))
    assert {end.code for end in ends} <= {143, 3}
    assert any("has ended with 3" in end.err for end in ends)

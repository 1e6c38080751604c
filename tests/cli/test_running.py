"""What all commands have in common."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers.process import Port
from cli.tool import Tool

SECRETS = "etcd://user:pass%20word@localhost:1,localhost:2/?token=secret&conection_timeout=1"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["get"], 2),
        (["nonsense"], 2),
        (["get", "key", "--nonsense"], 2),
        (["get", "key", "-u", "nonsense://"], 2),
        (["get", "key", "-u", "etcd://host/?nonsense=1"], 2),
        (["get", "key", "--timeout", "0"], 2),
        (["put", "key", "1", "--ttl", "-1"], 2),
        (["put", "key", "1", "--ttl", "5", "-u", "memory://"], 8),
        (["get", "a//b"], 8),
        (["rm", "-r", ""], 2),
        (["get", "key", "--url", ""], 2),
        (["import", "/nonsense"], 2),
        (["postgresql-schema", "--role", ""], 2),
        (["export", "-o", "/nonsense/file"], 8),
        (["get", "key", "-u", "sqlite:////nonsense/x.db"], 8),
    ],
)
def test_an_error_is_one_line(tool: Tool, arguments: list[str], code: int) -> None:
    ended = tool.run(*arguments)
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (code, b"", 1)
    assert "Traceback" not in ended.err


def test_without_arguments_it_is_help(tool: Tool) -> None:
    assert tool().out == tool("--help").out


@pytest.mark.parametrize(
    ("command", "redirection", "code", "said"),
    [
        ("put key", "<&-", 8, "standard input is closed"),
        ("import", "<&-", 8, "standard input is closed"),
        ("rm -r gone", "<&-", 1, "nothing is below this directory"),
        ("put key value", ">&-", 0, ""),
        ("get there", ">&-", 8, "standard output is closed"),
        ("postgresql-schema", ">&-", 8, "standard output is closed"),
        ("completion bash", ">&-", 8, "standard output is closed"),
        ("completion zsh", ">/dev/full", 8, "No space left on device"),
        ("get there", ">/dev/full", 8, "No space left on device"),
        ("nonsense", "2>&-", 2, ""),
        ("get gone --verbose", "2>&-", 1, ""),
    ],
)
def test_what_is_closed_or_full_is_told(tool: Tool, command: str, redirection: str, code: int, said: str) -> None:
    tool.put("there", b"value")
    script = f"exec {sys.executable} -m aiolibkv {command} {redirection}"
    environment = {**os.environ, "AIOLIBKV_URL": tool.url}
    ended = subprocess.run(["sh", "-c", script], capture_output=True, check=False, text=True, env=environment)
    assert ended.returncode == code
    assert (said in ended.stderr, len(ended.stderr.splitlines())) == (True, 1 if said else 0)


def test_no_server(tool: Tool) -> None:
    with Port() as port:
        ended = tool.run("get", "key", "--url", f"etcd://127.0.0.1:{port}/?connection_timeout=0.2")
    assert ended.code == 3
    assert f"etcd at 127.0.0.1:{port}" in ended.err
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["get", "key"], ["get", "--verbose", "key"], ["get", "key", SECRETS], [SECRETS]])
def test_secrets_are_not_shown(arguments: list[str]) -> None:
    ended = Tool(SECRETS).run(*arguments)
    assert ended.code == 2
    for secret in ("secret", "pass%20word", "pass word"):
        assert secret not in ended.err


def test_a_traceback_only_when_verbose(tool: Tool) -> None:
    assert "Traceback" not in tool.run("get", "key").err
    assert "Traceback" in tool.run("get", "key", "--verbose").err


def test_a_closed_pipe_ends_quietly(tool: Tool) -> None:
    for key in ("a", "b"):
        tool.put(key, b"x" * 200_000)
    with tool.start("ls", "-R", "-l", "--json") as listing:
        assert listing.process.stdout is not None
        assert listing.process.stdout.read(1) == b"{"
        listing.process.stdout.close()
        assert listing.process.wait(scaled(20)) == 0
        assert listing.process.stderr is not None
        assert listing.process.stderr.read() == b""


@pytest.mark.parametrize("command", [["postgresql-schema"], ["completion", "bash"]])
def test_a_pipe_that_is_closed_from_the_beginning(tool: Tool, command: list[str]) -> None:
    with tool.start(*command) as writing:
        assert writing.process.stdout is not None
        writing.process.stdout.close()
        assert writing.process.wait(scaled(20)) == 0
        assert writing.process.stderr is not None
        assert writing.process.stderr.read() == b""


def test_who_reads_nothing_keeps_nothing_from_ending(tool: Tool) -> None:
    tool.put("key", b"x" * 200_000)
    with tool.start("get", "key") as reading:
        assert reading.process.stdout is not None
        assert reading.process.stdout.read(1) == b"x"
        reading.send(signal.SIGTERM)
        assert reading.process.wait(scaled(20)) == 143


def test_without_a_url_it_is_a_database_of_the_users_own(tmp_path: Path) -> None:
    tool = Tool("")
    home = str(tmp_path)
    tool("put", "key", "value", HOME=home, XDG_DATA_HOME=f"{home}/data")
    assert tool("get", "key", HOME=home, XDG_DATA_HOME=f"{home}/data").out == b"value"
    assert (tmp_path / "data" / "aiolibkv" / "aiolibkv.db").exists()


def test_without_its_packages_the_command_names_them() -> None:
    program = "import sys; sys.modules['click'] = None; from aiolibkv.cli import main; main()"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, text=True)
    assert ended.returncode == 1
    assert "pip install 'aiolibkv[cli]'" in ended.stderr


def test_ctrl_c_at_the_start_is_no_traceback(tool: Tool) -> None:
    program = """
import os, signal, sys, weakref
import aiolibkv.cli

class Interrupting:
    def find_spec(self, name, *_):
        if name == "aiolibkv.cli.commands":
            # As the locks of the import system are: what is raised in there is lost.
            noticed = weakref.ref(Interrupting(), lambda _: os.kill(os.getpid(), signal.SIGINT))

sys.meta_path.insert(0, Interrupting())
sys.argv[1:] = ["watch", "key"]
aiolibkv.cli.main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=False,
        timeout=scaled(20),
        env={**os.environ, "AIOLIBKV_URL": tool.url},
    )
    assert (ended.returncode, ended.stderr) == (130, b"")


def test_starting_is_cheap(tool: Tool) -> None:
    tool.put("key", b"value")
    program = """
import sys
from aiolibkv.cli import main
sys.argv[1:] = ["get", "key"]
try:
    main()
finally:
    print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        text=True,
        env={**os.environ, "AIOLIBKV_URL": tool.url},
    )
    assert not {"rich", "aiohttp", "hpack", "aiozk", "platformdirs"} & set(ended.stderr.split())

    def seconds() -> float:
        before = os.times()
        tool("get", "key")
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(5)) < scaled(0.25)

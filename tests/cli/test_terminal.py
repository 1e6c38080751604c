"""Commands at a terminal."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiolibkv.testing.scale import scaled
from cli.tool import Tool, until

ASKING = "echo ready; read x; echo got $x"


class Terminal:
    """A process that has a terminal of its own."""

    def __init__(self, process: subprocess.Popen[bytes], screen: int) -> None:
        self.process = process
        self._screen = screen

    def type(self, text: bytes) -> None:
        os.write(self._screen, text)

    def shows(self, text: bytes) -> bytes:
        """Wait until a text is shown; return all that was."""
        shown = b""
        deadline = time.monotonic() + scaled(20)
        while text not in shown:
            assert time.monotonic() < deadline, shown
            if select.select([self._screen], [], [], 0.1)[0]:
                shown += os.read(self._screen, 4096)
        return shown


@contextmanager
def at_terminal(
    tool: Tool, *arguments: str, program: Sequence[str] = (sys.executable, "-m", "aiolibkv"), **variables: str
) -> Iterator[Terminal]:
    screen, side = os.openpty()
    # The terminal that the leader of a session opens first is its own.
    shell = 'terminal=$1; shift; exec "$@" < "$terminal" > "$terminal" 2>&1'
    command = ["sh", "-c", shell, "sh", os.ttyname(side), *program, *arguments]
    process = subprocess.Popen(
        command, start_new_session=True, env={**os.environ, "AIOLIBKV_URL": tool.url, **variables}
    )
    try:
        yield Terminal(process, screen)
    finally:
        process.kill()
        process.wait()
        os.close(side)
        os.close(screen)


def test_a_command_reads_the_terminal(tool: Tool) -> None:
    with at_terminal(tool, "lock", "key", "--", "sh", "-c", ASKING) as terminal:
        terminal.shows(b"ready")
        terminal.type(b"hello\n")
        terminal.shows(b"got hello")
        assert terminal.process.wait(scaled(20)) == 0


def test_ctrl_c_ends_the_command(tool: Tool) -> None:
    with at_terminal(tool, "lock", "key", "--", "sh", "-c", "echo ready; exec sleep 60") as terminal:
        terminal.shows(b"ready")
        terminal.type(b"\x03")
        assert terminal.process.wait(scaled(20)) == 130
    assert tool.values() == {}


@pytest.mark.parametrize("command", [["every", "10000", "job", "--"], ["watch", "key", "--exec"]])
def test_ctrl_c_at_the_command_is_for_this_process_too(tool: Tool, command: list[str]) -> None:
    script = "echo ready; exec sleep 60"
    with at_terminal(tool, *command, *([script] if "--exec" in command else ["sh", "-c", script])) as terminal:
        terminal.shows(b"ready")
        terminal.type(b"\x03")
        assert terminal.process.wait(scaled(20)) == 130


@pytest.mark.parametrize("is_lost", [False, True])
def test_ctrl_z_stops_both(tool: Tool, *, is_lost: bool) -> None:
    with at_terminal(tool, "lock", "key", "--ttl", "60", "--", "sh", "-c", ASKING) as terminal:
        terminal.shows(b"ready")
        terminal.type(b"\x1a")
        until(lambda: os.waitid(os.P_PID, terminal.process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT), within=20)
        if is_lost:
            tool.delete("key")
        terminal.process.send_signal(signal.SIGCONT)
        if is_lost:
            assert terminal.process.wait(scaled(20)) == 7
        else:
            terminal.type(b"again\n")
            terminal.shows(b"got again")
            assert terminal.process.wait(scaled(20)) == 0


@pytest.mark.parametrize(("variables", "name"), [({}, b"\x1b[1;34md/\x1b[0m"), ({"NO_COLOR": "1"}, b"d/")])
def test_lists_have_columns_and_colours(tool: Tool, variables: dict[str, str], name: bytes) -> None:
    indices = [tool.put(key, b"value") for key in ("a", "d/e", "日本")]
    with at_terminal(tool, "ls", "-l", TERM="xterm", **variables) as terminal:
        heading, *rows = terminal.shows("日本".encode() + b"  value\r\n").splitlines()
    width = len(str(indices[0]))
    assert b"INDEX".ljust(width) + b"  SIZE  NAME  VALUE" in heading
    assert rows == [
        b"%d  5     a     value" % indices[0],
        b"-".ljust(width) + b"  -     " + name,
        b"%d  5     %s  value" % (indices[2], "日本".encode()),
    ]


@pytest.mark.parametrize(
    ("shell", "options", "begin"),
    [
        ("bash", ["--norc"], ""),
        ("zsh", ["-f"], "autoload -Uz compinit && compinit -u -D; bindkey '^I' complete-word; "),
    ],
)
def test_a_shell_completes_keys(tool: Tool, tmp_path: Path, shell: str, options: list[str], begin: str) -> None:
    tool.put("config/my limit", b"the value")
    path = with_the_command(tmp_path, shell)
    with at_terminal(tool, program=[shell, *options, "-i"], PATH=path, PS1="> ", TERM="dumb") as terminal:
        terminal.type(f'{begin}eval "$(aiolibkv completion {shell})"; echo $((1000 + 1))\n'.encode())
        terminal.shows(b"1001")
        terminal.type(b"aiolibkv g\tcon\tm\t\n")
        terminal.shows(b"the value")


def test_fish_completes_commands_options_and_keys(tool: Tool, tmp_path: Path) -> None:
    tool.put("config/my limit, which has a comma", b"")
    environment = {
        **os.environ,
        "PATH": with_the_command(tmp_path, "fish"),
        "AIOLIBKV_URL": tool.url,
        "HOME": str(tmp_path),
    }
    for line, expected in {
        "aiolibkv get ": "config/",
        "aiolibkv get config/m": "config/my limit, which has a comma",
        "aiolibkv demo --verb": "--verbose\tShow the library's log, and tracebacks.",
        "aiolibkv doc": "doctor\tExamine the store: can it be reached, how...",
    }.items():
        program = f"aiolibkv completion fish | source; complete -C '{line}'"
        ended = subprocess.run(["fish", "-c", program], env=environment, capture_output=True, text=True, check=True)
        assert ended.stdout == expected + "\n"


def with_the_command(directory: Path, shell: str) -> str:
    """Return a PATH on which a shell finds the command; skip the test where there is no such shell."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    program = directory / "aiolibkv"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m aiolibkv "$@"\n')
    program.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


def test_text_at_a_terminal_ends_with_its_line(tool: Tool) -> None:
    tool.put("key", b"value")
    with at_terminal(tool, "get", "key") as terminal:
        assert terminal.shows(b"\n") == b"value\r\n"

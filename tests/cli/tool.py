"""The command line as a process, and stores that it is tried on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from aiolibkv import open_store
from aiolibkv.testing.scale import scaled

_TELLING_MEMORY = """
import sys
from aiolibkv.cli import main
try:
    main()
finally:
    # Not ru_maxrss, which begins with what the process that forked had.
    print(*(line for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
"""


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()

    @property
    def items(self) -> list[Any]:
        return [json.loads(line) for line in self.lines]


class Running:
    """A process that runs; killed at the end of ``with``."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if error is not None and self.process.stderr is not None and not self.process.stderr.closed:
            os.set_blocking(self.process.stderr.fileno(), False)
            said = self.process.stderr.read()
            error.add_note(f"{self.process.args!r} ended with {self.process.returncode} and said {said!r}")
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()  # what it started may have the other end

    def line(self) -> str:
        """Return the next line of its standard output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().rstrip("\n")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self, within: float = 20) -> Ended:
        out, err = self.process.communicate(timeout=scaled(within))
        return Ended(self.process.returncode, out, err.decode())


class Tool:
    """The command line on one store.

    Attributes:
        url: the store's.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def start(
        self,
        *arguments: str,
        stdin: int = subprocess.DEVNULL,
        environment: Mapping[str, str] | None = None,
    ) -> Running:
        """Start a command."""
        return Running(
            subprocess.Popen(
                [sys.executable, "-m", "aiolibkv", *arguments],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "AIOLIBKV_URL": self.url, **(environment or {})},
            )
        )

    def run(self, *arguments: str, stdin: bytes = b"", **environment: str) -> Ended:
        """Run a command to its end, whatever that is."""
        with self.start(*arguments, stdin=subprocess.PIPE, environment=environment) as running:
            out, err = running.process.communicate(stdin, timeout=scaled(60))
            return Ended(running.process.returncode, out, err.decode())

    def __call__(self, *arguments: str, stdin: bytes = b"", **environment: str) -> Ended:
        """Run a command that succeeds and says nothing on standard error."""
        ended = self.run(*arguments, stdin=stdin, **environment)
        assert (ended.code, ended.err) == (0, "")
        return ended

    def memory(self, *arguments: str) -> int:
        """Run a command that succeeds, and return how many bytes of memory it had at most."""
        command = [sys.executable, "-c", _TELLING_MEMORY, *arguments]
        environment = {**os.environ, "AIOLIBKV_URL": self.url}
        ended = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True, env=environment
        )
        return 1024 * int(ended.stderr.split()[-2])

    def put(self, key: str, value: bytes = b"") -> int:
        """Put a key, and return its index; without a process, which would take longer."""

        async def put() -> int:
            async with open_store(self.url) as store:
                return (await store.put(key, value)).last_index

        return asyncio.run(put())

    def delete(self, key: str) -> None:
        """Delete a key."""

        async def delete() -> None:
            async with open_store(self.url) as store:
                await store.delete(key)

        asyncio.run(delete())

    def values(self) -> dict[str, bytes]:
        """Return everything."""

        async def read() -> dict[str, bytes]:
            async with open_store(self.url) as store:
                return {pair.key: pair.value for pair in await store.list("")}

        return asyncio.run(read())


def is_alive(process: int) -> bool:
    """Tell whether a process runs; one that has ended and is not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(process: int) -> list[int]:
    """Return the children of a process."""
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def until(condition: Callable[[], object], *, within: float) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + scaled(within)
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)

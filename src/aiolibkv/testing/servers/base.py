"""What all servers have in common: a process, ports, a directory, readiness."""

import asyncio
import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers.process import (
    HOST,
    NOBODY,
    POLL_INTERVAL,
    Port,
    ServerCommandError,
    launcher,
)

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_FIRST_PROBE_SECONDS = 0.2
PROBE_SECONDS = 3.0
_ATTEMPTS = 3
# What a server that is starting, paused or dead may make of a question.
NOT_YET = (OSError, EOFError, TimeoutError, ServerCommandError)


class ServerStartError(RuntimeError):
    """A server did not become ready; the text ends with its log."""


class Server(ABC):
    """One process of a real server, with its data in a temporary directory.

    `start()` and `stop()` keep the data; leaving `async with` (or `close()`) removes it. The process is not
    bound to an event loop: a server started in one may be used from another.

    Args:
        extra_args: more arguments for the server's program.
    """

    program: ClassVar[str]
    """The name of the program."""
    packages: ClassVar[str]
    """Which Debian packages bring it."""
    port_names: ClassVar[Sequence[str]]
    """The ports it listens on; the first is the one for clients."""
    unprivileged: ClassVar[bool] = False
    """Whether it refuses to be run by root; it is then run by the user nobody."""
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    """What ends it in good order, without waiting for its clients."""

    def __init__(self, *, extra_args: Sequence[str] = ()) -> None:
        """Reserve ports and a directory; nothing is started."""
        self._extra_args = tuple(extra_args)
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_set_up = False
        self._ports_are_known = False
        self._ports: dict[str, Port] = {}

    async def __aenter__(self) -> Self:
        """Start the server."""
        try:
            await self.start()
        except BaseException:
            self.discard()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kill the server and remove its data."""
        await self.close()

    @property
    def host(self) -> str:
        """The address to connect to."""
        return HOST

    @property
    def port(self) -> int:
        """The port for clients, the same until `close()`."""
        return self.port_of(self.port_names[0])

    @property
    def endpoint(self) -> str:
        """Address and port, as in "127.0.0.1:2379"."""
        return f"{HOST}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the process exists, be it paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            RuntimeError: the server is not running.
        """
        if self._process is None or not self.running:
            message = f"{self.program} is not running"
            raise RuntimeError(message)
        return self._process.pid

    @property
    def directory(self) -> Path:
        """The directory that holds data, configuration and log."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix=f"aiolibkv-{self.program}-"))
            _undiscarded.add(self)
        return self._directory

    @property
    def data_directory(self) -> Path:
        """The part of `directory` that `wipe()` removes."""
        return self.directory / "data"

    def port_of(self, name: str) -> int:
        """Return one of the server's ports.

        Args:
            name: one of `port_names`.
        """
        if not self._ports:
            self._ports = {port_name: Port() for port_name in self.port_names}
            _undiscarded.add(self)
        return self._ports[name].number

    def log_tail(self, lines: int = 40) -> str:
        """Return the end of what the server has written to its standard output and error."""
        try:
            text = (self.directory / "log").read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    async def start(self) -> None:
        """Start the server on its ports, with the data that is there, and wait until it is ready.

        Raises:
            ServerMissingError: the program is not installed.
            ServerStartError: it was not ready in time, or ended.
        """
        if self.running:
            message = f"{self.program} is already running"
            raise RuntimeError(message)
        for attempt in range(_ATTEMPTS):
            try:
                await self._start_once()
            except _PortTakenError:
                if self._ports_are_known or attempt + 1 == _ATTEMPTS:
                    raise
                self._release_ports()
                self._remove_data()
            else:
                return

    async def stop(self) -> None:
        """End the server in good order (with SIGKILL when that takes too long); its data stays."""
        if not self.running:
            return
        self.resume()
        os.kill(self.pid, self.stop_signal)
        try:
            await self._wait_for_exit(scaled(_STOP_SECONDS))
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """End the server with SIGKILL; its data stays."""
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
            await self._wait_for_exit(scaled(_STOP_SECONDS))

    def pause(self) -> None:
        """Freeze the process (SIGSTOP): the kernel still accepts connections, nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)
        # The threads stop one after the other, within a moment; without waiting, one may still answer.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a frozen process continue (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    async def restart(self) -> None:
        """Stop the server if it runs, and start it with its data on the same ports."""
        await self.stop()
        await self.start()

    async def wipe(self) -> None:
        """Kill the server if it runs, and start a new one without data on the same ports."""
        await self.kill()
        self._remove_data()
        await self.start()

    async def close(self) -> None:
        """Kill the server, remove its data and give its ports back."""
        try:
            await self.kill()
        finally:
            self.discard()

    def discard(self) -> None:
        """Kill the server, remove its data and give its ports back, without waiting in an event loop."""
        self._kill_now()
        self._release_ports()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
        self._ports_are_known = self._is_set_up = False
        _undiscarded.discard(self)

    def keep_ports(self) -> None:
        """Fail rather than take other ports when one is taken at the first start, since others know them already."""
        self._ports_are_known = True

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """Return the command that starts the server, the path of its program first; writes its configuration.

        Raises:
            ServerMissingError: the program is not installed.
        """

    @abstractmethod
    async def _is_ready(self) -> bool:
        """Return whether the server serves; OSError, EOFError, TimeoutError, ServerCommandError mean no."""

    async def _prepare_data(self) -> None:  # noqa: B027 -- most servers need nothing
        """Make what the server has to find in its data directory; called before each start."""

    async def _set_up(self) -> None:  # noqa: B027 -- most servers need nothing
        """Make accounts and the like; called once for new data, when the server is first ready."""

    async def _start_once(self) -> None:
        self.data_directory.mkdir(exist_ok=True)
        if self.unprivileged and os.geteuid() == 0:
            for directory in (self.directory, self.data_directory):
                os.chown(directory, NOBODY, NOBODY)
        await self._prepare_data()
        command = self._command()
        with (self.directory / "log").open("ab") as log:
            written = log.tell()
            self._process = subprocess.Popen(  # noqa: ASYNC220 -- must outlive the event loop
                [*launcher(unprivileged=self.unprivileged), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                # Ctrl-C is for the tests; the servers end when the tests have cleaned up.
                start_new_session=True,
            )
        try:
            await self._wait_until_ready(written)
            if not self._is_set_up:
                await self._set_up()
                self._is_set_up = True
        except BaseException:
            self._kill_now()
            raise
        self._ports_are_known = True

    async def _wait_until_ready(self, written: int) -> None:
        limit = scaled(_START_SECONDS)
        deadline = time.monotonic() + limit
        patience = _FIRST_PROBE_SECONDS
        while True:
            if not self.running:
                tail = self.log_tail()
                log = (self.directory / "log").read_bytes()[written:].lower()
                if b"address already in use" in log:
                    message = f"a port of {self.program} was taken by another process\n{tail}"
                    raise _PortTakenError(message)
                message = f"{self.program} ended before it was ready\n{tail}"
                raise ServerStartError(message)
            left = deadline - time.monotonic()
            if left <= 0:
                message = f"{self.program} was not ready within {limit:g} s\n{self.log_tail()}"
                raise ServerStartError(message)
            try:
                async with asyncio.timeout(min(left, scaled(patience))):
                    if await self._is_ready():
                        return
            except TimeoutError:
                # ZooKeeper never answers a question that came a moment too early, so begin with little.
                patience = min(2 * patience, PROBE_SECONDS)
            except NOT_YET:
                pass
            await asyncio.sleep(POLL_INTERVAL)

    async def _wait_for_exit(self, limit: float) -> None:
        async with asyncio.timeout(limit):
            while self.running:
                await asyncio.sleep(POLL_INTERVAL)

    def _kill_now(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _remove_data(self) -> None:
        shutil.rmtree(self.data_directory, ignore_errors=True)
        self._is_set_up = False

    def _release_ports(self) -> None:
        for port in self._ports.values():
            port.release()
        self._ports = {}


class _PortTakenError(ServerStartError):
    """Another process listens on a port of the server."""


_undiscarded: set[Server] = set()
_owner = os.getpid()


@atexit.register
def _discard_all() -> None:
    # A forked child runs this too when it exits.
    if os.getpid() != _owner:
        return
    for server in list(_undiscarded):
        server.discard()

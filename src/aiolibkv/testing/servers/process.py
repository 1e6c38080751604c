"""Programs, ports and plain HTTP, without blocking the event loop."""

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from aiolibkv.testing.scale import scaled

HOST = "127.0.0.1"
POLL_INTERVAL = 0.01
NOBODY = 65534
"""The number of the user and the group of those who may do nothing."""
_INSTALLATIONS = "/opt/aiolibkv-servers"
_SYSTEM_PROGRAMS = ("/usr/local/sbin", "/usr/sbin")


class ServerMissingError(RuntimeError):
    """A server's program is not installed."""


class ServerCommandError(RuntimeError):
    """A command given to a server failed; the text ends with what it said."""


class Port:
    """A free TCP port that stays ours: nobody else is given it, not even while the server is down.

    The socket is bound and never listens, and both it and the server set SO_REUSEADDR, so the server can
    listen on the port. A client that keeps connecting to a dead server's port cannot be given that very
    port as its own either, which would connect it to itself.

    It is kept until ``release()``, or for a block::

        with Port() as number:
            ...
    """

    def __init__(self) -> None:
        """Reserve a port."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((HOST, 0))
        self.number: int = self._socket.getsockname()[1]

    def __enter__(self) -> int:
        """Return its number."""
        return self.number

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self.release()

    def release(self) -> None:
        """Give the port back."""
        self._socket.close()


def find_program(name: str, packages: str, *, directory: Path | None = None) -> str:
    """Return the path of a program.

    Args:
        name: as typed in a shell.
        packages: the Debian packages that bring it.
        directory: where to look instead of in PATH.

    Raises:
        ServerMissingError: it is not there.
    """
    # Debian keeps some servers where only root's PATH leads.
    places = str(directory) if directory else os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_PROGRAMS))
    path = shutil.which(name, path=places)
    if path is None:
        where = directory or "PATH"
        message = f"{name} is not in {where}; Debian packages: {packages} (tests/install-servers.sh installs them)"
        raise ServerMissingError(message)
    return path


def installation(name: str, version: str) -> Path:
    """Return the directory of a version that is not the machine's own, where Debian's package was unpacked.

    It is looked for in the directory that the environment variable AIOLIBKV_SERVERS names.

    Args:
        name: the server's name.
        version: its first two numbers, as in "3.5".

    Raises:
        ServerMissingError: it is not there.
    """
    directory = Path(os.environ.get("AIOLIBKV_SERVERS") or _INSTALLATIONS) / f"{name}-{version}"
    if not directory.is_dir():
        message = f"{name} {version} is not in {directory} (tests/install-servers.sh puts it there)"
        raise ServerMissingError(message)
    return directory


def launcher(*, unprivileged: bool = False) -> Sequence[str]:
    """Return what has to stand before a command to have it killed when this process dies, however it dies.

    Not a function for the child to call before exec: Python then forks in a way that runs what libraries want to
    do at a fork, and the child of a process with busy channels of gRPC may crash in that (seen with 1.85.1).

    Args:
        unprivileged: run the command as the user nobody if this process is root's.

    Raises:
        ServerMissingError: there is no program that can give up being root.
    """
    options: list[str] = []
    # Linux sends the signal when the starting thread ends, so only the main thread may ask for it.
    if sys.platform == "linux" and threading.current_thread() is threading.main_thread():
        options += ["--pdeathsig", "KILL"]
    if unprivileged and os.geteuid() == 0:
        options += ["--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    program = shutil.which("setpriv")
    if program is None and "--reuid" in options:
        message = "setpriv is not in PATH; Debian package: util-linux"
        raise ServerMissingError(message)
    return (program, *options) if program and options else ()


async def run_program(
    command: Sequence[str], environment: Mapping[str, str], *, within: float = 20.0, given: str = ""
) -> str:
    """Run a program to its end and return its standard output.

    Plain polling instead of asyncio's subprocesses: those start a thread on some versions of Python, and
    tests count threads.

    Args:
        command: the program and its arguments.
        environment: all its environment variables.
        within: seconds, before scaling.
        given: what it reads from its standard input.

    Raises:
        ServerCommandError: it failed.
        TimeoutError: it did not end in time.
    """
    with (
        tempfile.TemporaryFile() as given_file,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
    ):
        given_file.write(given.encode())
        given_file.seek(0)
        process = subprocess.Popen(  # noqa: ASYNC220 -- see above
            command, stdin=given_file, stdout=output, stderr=errors, env=environment
        )
        try:
            async with asyncio.timeout(scaled(within)):
                while process.poll() is None:
                    await asyncio.sleep(POLL_INTERVAL)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        if process.returncode:
            errors.seek(0)
            said = (errors.read() + output.read()).decode(errors="replace").strip()
            message = f"{' '.join(command)} failed: {said}"
            raise ServerCommandError(message)
        return output.read().decode()


async def exchange(port: int, request: bytes, *, tls: ssl.SSLContext | None = None) -> bytes:
    """Send a request on a connection of its own and return all that comes until the server closes it.

    Raises:
        OSError: there was no connection, or it broke.
    """
    reader, writer = await asyncio.open_connection(HOST, port, ssl=tls, server_hostname="localhost" if tls else None)
    try:
        writer.write(request)
        return await reader.read()
    finally:
        # Nothing is left to be sent, and a graceful close would wait for a paused server.
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def http(
    port: int,
    method: str,
    path: str,
    *,
    body: str = "",
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> tuple[int, str]:
    """Make an HTTP request and return the status and the body.

    Raises:
        OSError: there was no connection, or it broke.
        EOFError: the server closed the connection without an answer.
    """
    # HTTP/1.0 because its answers end with the connection and are never chunked.
    lines = [f"{method} {path} HTTP/1.0", f"Host: {HOST}", f"Content-Length: {len(body.encode())}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    answer = await exchange(port, "\r\n".join([*lines, "", body]).encode(), tls=tls)
    head, blank, content = answer.decode().partition("\r\n\r\n")
    if not blank:
        message = f"no answer to {method} {path}"
        raise EOFError(message)
    return int(head.split()[1]), content

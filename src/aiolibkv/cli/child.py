"""A command that runs as a process group of its own and is ended as a whole; for POSIX systems."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import IO, Any

from aiolibkv import HeldLock, LockLostError
from aiolibkv.cli.failures import OTHER, CommandError
from aiolibkv.cli.guard import Guard
from aiolibkv.cli.running import received

_PATIENCE = 10.0
"""Seconds that a command has to end by itself when this process is to end."""
_PATIENCE_WITH_THE_REST = 1.0
"""Seconds that others of its group have when it has ended."""
_POLL_INTERVAL = 0.02
_PASSED_ON = tuple(
    getattr(signal, name) for name in ("SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH") if hasattr(signal, name)
)
_NOT_FOUND, _NOT_RUNNABLE = 127, 126
_INTERRUPTED = (-signal.SIGINT, 128 + signal.SIGINT)
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Child:
    """A command that runs as a process group of its own.

    At a terminal it is the foreground group, so that it can read, and gets Ctrl-C itself; when that ends it, this
    process is interrupted too. The group dies with this process. What the command leaves behind in its group when it
    ends by itself runs on; when a signal ended it, the rest of the group is ended too.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        held: HeldLock | None = None,
        standard_input: IO[bytes] | None = None,
    ) -> None:
        """Make a child; nothing is started.

        Args:
            command: program and arguments; no shell reads them.
            environment: what it has beside this process's environment.
            held: a lock that nobody else may have while it runs.
            standard_input: what it reads; what this process reads when not given.
        """
        self._command = command
        self._environment = environment
        self._held = held
        self._standard_input = standard_input
        self._terminal: int | None = None
        self._group = 0
        self._ended: asyncio.Future[int] | None = None

    async def run(self) -> int:
        """Run the command to its end.

        Returns:
            Its exit code, or the sum of 128 and the number of the signal that ended it.

        Raises:
            CommandError: it cannot be run.
            LockLostError: the lock was lost; the group was ended as by a cancellation.

        Cancellation: the group gets the signal that this process got, else SIGTERM, and SIGKILL when it takes too long;
            it is over when this ends.
        """
        if os.name != "posix":
            raise CommandError("commands are run on POSIX systems only", OTHER)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()
        self._ended = ended
        guard = _guard()
        self._terminal = _open_terminal()
        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGCHLD: self._look,
            signal.SIGCONT: self._go_on,
            **{each: lambda number=each: self._send(number) for each in _PASSED_ON},  # type: ignore[misc]
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            self._start(guard)
            received.listener = self._pass_on
            try:
                await self._until_lost(ended)
            except asyncio.CancelledError:
                await _undisturbed(self._end(ended))
                received.child_code = _exit_code(ended.result())
                raise
            if self._held is not None and not self._held.is_held:
                await _undisturbed(self._end(ended))
                raise LockLostError(key=self._held.key)
            if self._terminal is not None and ended.result() in _INTERRUPTED:
                received.end(signal.SIGINT)
            if ended.result() < 0:
                await _undisturbed(self._end(ended))
            return _exit_code(ended.result())
        finally:
            guard.close()
            received.listener = None
            for number in handlers:
                loop.remove_signal_handler(number)
            self._close_terminal()

    async def _until_lost(self, ended: asyncio.Future[int]) -> None:
        """Wait until the child has ended, or the lock is lost."""
        if self._held is None:
            await asyncio.wait({ended})
            return
        lost = asyncio.ensure_future(self._held.wait_lost())
        either: set[asyncio.Future[Any]] = {ended, lost}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()

    def _start(self, guard: Guard) -> None:
        try:
            process = subprocess.Popen(  # noqa: S603 - it is what the user wants to run
                self._command,
                env={**os.environ, **self._environment},
                stdin=self._standard_input,
                process_group=0,
                preexec_fn=self._preparation(guard),  # noqa: PLW1509 - it takes no lock that a thread may have had
            )
        except FileNotFoundError as error:
            raise CommandError(f"there is no command {self._command[0]!r}", _NOT_FOUND) from error
        except OSError as error:
            raise CommandError(f"the command {self._command[0]!r} cannot be run: {error}", _NOT_RUNNABLE) from error
        process.returncode = 0  # it is waited for here, not by this object
        self._group = process.pid

    def _preparation(self, guard: Guard) -> Callable[[], None]:
        parent, terminal = os.getpid(), self._terminal
        if terminal is not None and os.tcgetpgrp(terminal) != os.getpgrp():
            terminal = None  # somebody else is in the foreground

        def prepare() -> None:
            guard.take()
            if terminal is not None:
                _set_foreground(terminal, os.getpid())
            if _libc is not None:
                _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != parent:
                    os._exit(1)

        return prepare

    def _look(self) -> None:
        """See whether the child has ended, or was stopped."""
        assert self._ended is not None, "it runs"
        if self._ended.done() or not self._group:
            return
        number, status = os.waitpid(self._group, os.WNOHANG | os.WUNTRACED)
        if number == 0:
            return
        if os.WIFSTOPPED(status):
            self._stop_too()
        else:
            self._ended.set_result(os.waitstatus_to_exitcode(status))

    def _stop_too(self) -> None:
        """Stop as the child was, at a terminal, so that the shell can be used, and go on with it."""
        if self._terminal is not None and os.tcgetpgrp(self._terminal) == self._group:
            _set_foreground(self._terminal, os.getpgrp())
            os.kill(0, signal.SIGSTOP)
            self._go_on()

    def _go_on(self) -> None:
        """Have the child go on, unless the lock was lost while this process was stopped."""
        if self._held is not None and not self._held.is_held:
            self._send(signal.SIGKILL)
            return
        if self._terminal is not None and os.tcgetpgrp(self._terminal) == os.getpgrp():
            _set_foreground(self._terminal, self._group)
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._group, number)
        except (ProcessLookupError, PermissionError):
            pass

    def _pass_on(self, number: signal.Signals) -> None:
        self._send(number)
        self._send(signal.SIGCONT)

    async def _end(self, ended: asyncio.Future[int]) -> None:
        """End the group: in time for who has the lock next, or for who waits for this process."""
        if received.ending is None:
            self._pass_on(signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        is_lost = was_ended = False
        while self._exists() and time.monotonic() < deadline:
            if not is_lost and self._held is not None and not self._held.is_held:
                is_lost = True
                deadline = min(deadline, time.monotonic() + _margin(self._held) / 2)
            if not was_ended and ended.done():
                was_ended = True
                deadline = min(deadline, time.monotonic() + _PATIENCE_WITH_THE_REST)
            await asyncio.sleep(_POLL_INTERVAL)
        self._send(signal.SIGKILL)
        await ended

    def _exists(self) -> bool:
        """Tell whether there is a process of the group."""
        try:
            os.killpg(self._group, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    def _close_terminal(self) -> None:
        if self._terminal is not None:
            if os.tcgetpgrp(self._terminal) == self._group:
                _set_foreground(self._terminal, os.getpgrp())
            os.close(self._terminal)
            self._terminal = None


def _guard() -> Guard:
    try:
        return Guard()
    except OSError as error:
        raise CommandError(f"no command can be run: {error}", _NOT_RUNNABLE) from error


def _exit_code(returned: int) -> int:
    """Return what a shell tells of a process that returned a code, or was ended by a signal: its number, negative."""
    return returned if returned >= 0 else 128 - returned


def _margin(held: HeldLock) -> float:
    """Return how many seconds pass between the loss of a lock and the moment when somebody else can have it."""
    return max(0.5, held.ttl / 10)


def _open_terminal() -> int | None:
    """Return the terminal of this process; None when there is none."""
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None


def _set_foreground(terminal: int, group: int) -> None:
    """Make a group the one that reads the terminal."""
    # The signal would stop who does this in the background.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        os.tcsetpgrp(terminal, group)
    except OSError:
        pass  # the terminal is gone
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


async def _undisturbed(work: Coroutine[None, None, None]) -> None:
    """Await work to its end, and only then be cancelled by who wanted that meanwhile."""
    task = asyncio.ensure_future(work)
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            is_cancelled = True
    task.result()
    if is_cancelled:
        raise asyncio.CancelledError

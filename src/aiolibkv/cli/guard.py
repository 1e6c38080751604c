"""A process that outlives this one, and ends a process group then; for POSIX systems."""

from __future__ import annotations

import os
import subprocess

_SCRIPT = """\
trap '' HUP INT QUIT TERM
read -r group || exit 0
read -r _
kill -s KILL -- "-$group"
"""
"""Reads a line, the group, from a pipe whose other end this process has, and waits for the pipe's end."""


class Guard:
    """Kills a process group when this process dies in whatever way, SIGKILL included."""

    def __init__(self) -> None:
        """Start to guard.

        Raises:
            OSError: there is no shell, or no room for a process.
        """
        reading, self._pipe = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - a fixed command
                ["/bin/sh", "-c", _SCRIPT],
                cwd="/",
                env={},
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(reading)

    def take(self) -> None:
        """Guard the group of the process that calls this: a child, between fork and exec."""
        os.write(self._pipe, b"%d\n" % os.getpid())

    def close(self) -> None:
        """Guard no more."""
        self._process.kill()
        self._process.wait()
        os.close(self._pipe)

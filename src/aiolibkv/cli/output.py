"""What goes to standard output and standard error."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any
from unicodedata import combining, east_asian_width

from aiolibkv.cli.text import escaped, masked

_AT_ONCE = select.PIPE_BUF if hasattr(select, "PIPE_BUF") else 512
"""Bytes for which there is room in a pipe that can be written to."""


_CLOSED = -1

GOOD, BAD, DIRECTORY, HEADING = "32", "1;31", "1;34", "2"
"""Colours, as terminals number them."""
_COLOUR = re.compile(r"\x1b\[[\d;]*m")


def tell(message: str) -> None:
    """Write one line to standard error."""
    if sys.stderr is None:
        return  # it is closed
    line = f"aiolibkv: {escaped(masked(message))}\n"
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    except OSError:
        pass  # nobody is there to be told


def standard_input() -> IO[bytes]:
    """Return what this process is given to read.

    Raises:
        OSError: nothing.
    """
    if sys.stdin is None:
        raise OSError("standard input is closed")
    return sys.stdin.buffer


class Output:
    """Standard output, written without keeping the event loop: who reads it may be slow.

    Attributes:
        is_terminal: whether somebody reads it at a terminal.
        has_colour: whether what is read there may have colours (https://no-color.org).
        as_json: whether each item is a JSON object.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._descriptor = _CLOSED if sys.stdout is None else sys.stdout.fileno()
        is_open = self._descriptor != _CLOSED
        mode = os.fstat(self._descriptor).st_mode if is_open else 0
        self._is_file = stat.S_ISREG(mode)
        self._is_pipe = stat.S_ISFIFO(mode)
        self.is_terminal: bool = is_open and os.isatty(self._descriptor)
        is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
        self.has_colour: bool = self.is_terminal and not is_plain

    @contextmanager
    def while_read(self) -> Iterator[None]:
        """Raise BrokenPipeError in the body as soon as nobody reads any more, though nothing is written.

        A task that waits for changes would only notice with the next one, and keep its whole pipeline.
        """
        if not self._is_pipe or not self._is_for_writing_only():
            yield
            return
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "the body is in a task"
        is_unread = False

        def end() -> None:
            nonlocal is_unread
            is_unread = True
            loop.remove_reader(self._descriptor)
            task.cancel()

        loop.add_reader(self._descriptor, end)  # nothing but its end can come from there
        try:
            yield
        except asyncio.CancelledError:
            if is_unread and not task.uncancel():
                raise BrokenPipeError from None
            raise
        finally:
            loop.remove_reader(self._descriptor)

    def _is_for_writing_only(self) -> bool:
        """Tell whether what is written cannot be read back; a pipe with a name can be open for both."""
        from fcntl import F_GETFL, fcntl  # not on Windows

        return fcntl(self._descriptor, F_GETFL) & os.O_ACCMODE == os.O_WRONLY

    def styled(self, text: str, style: str) -> str:
        """Return a text in a colour, where that can be seen."""
        return f"\x1b[{style}m{text}\x1b[0m" if self.has_colour else text

    async def line(self, text: str) -> None:
        """Write a line that is given with everything escaped."""
        await self.write(f"{text}\n".encode(errors="backslashreplace"))

    async def item(self, text: str, fields: Mapping[str, Any]) -> None:
        """Write one item, as text or as JSON."""
        await self.line(json.dumps(fields) if self.as_json else text)

    async def write(self, data: bytes) -> None:
        """Write bytes as they are.

        Raises:
            BrokenPipeError: nobody reads any more.
            OSError: standard output is closed, or the disk is full.

        Cancellation: a part may be written.
        """
        if self._descriptor == _CLOSED:
            raise OSError("standard output is closed")
        if self._is_file:
            while data:
                data = data[os.write(self._descriptor, data) :]
            return
        for at in range(0, len(data), _AT_ONCE):
            part = data[at : at + _AT_ONCE]
            while part:
                await self._writable()
                part = part[os.write(self._descriptor, part) :]

    async def _writable(self) -> None:
        if select.select((), (self._descriptor,), (), 0)[1]:
            return
        loop = asyncio.get_running_loop()
        writable = asyncio.Event()
        loop.add_writer(self._descriptor, writable.set)
        try:
            await writable.wait()
        finally:
            loop.remove_writer(self._descriptor)


def table(output: Output, rows: Sequence[Sequence[str]], heading: Sequence[str] = ()) -> list[str]:
    """Return rows as lines: in columns below a heading at a terminal, else with a tab between the fields."""
    if not output.is_terminal or not rows:
        return ["\t".join(row) for row in rows]
    whole = [heading, *rows] if heading else rows
    widths = [max(map(_width, column)) for column in zip(*whole, strict=True)]
    lines = []
    for row in whole:
        cells = [cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        line = "  ".join(cells).rstrip()
        lines.append(output.styled(line, HEADING) if row is heading else line)
    return lines


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    text = _COLOUR.sub("", text)
    if text.isascii():
        return len(text)
    return sum(0 if combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text)

"""Statements, and how they are carried out without preparing them.

A pooler may give each transaction another connection to the server, where what was prepared on the one before is not
known. Behind it a statement is sent whole, as the query of a COPY, whose rows come back in a binary format.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

_PARAMETER = re.compile(r"\$([0-9]+)")
_HEADER = 19
"""Bytes of signature, flags and the length of an extension that there is none of."""
_TRAILER = -1
_ARRAY_HEADER = 20
_ARRAY_ELEMENT = 12


class Statement(NamedTuple):
    """A statement that gives rows.

    Attributes:
        text: its arguments are $1, $2 and so on.
        columns: a letter for each column: (i) bigint, (f) double, (t) text, (b) bytea, (a) bigint[].
    """

    text: str
    columns: str

    def with_arguments(self, arguments: Sequence[object]) -> str:
        """Return the text with literals, whose types the server finds out, in place of the arguments."""
        literals = [_literal(argument) for argument in arguments]
        return _PARAMETER.sub(lambda found: literals[int(found[1]) - 1], self.text)

    def rows(self, data: bytes) -> Sequence[Sequence[Any]]:
        """Read what a COPY in binary format has given."""
        decoders = [_DECODERS[letter] for letter in self.columns]
        return list(_rows(data, decoders))


def _literal(argument: object) -> str:
    if argument is None:
        return "NULL"
    text = _text(argument).replace("\\", "\\\\").replace("'", "''")
    return f"E'{text}'"


def _text(argument: object) -> str:
    if isinstance(argument, str):
        return argument
    if isinstance(argument, bytes):
        return f"\\x{argument.hex()}"
    if isinstance(argument, list | tuple):
        return "{" + ",".join(_element(element) for element in argument) + "}"
    return str(argument)


def _element(element: object) -> str:
    if element is None:
        return "NULL"
    text = _text(element).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _rows(data: bytes, decoders: Sequence[Callable[[bytes], object]]) -> Iterator[Sequence[Any]]:
    at = _HEADER
    while True:
        (count,) = struct.unpack_from(">h", data, at)
        at += 2
        if count == _TRAILER:
            return
        row: list[object] = []
        for decode in decoders:
            (length,) = struct.unpack_from(">i", data, at)
            at += 4
            if length < 0:
                row.append(None)
            else:
                row.append(decode(data[at : at + length]))
                at += length
        yield row


def _integer(data: bytes) -> int:
    return int.from_bytes(data, signed=True)


def _double(data: bytes) -> float:
    (number,) = struct.unpack(">d", data)
    return float(number)


def _integers(data: bytes) -> Sequence[int]:
    return [_integer(data[at + 4 : at + _ARRAY_ELEMENT]) for at in range(_ARRAY_HEADER, len(data), _ARRAY_ELEMENT)]


_DECODERS: dict[str, Callable[[bytes], object]] = {
    "i": _integer,
    "f": _double,
    "t": lambda data: data.decode(),
    "b": bytes,
    "a": _integers,
}

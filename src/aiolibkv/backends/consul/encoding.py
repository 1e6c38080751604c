"""What goes to and comes from Consul's HTTP API, without any I/O.

Formats were seen on Consul 1.8.7; an agent that was started with ``-dev`` indents its JSON.
"""

from __future__ import annotations

import json
import math
import re
from binascii import a2b_base64
from collections.abc import Iterable
from contextlib import ContextDecorator
from dataclasses import dataclass
from http import HTTPStatus
from secrets import randbits
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote

from aiolibkv.backends.consul import failures
from aiolibkv.store import Endpoint
from aiolibkv.types import KVPair

MAX_VALUE_BYTES = 512 * 1024
"""The server's default ``kv_max_value_size``."""

LOCK_FLAGS = 3304740253564472344
"""Flags of keys that are locks, to Consul's own clients."""

_FINE = frozenset({HTTPStatus.OK, HTTPStatus.NOT_FOUND})
_SHOWN = 200
_LONGEST_INDEX = len(str(2**64))
_SESSION = re.compile(r"[0-9A-Za-z-]+")


@dataclass(slots=True)
class Answer:
    """An HTTP answer.

    Attributes:
        status: of HTTP.
        header: X-Consul-Index as it came, if it did.
        body: as it came.
        endpoint: whose it is.
    """

    status: int
    header: str | None
    body: bytes
    endpoint: Endpoint

    @property
    def index(self) -> int:
        """X-Consul-Index of an answer of which it was checked."""
        return int(self.header or 0)

    @property
    def found(self) -> bool:
        """Whether there is something; otherwise the status is 404."""
        return self.status != HTTPStatus.NOT_FOUND

    @property
    def text(self) -> str:
        """The beginning of the body, for errors."""
        return self.body[:_SHOWN].decode(errors="replace").strip()

    def check_index(self) -> None:
        """Make sure that there is an index, as in every answer to a read of keys.

        Raises:
            MalformedError: there is none.
        """
        header = self.header
        if header is None and failures.is_page(self.text):
            raise MalformedError(f"{self.status} with {failures.shown(self.text)}")
        if header is None or not header.isdecimal() or not 0 < len(header) <= _LONGEST_INDEX or not int(header):
            raise MalformedError(f"X-Consul-Index is {header!r:.40}")


class Entry(NamedTuple):
    """A key with what the server keeps of it besides the value.

    Attributes:
        pair: key, value, ModifyIndex.
        flags: the key's number, free for clients; here a nonce of the write.
        session: the session that holds the key, or "".
    """

    pair: KVPair
    flags: int
    session: str


class MalformedError(Exception):
    """An answer that is not Consul's."""


class reading(ContextDecorator):  # noqa: N801 - it is used as a function
    """Make a MalformedError of whatever an answer of another shape leads to."""

    def __enter__(self) -> None:
        """Begin to read."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ValueError | LookupError | TypeError | AttributeError | RecursionError):
            raise MalformedError(f"{type(error).__name__}: {error}") from error


def new_nonce() -> int:
    """Return a number that no other write has in its flags.

    63 bits: Consul keeps 64 without a sign, but readers in other languages may not.
    """
    return randbits(62) + (1 << 62)


def kv_target(path: str, query: str) -> str:
    """Return the part of a URL after ``/v1/`` for a key or, with a trailing slash, a directory."""
    return f"kv/{quote(path, safe='/')}?{query}"


def start_of(directory: str) -> str:
    """Return what the keys below a directory begin with."""
    return f"{directory}/" if directory else ""


def read_mode(*, consistent: bool) -> str:
    """Return the query parameter for a read.

    The server's default is neither: a deposed leader may still answer.
    """
    return "consistent" if consistent else "stale"


def parse_pair(item: dict[str, Any]) -> KVPair:
    """Return a key and its value as the server's JSON has them."""
    value, index = item["Value"], item["ModifyIndex"]
    if type(index) is not int or index <= 0:
        raise ValueError(f"ModifyIndex is {index!r}")
    return KVPair(text_of(item["Key"]), a2b_base64(value, strict_mode=True) if value else b"", index)


def parse_entry(item: dict[str, Any]) -> Entry:
    """Return a key as the server's JSON has it."""
    session = item.get("Session", "")
    return Entry(parse_pair(item), item["Flags"], _session(session) if session else "")


def text_of(value: object) -> str:
    """Return what has to be a text."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of a text")
    return value


def _session(value: object) -> str:
    identifier = text_of(value)
    if not _SESSION.fullmatch(identifier):
        raise ValueError(f"{identifier!r} is no session")
    return identifier


@reading()
def parse_entries(answer: Answer) -> list[Entry]:
    """Return the keys of a read; none when it was answered by 404."""
    return [parse_entry(item) for item in json.loads(answer.body)] if answer.found else []


def is_folder(path: str) -> bool:
    """Tell whether a key is a marker by which others keep an empty folder."""
    return path.endswith("/")


@reading()
def parse_session(answer: Answer) -> str:
    """Return the identifier of a session that was created."""
    return _session(json.loads(answer.body)["ID"])


@reading()
def parse_renewal(answer: Answer, session: str) -> bool:
    """Tell whether a session was renewed; False when the server does not know it.

    Locks rest on both, so what something else on the server's port says must not pass for either.
    """
    if answer.found:
        (renewed,) = json.loads(answer.body)
        is_about_it = renewed["ID"] == session
    else:
        is_about_it = session in answer.text
    if not is_about_it:
        raise ValueError("it is not about the session")
    return answer.found


@reading()
def parse_info(answer: Answer, session: str) -> bool:
    """Tell whether there is a session, of a read of it."""
    found = [_session(item["ID"]) for item in json.loads(answer.body) or ()]
    if found not in ([], [session]):
        raise ValueError("it is not about the session")
    return bool(found)


@reading()
def check_done(answer: Answer) -> None:
    """Make sure that what was asked for was done; the end of a session that the server did not know counts."""
    if json.loads(answer.body) is not True:
        raise ValueError("it does not tell that it was done")


@reading()
def find_session(answer: Answer, name: str) -> str:
    """Return the identifier of the session of a name in a list of all; "" when there is none."""
    named = (_session(session["ID"]) for session in json.loads(answer.body) or () if session["Name"] == name)
    return next(named, "")


def denies(answer: Answer) -> bool:
    """Tell whether an answer says that the token may not do this, or is not known."""
    if answer.status == HTTPStatus.CONFLICT:
        with reading():
            return any(failures.denies(text_of(error["What"])) for error in json.loads(answer.body)["Errors"] or ())
    return answer.status == HTTPStatus.FORBIDDEN or (answer.status not in _FINE and failures.denies(answer.text))


def duration(seconds: float) -> str:
    """Return a duration for Go, rounded up to milliseconds."""
    return f"{math.ceil(seconds * 1000)}ms"


def deletion_units(names: Iterable[str], kept: str) -> list[tuple[str, bool]]:
    """Return what to delete so that of a directory only one subtree remains.

    Each is (what is deleted, whether everything that begins with it is), and covers as much as it can without
    what is kept: the shortest beginning of a name that is no beginning of the kept one.

    Args:
        names: first segments of what is there, those of directories with a trailing slash.
        kept: the first segment to be kept, with a trailing slash; a key of that name is kept as well.
    """
    units: dict[tuple[str, bool], None] = {}
    for name in names:
        if name not in {kept, kept.removesuffix("/")}:
            length = next((at for at in range(1, len(name) + 1) if not kept.startswith(name[:at])), None)
            units[(name, False) if length is None else (name[:length], True)] = None
    return list(units)

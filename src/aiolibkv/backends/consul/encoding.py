"""What goes to and comes from Consul's HTTP API, without any I/O.

Texts and formats were seen on Consul 1.8.7.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from secrets import randbits
from typing import Any, NamedTuple
from urllib.parse import quote

from aiolibkv.errors import AccessDeniedError, NotReachableError, StoreError, ValueTooLargeError
from aiolibkv.store import Endpoint
from aiolibkv.types import KVPair

MAX_VALUE_BYTES = 512 * 1024
"""The server's default ``kv_max_value_size``."""

MAX_TXN_BYTES = 512 * 1024
"""The server's default ``txn_max_req_len``: of the body, in which values are base64."""

MAX_TXN_OPERATIONS = 64

LOCK_FLAGS = 3304740253564472344
"""Flags of keys that are locks, to Consul's own clients."""

Operation = dict[str, object]

_REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
"""By Consul, or by a proxy before it."""
_UNDONE = range(300, 500)
"""Sent elsewhere, or back."""
_READ_BY_CALLERS = frozenset({HTTPStatus.OK, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT})
DENIED = "Permission denied"
"""What the server says of a token that may not do this; of one that it does not know: "ACL not found"."""

_DENIALS = frozenset({DENIED, "ACL not found"})
# No other 500 says that nothing was written: "leadership lost while committing log" and a broken call do not.
_NOTHING_DONE = ("No cluster leader", "node is not the leader")
_NO_TLS = "Client sent an HTTP request to an HTTPS server"
_BAD_TTL = "Invalid Session TTL"
_SHOWN = 200
_LONGEST_INDEX = len(str(2**64))
_SESSION = re.compile(r"[0-9A-Za-z-]+")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_SLICE = 2000
"""Pairs decoded before other tasks have their turn; about 5 ms."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer.

    Attributes:
        status: of HTTP.
        index: X-Consul-Index; 0 when there is none.
        body: as it came.
        endpoint: whose it is.
    """

    status: int
    index: int
    body: bytes
    endpoint: Endpoint

    @property
    def found(self) -> bool:
        """Whether there is something; otherwise the status is 404."""
        return self.status != HTTPStatus.NOT_FOUND

    @property
    def text(self) -> str:
        """The beginning of the body, for errors."""
        return self.body[:_SHOWN].decode(errors="replace").strip()


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


class Failure(NamedTuple):
    """Why an operation of a transaction failed.

    Attributes:
        position: which operation.
        reason: the server's text.
    """

    position: int
    reason: str

    @property
    def denied(self) -> bool:
        """Whether it is a matter of access."""
        return self.reason in _DENIALS

    @property
    def missing(self) -> bool:
        """Whether the key does not exist."""
        return self.reason.endswith("doesn't exist")


class MalformedError(Exception):
    """An answer that is not Consul's."""


@contextmanager
def _reading() -> Iterator[None]:
    """Make a MalformedError of whatever an answer of another shape leads to."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise MalformedError(f"{type(error).__name__}: {error}") from error


class TxnFailedError(Exception):
    """A transaction was refused as a whole; nothing was applied.

    Attributes:
        failures: of its operations.
    """

    def __init__(self, failures: Sequence[Failure]) -> None:
        super().__init__(failures)
        self.failures = failures

    def raise_if_denied(self) -> None:
        """Raise AccessDeniedError when it is a matter of access."""
        for failure in self.failures:
            if failure.denied:
                raise AccessDeniedError(f"access denied: {failure.reason}") from None

    def at(self, position: int) -> Failure | None:
        """Return what an operation failed with, None when it did not."""
        return next((failure for failure in self.failures if failure.position == position), None)


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


def txn_body(operations: Iterable[Operation]) -> bytes:
    """Return a transaction's body."""
    return json.dumps([{"KV": operation} for operation in operations], separators=(",", ":")).encode()


def set_operation(path: str, value: bytes, flags: int, session: str | None) -> Operation:
    """Return what writes a key: bound to a session, or to none."""
    operation: Operation = {
        "Verb": "lock" if session else "set",
        "Key": path,
        "Value": b64encode(value).decode(),
        "Flags": flags,
    }
    if session:
        operation["Session"] = session
    return operation


def check_operation(path: str, index: int) -> Operation:
    """Return the condition that a key is at an index; 0: that there is none."""
    if index:
        return {"Verb": "check-index", "Key": path, "Index": index}
    return {"Verb": "check-not-exists", "Key": path}


def parse_index(header: str | None, *, needed: bool) -> int:
    """Return X-Consul-Index; 0 when there is none.

    Raises:
        MalformedError: it is no index, or there is none though every answer of this kind has one.
    """
    if header is None and not needed:
        return 0
    if header is None or not header.isdecimal() or not 0 < len(header) <= _LONGEST_INDEX or int(header) < needed:
        raise MalformedError(f"X-Consul-Index is {header!r:.40}")
    return int(header)


def _entry(item: dict[str, Any]) -> Entry:
    """Return a key as the server's JSON has it."""
    value, index = item["Value"], item["ModifyIndex"]
    if type(index) is not int or index <= 0:
        raise ValueError(f"ModifyIndex is {index!r}")
    pair = KVPair(_text(item["Key"]), b64decode(value, validate=True) if value else b"", index)
    session = item.get("Session", "")
    return Entry(pair, item["Flags"], _session(session) if session else "")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of a text")
    return value


def _session(value: object) -> str:
    identifier = _text(value)
    if not _SESSION.fullmatch(identifier):
        raise ValueError(f"{identifier!r} is no session")
    return identifier


@_reading()
def parse_entries(answer: Answer) -> list[Entry]:
    """Return the keys of a read; none when it was answered by 404."""
    return [_entry(item) for item in json.loads(answer.body)] if answer.found else []


async def parse_tree(answer: Answer) -> list[KVPair]:
    """Return the pairs of a recursive read, in order; other tasks have their turn meanwhile.

    A thread would not help: the decoder of JSON keeps the interpreter's lock. Keys that end in a slash, by
    which Consul's own web pages keep empty folders, are no keys here.
    """
    if not answer.found:
        return []
    pairs: list[KVPair] = []
    with _reading():
        text = answer.body.decode()
        for count, item in enumerate(_items(text), 1):
            if not is_folder(_text(item["Key"])):
                pairs.append(_entry(item).pair)
            if count % _SLICE == 0:
                await asyncio.sleep(0)
    return pairs


def _items(text: str) -> Iterator[Any]:
    """Read a JSON array one item after the other."""
    if not (text.startswith("[") and text.rstrip().endswith("]")):
        raise ValueError("no array")
    decoder = json.JSONDecoder()
    end = text.rindex("]")
    position = 1
    while position < end:
        item, position = decoder.raw_decode(text, position)
        position += 1  # the comma, or the bracket
        yield item


@_reading()
def parse_names(answer: Answer, start: str) -> list[str]:
    """Return the first segments below a directory of a read of keys by separator."""
    keys = json.loads(answer.body) if answer.found else []
    return [_text(key)[len(start) :] for key in keys if key != start]


def is_folder(path: str) -> bool:
    """Tell whether a key is a marker by which others keep an empty folder."""
    return path.endswith("/")


@_reading()
def parse_txn(answer: Answer) -> list[Entry]:
    """Return what a transaction's operations gave: its sets and gets in order, deletions and checks nothing.

    Raises:
        TxnFailedError: it was refused.
    """
    content = json.loads(answer.body)
    if answer.status == HTTPStatus.CONFLICT:
        failures = [Failure(error["OpIndex"], _text(error["What"])) for error in content["Errors"]]
        if not failures:
            raise ValueError("a refusal without a reason")
        raise TxnFailedError(failures)
    return [_entry(result["KV"]) for result in content["Results"]]


@_reading()
def parse_session(answer: Answer) -> str:
    """Return the identifier of a session that was created."""
    return _session(json.loads(answer.body)["ID"])


@_reading()
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


@_reading()
def check_destroyed(answer: Answer) -> None:
    """Make sure that a session is gone; one that the server did not know counts."""
    if json.loads(answer.body) is not True:
        raise ValueError("it does not tell that the session is gone")


@_reading()
def find_session(answer: Answer, name: str) -> str:
    """Return the identifier of the session of a name in a list of all; "" when there is none."""
    named = (_session(session["ID"]) for session in json.loads(answer.body) or () if session["Name"] == name)
    return next(named, "")


@_reading()
def denies(answer: Answer) -> bool:
    """Tell whether an answer says that the token may not do this."""
    if answer.status == HTTPStatus.CONFLICT:
        return any(error["What"] in _DENIALS for error in json.loads(answer.body)["Errors"] or ())
    return answer.status == HTTPStatus.FORBIDDEN


def failure_of(answer: Answer) -> StoreError | None:
    """Return the error that a status stands for; None for those that a caller has to read itself.

    A NotReachableError's ``maybe_applied`` is False when the server says that nothing was done.
    """
    status, text = answer.status, answer.text
    if status in _READ_BY_CALLERS or text.startswith(_BAD_TTL):
        return None
    if status in _REFUSED:
        return AccessDeniedError(f"access denied: {text}")
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return ValueTooLargeError(f"the server takes less: {text}")
    if text.startswith(_NO_TLS):
        return NotReachableError(f"the server wants TLS: {text}", maybe_applied=False)
    if status == HTTPStatus.BAD_REQUEST:
        return StoreError(f"the server answered {status}: {text}")
    # Consul answers so when it is in trouble; or what answers is not Consul.
    undone = status in _UNDONE or any(phrase in text for phrase in _NOTHING_DONE)
    return NotReachableError(f"the server answered {status}: {text}", maybe_applied=not undone)


@_reading()
def shortest_ttl(answer: Answer) -> float | None:
    """Return the shortest TTL in seconds that a server has for sessions, when it refused one; else None."""
    bounds = re.search(r"between \[(.+)=", answer.text)
    return parse_duration(bounds[1]) if answer.status != HTTPStatus.OK and bounds else None


def parse_duration(text: str) -> float:
    """Return the seconds of a duration as Go writes it: "1m30s"."""
    return math.fsum(
        float(number) * _SECONDS[unit] for number, unit in re.findall(r"([\d.]+)(h|ms|m|us|µs|ns|s)", text)
    )


def duration(seconds: float) -> str:
    """Return a duration for Go, rounded up to milliseconds."""
    return f"{math.ceil(seconds * 1000)}ms"


def deletion_units(names: Iterable[str], kept: str) -> list[tuple[str, bool]]:
    """Return what to delete so that of a directory only one subtree remains.

    Each is (what is deleted, whether everything that begins with it is), and covers as much as it can without
    what is kept: the shortest beginning of a name that is no beginning of the kept one.

    Args:
        names: first segments of what is there, those of directories with a trailing slash.
        kept: the first segment to be kept, with a trailing slash.
    """
    units: dict[tuple[str, bool], None] = {}
    for name in names:
        if name != kept:
            length = next((at for at in range(1, len(name) + 1) if not kept.startswith(name[:at])), None)
            units[(name, False) if length is None else (name[:length], True)] = None
    return list(units)

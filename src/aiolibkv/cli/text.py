"""Keys, values and messages as text: one line each, whatever is in them, and nothing secret."""

from __future__ import annotations

import base64
import re
from typing import Any
from urllib.parse import unquote_plus

from aiolibkv import KVPair
from aiolibkv.urls import split_url

_SECRETS = (
    # The parameters first, since an @ in one of them is no end of credentials.
    (re.compile(r"(?i)\b(password|token)=[^&\s'\"]*"), r"\1=***"),
    (re.compile(r"(?<=://)\S*@"), "***@"),
)
_SECRET_PARAMETERS = ("password", "token")
_ESCAPES = {"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
_BYTES_THAT_ARE_NO_TEXT = range(0xDC80, 0xDD00)
_ASCII = 0x80
_TWO_BYTES = 0x10000
_BEGINNING = 60
"""Characters of a value that are shown where it stands beside other things."""


def escaped(text: str) -> str:
    r"""Return a text with what is not printable, and ``\``, escaped; a byte that is no UTF-8 stands as ``\xff``."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_ESCAPES.get(each) or (each if each.isprintable() else _code(ord(each))) for each in text)


def _code(number: int) -> str:
    if number in _BYTES_THAT_ARE_NO_TEXT:
        return f"\\x{number - 0xDC00:02x}"
    if number < _ASCII:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < _TWO_BYTES else f"\\U{number:08x}"


def escaped_value(value: bytes) -> str:
    """Return a value as text in one line."""
    return escaped(value.decode(errors="surrogateescape"))


def beginning(value: bytes) -> str:
    """Return the beginning of a value as text in one line."""
    text = escaped_value(value[: 4 * _BEGINNING])
    return text if len(text) <= _BEGINNING else f"{text[:_BEGINNING]}..."


def pair_fields(pair: KVPair) -> dict[str, Any]:
    """Return a pair in the form that JSON has everywhere."""
    try:
        value = {"value": pair.value.decode()}
    except UnicodeDecodeError:
        value = {"value_base64": base64.b64encode(pair.value).decode()}
    return {"key": pair.key, **value, "last_index": pair.last_index}


def hosts(url: str) -> str:
    """Return the servers that a URL names, or the path that it is instead."""
    authority, slash, rest = url.partition("://")[2].partition("?")[0].partition("/")
    return authority.rpartition("@")[2] or (slash and rest)


def masked_url(url: str) -> str:
    """Return a URL without its credentials, passwords and tokens, whatever characters they have.

    Raises:
        ValueError: it is none.
    """
    scheme, authority, path, query = split_url(url)
    _, at, servers = authority.rpartition("@")
    parameters = []
    for parameter in query.split("&"):
        name, equals, _ = parameter.partition("=")
        is_secret = unquote_plus(name).lower() in _SECRET_PARAMETERS
        parameters.append(f"{name}{equals}***" if is_secret else parameter)
    credentials, question = "***@" if at else "", "?" if query else ""
    return f"{scheme}://{credentials}{servers}{path}{question}{'&'.join(parameters)}"


def masked(text: str) -> str:
    """Return a text in which the passwords and tokens of URLs cannot be read."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text

"""Logging in by SASL's DIGEST-MD5 (RFC 2831), which proves a password without sending it, and the server as well."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from hashlib import md5
from secrets import token_hex

from aiolibkv.backends.zookeeper.connection import Connection
from aiolibkv.backends.zookeeper.operations import sasl
from aiolibkv.errors import AccessDeniedError

_SERVICE = "zookeeper/zk-sasl-md5"
"""What every ZooKeeper server calls itself there."""
_FIELD = re.compile(r'([\w-]+)=(?:"((?:[^"\\]|\\.)*)"|([^",]*))')


class Sasl:
    """A user who logs in at each connection."""

    def __init__(self, username: str, password: str) -> None:
        self._username = username
        self._password = password

    async def log_in(self, connection: Connection) -> None:
        """Prove who the user is, and have the server prove that it knows the password, too.

        Raises:
            AccessDeniedError: one of them could not, or the server has no SASL.
            NotReachableError: the connection ended before an answer.
        """
        challenge = _fields(await connection.ask(sasl(b"")))
        if "nonce" not in challenge or "auth" not in challenge.get("qop", "auth").split(","):
            raise AccessDeniedError("the server does not let users log in by SASL's DIGEST-MD5")
        client_nonce = token_hex(16)
        answer = Answer(self._username, self._password, challenge, client_nonce)
        try:
            confirmation = _fields(await connection.ask(sasl(answer.message().encode())))
        except AccessDeniedError as denial:
            raise AccessDeniedError(
                f"the server does not know the user {self._username!r} by this password"
            ) from denial
        if not hmac.compare_digest(confirmation.get("rspauth", ""), answer.digest("")):
            raise AccessDeniedError("the server could not prove that it knows the user's password")


class Answer:
    """The answer to a server's challenge.

    Args:
        username: of the user.
        password: of the user.
        challenge: the fields that the server sent.
        client_nonce: what the server's proof is to be made of, too.
        service: whom the proof is for.
    """

    def __init__(
        self,
        username: str,
        password: str,
        challenge: Mapping[str, str],
        client_nonce: str,
        service: str = _SERVICE,
    ) -> None:
        self._username = username
        self._password = password
        self._realm = challenge.get("realm", "")
        self._nonce = challenge["nonce"]
        self._client_nonce = client_nonce
        self._service = service

    def message(self) -> str:
        """Return the fields to send."""
        quoted = {
            "username": self._username,
            "realm": self._realm,
            "nonce": self._nonce,
            "cnonce": self._client_nonce,
            "digest-uri": self._service,
        }
        fields = [f'{name}="{_escaped(value)}"' for name, value in quoted.items()]
        return ",".join(
            ["charset=utf-8", *fields, "nc=00000001", "qop=auth", f"response={self.digest('AUTHENTICATE')}"]
        )

    def digest(self, direction: str) -> str:
        """Return the proof of who knows the password: "AUTHENTICATE" for the client, "" for the server."""
        secret = _hash(b":".join(_encoded(part) for part in (self._username, self._realm, self._password)))
        key = _hash(secret + f":{self._nonce}:{self._client_nonce}".encode()).hex()
        subject = _hash(f"{direction}:{self._service}".encode()).hex()
        return _hash(f"{key}:{self._nonce}:00000001:{self._client_nonce}:auth:{subject}".encode()).hex()


def _fields(token: bytes | None) -> dict[str, str]:
    text = (token or b"").decode(errors="replace")
    return {name.lower(): re.sub(r"\\(.)", r"\1", quoted) or bare for name, quoted, bare in _FIELD.findall(text)}


def _escaped(text: str) -> str:
    return re.sub(r'(["\\])', r"\\\1", text)


def _encoded(text: str) -> bytes:
    """Encode as the standard has it: in ISO 8859-1 what can be, else in UTF-8."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()


def _hash(data: bytes) -> bytes:
    return md5(data, usedforsecurity=False).digest()

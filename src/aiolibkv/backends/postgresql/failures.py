"""What the errors of PostgreSQL and of the connection to it mean to the user of a store."""

from __future__ import annotations

import ssl

import asyncpg

from aiolibkv.errors import AccessDeniedError, NotReachableError, StoreError

DAMAGED = frozenset({"42P01", "3F000", "42883", "P0002", "P0003", "42P10"})
"""SQLSTATEs of a table, schema or function that does not exist, of a table that has none or two of its one row, and of
one without its primary key, as a restoration beside writes may leave it."""

READ_ONLY = "25006"
"""SQLSTATE of a write that a server does not take: it is a standby, or set to read only."""

OUTDATED = frozenset({"0A000", "26000"})
"""SQLSTATEs of a prepared statement that is not valid any more."""

TOO_MANY = "53300"
"""SQLSTATE of one connection too many."""

_STATEMENT_MODE = "statement pooling"
"""In what PgBouncer says before it ends a connection on which a transaction begins, where there are none."""

_REFUSED_BY_POOLER = "SASL authentication failed"
"""What PgBouncer says of a wrong password or an unknown user, with the SQLSTATE of a broken connection."""

_DENIED = frozenset({"28000", "28P01", "42501"})
_AGAIN = {
    READ_ONLY: "the server takes no writes",
    TOO_MANY: "the server has no connection left",
    **dict.fromkeys(OUTDATED, "a prepared statement is not valid any more"),
    "40001": "the transaction has to be repeated",
    "40P01": "the transaction met a deadlock",
    "55P03": "a lock was not to be had in lock_timeout",
    "57014": "the statement was cancelled",
    "57P03": "the server starts up, shuts down or recovers",
}
_REFUSED = {
    "53100": "the server's disk is full",
    "53200": "the server has no memory left",
    "53400": "a limit of the server's configuration is exceeded",
    "3D000": "there is no such database",
}


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error; None when it is none of the server's."""
    return error.sqlstate if isinstance(error, asyncpg.PostgresError) else None


def is_refusal(error: BaseException) -> bool:
    """Tell whether the server has answered that it did nothing, and goes on with the connection."""
    return isinstance(error, asyncpg.PostgresError) and (error.severity_en or error.severity) == "ERROR"


def meaning(error: BaseException) -> StoreError:
    """Return a new StoreError that says what an error means, caused by it.

    What may heal by itself, or at another server, is a NotReachableError.
    """
    if _STATEMENT_MODE in str(error):
        failure = StoreError("the pooler has no transactions; a store needs pool_mode = transaction, or session")
    elif _REFUSED_BY_POOLER in str(error):
        failure = AccessDeniedError(f"the pooler refuses the user or the password: {_REFUSED_BY_POOLER}")
    else:
        failure = _of_server(error) if isinstance(error, asyncpg.PostgresError) else _of_connection(error)
    failure.__cause__ = error
    return failure


def _of_server(error: asyncpg.PostgresError) -> StoreError:
    code = error.sqlstate or ""
    said = str(error).partition("\n")[0]
    if code in _DENIED:
        return AccessDeniedError(said)
    if code in _AGAIN:
        return NotReachableError(f"{_AGAIN[code]}: {said}")
    if code in _REFUSED:
        return StoreError(f"{_REFUSED[code]}: {said}")
    if code in DAMAGED:
        return NotReachableError(f"the store's tables are not there, or damaged: {said}")
    if not is_refusal(error):
        return NotReachableError(f"the server ended the connection: {said}")
    return StoreError(f"PostgreSQL failed ({code}): {said}")


def _of_connection(error: BaseException) -> StoreError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return NotReachableError(f"the server's certificate is not accepted: {error.verify_message}")
    if isinstance(error, TimeoutError):
        return NotReachableError("the server does not answer")
    if isinstance(error, OSError):
        return NotReachableError(f"the connection failed: {error.strerror or error}")
    return NotReachableError(f"the connection failed: {error or type(error).__name__}")

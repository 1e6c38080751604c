"""From errors to exit codes and one line."""

from __future__ import annotations

import aiolibkv as library

NOT_FOUND, USAGE, NO_SERVER, DENIED, MODIFIED, NOT_LOCKED, LOCK_LOST, OTHER = range(1, 9)
INTERRUPTED = 130

EXIT_CODES = """\
\b
Exit codes:
  0    done
  1    not found
  2    usage: a bad URL, a bad option
  3    no server answers
  4    access denied
  5    modified meanwhile, or exists
  6    the lock was not free in time
  7    the lock was lost while the command ran
  8    anything else
  130  interrupted; 143 ended by SIGTERM"""

_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (library.KeyNotFoundError, NOT_FOUND),
    (library.NotReachableError, NO_SERVER),
    (library.RequestTimeoutError, NO_SERVER),
    (library.AccessDeniedError, DENIED),
    (library.KeyModifiedError, MODIFIED),
    (library.KeyExistsError, MODIFIED),
    (library.LockLostError, LOCK_LOST),
)


class CommandError(Exception):
    """What makes a command fail though the library is fine.

    Attributes:
        code: the exit code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def exit_code(error: Exception) -> int:
    """Return the exit code that tells of an error."""
    if isinstance(error, CommandError):
        return error.code
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    if isinstance(error, library.BackendNotSupportedError):
        # A URL that names a backend which is missing, not one that nobody knows, is right.
        return OTHER if isinstance(error.__cause__, ImportError) else USAGE
    is_usage = isinstance(error, ValueError | TypeError) and not isinstance(error, library.StoreError)
    return USAGE if is_usage else OTHER


def message(error: Exception) -> str:
    """Return what an error says."""
    if isinstance(error, OSError) and not isinstance(error, library.StoreError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, library.StoreError | CommandError | ValueError | OSError):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"

"""What a key is: the same rules on every backend."""

from __future__ import annotations

from functools import lru_cache

from aiolibkv.errors import InvalidKeyError

RESERVED = ".aiolibkv"
"""First segment of the keys that the library itself keeps in a store."""

MAX_KEY_BYTES = 512

_REMEMBERED = 4096
"""Keys whose check is remembered: the same ones are used again and again."""

_FIRST_SPECIAL = 0xFFF0  # ZooKeeper refuses U+FFF0 to U+FFFF


def normalize_key(key: str) -> str:
    """Return the one spelling of a key.

    Args:
        key: "/"-separated; leading and trailing slashes are dropped.

    Raises:
        InvalidKeyError: the key is empty or breaks a rule.
        TypeError: it is not a str.
    """
    if not isinstance(key, str):
        raise TypeError(f"a key is a str, not {type(key).__name__}")
    return _normalize_known(key)


@lru_cache(_REMEMBERED)
def _normalize_known(key: str) -> str:
    name = normalize_directory(key)
    if not name:
        raise InvalidKeyError("the key is empty; only a directory may be, which is then the root", key=key)
    return name


def check_same_key(key: str, other: str) -> None:
    """Raise ValueError unless both are spellings of one key: that of a call, and that of the previous pair it is given.

    Raises:
        InvalidKeyError: one of them is no key.
    """
    if normalize_key(other) != normalize_key(key):
        raise ValueError(f"previous is of key {other!r}, not {key!r}")


def normalize_directory(directory: str) -> str:
    """Return the one spelling of a directory; ``""`` is the root.

    Raises:
        InvalidKeyError: the directory breaks a rule for keys.
        TypeError: it is not a str.
    """
    if not isinstance(directory, str):
        raise TypeError(f"a key is a str, not {type(directory).__name__}")
    name = directory.strip("/")
    if not name:
        return ""
    if not name.isprintable() or ord(max(name)) >= _FIRST_SPECIAL:
        unfit = next(c for c in name if not c.isprintable() or ord(c) >= _FIRST_SPECIAL)
        raise InvalidKeyError(f"a key must not have the character U+{ord(unfit):04X}", key=directory)
    if len(name.encode()) > MAX_KEY_BYTES:
        what = f"a key has at most {MAX_KEY_BYTES} bytes of UTF-8, not {len(name.encode())}"
        raise InvalidKeyError(what, key=directory)
    segments = name.split("/")
    for segment in segments:
        if segment in {"", ".", ".."}:
            what = f"the segment {segment!r}" if segment else "an empty segment"
            raise InvalidKeyError(f"a key must not have {what}", key=directory)
    if segments[0] == RESERVED:
        raise InvalidKeyError(f"the first segment {RESERVED!r} is reserved for the library", key=directory)
    return name


def is_key(name: str) -> bool:
    """Tell whether what a server holds is a key in its one spelling, which every call takes.

    It says what ``normalize_key`` says, at a tenth of the cost: lists are made of what others wrote as well.
    """
    return (
        name.isprintable()
        and "//" not in name
        and name[:1] not in {"", "/"}
        and name[-1] != "/"
        and not (("." in name) and _has_special_segment(name))
        and (name.isascii() or ord(max(name)) < _FIRST_SPECIAL)
        and len(name if name.isascii() else name.encode()) <= MAX_KEY_BYTES
    )


def _has_special_segment(name: str) -> bool:
    segments = name.split("/")
    return segments[0] == RESERVED or "." in segments or ".." in segments


def below(directory: str) -> tuple[str, str]:
    """Return the bounds (first, past the last) of the keys strictly below a directory.

    The order is that of code points, which is also that of UTF-8 bytes. The root's range has no end: ``""``.
    """
    return (f"{directory}/", f"{directory}0") if directory else ("", "")

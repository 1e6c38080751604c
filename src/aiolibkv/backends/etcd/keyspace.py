"""What paths are called in etcd, where a key is any bytes."""

from __future__ import annotations

from collections.abc import Sequence

from aiolibkv.keys import below

Span = tuple[bytes, bytes]
"""What a request has as key and range_end."""

_NO_END = b"\x00"
"""As range_end: everything from the key on. The same byte is also the first key that there can be."""


class Keyspace:
    """The keys that a store's paths stand for: the paths themselves, or with a slash before each."""

    def __init__(self, *, leading_slash: bool) -> None:
        self._start = "/" if leading_slash else ""

    def key(self, path: str) -> bytes:
        """Return the key of a path."""
        return f"{self._start}{path}".encode()

    def below(self, directory: str) -> Span:
        """Return the span of what is strictly below a directory; the root's is all that paths can stand for."""
        if self._start and not directory:
            return b"/", b"0"
        first, end = below(f"{self._start}{directory}")
        return first.encode() or _NO_END, end.encode() or _NO_END

    def one(self, path: str) -> Span:
        """Return the span that holds the key of a path alone."""
        key = self.key(path)
        return key, key + b"\x00"

    def path(self, key: bytes) -> str | None:
        """Return the path of a key, or None when no path can name it: others may write to the server too."""
        try:
            path = key.decode()
        except UnicodeDecodeError:
            return None
        if self._start:
            if not path.startswith(self._start):
                return None
            path = path[len(self._start) :]
        return None if "//" in path or path[:1] in {"", "/"} or path[-1] == "/" else path

    def paths(self, keys: Sequence[bytes]) -> list[str | None]:
        """Return what ``path`` does for each key; of many it is asked at once whether all are as they should be."""
        joined = b"/".join(keys)
        is_plain = joined.isascii() and b"//" not in joined and joined[:1] != b"/" and joined[-1:] != b"/"
        if not joined or self._start or not is_plain:
            return [self.path(key) for key in keys]
        return [key.decode() for key in keys]


def without(span: Span, *inner: Span) -> list[Span]:
    """Leave out of a span inner ones, in their order, of each of which it holds all or nothing."""
    first, end = span
    rest = []
    for inner_first, inner_end in inner:
        if first <= inner_first and (end == _NO_END or inner_end <= end):
            rest.append((first, inner_first))
            first = inner_end
    return [*rest, (first, end)]

"""From keys, as users write them, to paths, as the server keeps them, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiolibkv.keys import MAX_KEY_BYTES, RESERVED, is_key, normalize_directory, normalize_key


class Paths:
    """The prefix of one store.

    Attributes:
        root: the directory that everything is below; ``""`` without a prefix.
        hidden: the key below which the library keeps what users do not see.
    """

    def __init__(self, prefix: str, check: Callable[[str], None]) -> None:
        """Root keys at a prefix.

        Args:
            prefix: a directory.
            check: raises InvalidKeyError for a path that cannot be used.
        """
        self.root = prefix
        self._start = f"{prefix}/" if prefix else ""
        self.hidden: str = f"{self._start}{RESERVED}"
        self._check = check

    def path(self, key: str) -> str:
        """Return the path of a key.

        Raises:
            InvalidKeyError: the key breaks a rule.
        """
        path = self._start + normalize_key(key)
        self._check(path)
        return path

    def directory(self, directory: str) -> str:
        """Return the path of a directory.

        Raises:
            InvalidKeyError: the directory breaks a rule.
        """
        name = normalize_directory(directory)
        if not name:
            return self.root
        path = self._start + name
        self._check(path)
        return path

    def name(self, path: str) -> str:
        """Return the key of a path; a path that is not below the prefix is its own name."""
        return path.removeprefix(self._start)

    def visible(self, path: str) -> str | None:
        """Return the key of a path, None for one that users do not see: the library's own, or what is no key."""
        name = path[len(self._start) :]
        return name if is_key(name) else None

    def all_visible(self, paths: Sequence[str]) -> Sequence[str]:
        """Return the keys of those paths that users see."""
        if self.are_plain(paths):
            at = len(self._start)
            return [path[at:] for path in paths]
        return [name for path in paths if (name := self.visible(path)) is not None]

    def are_plain(self, paths: Sequence[str]) -> bool:
        """Tell whether users see all of these paths, without looking at each, which costs most of a long list.

        False says nothing: there may be one that they do not see, or one that is only unusual.
        """
        text = "/".join(paths)
        return (
            text.isascii()
            and text.isprintable()
            and "//" not in text
            and "/." not in text
            and text[:1] not in {"", "/", "."}
            and text[-1] != "/"
            and max(map(len, paths)) - len(self._start) <= MAX_KEY_BYTES
        )

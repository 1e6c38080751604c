"""Whether a database is where its files can be shared: all its users have to see the same files beside it."""

from __future__ import annotations

import re
from pathlib import Path

from aiolibkv.errors import StoreError

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(rb"\\([0-7]{3})")


def check_placement(path: Path) -> None:
    """Refuse a database that others may have open under another name, where its side files are others.

    Args:
        path: an existing file, absolute and without symbolic links.

    Raises:
        StoreError: it is a mount point itself, or has several hard links.
    """
    if path.stat().st_nlink > 1:
        raise StoreError(
            f"{path} has more than one name (hard links): who opens it by another name would not find the files"
            " beside it; copy the database"
        )
    if str(path) in _mount_points():
        raise StoreError(
            f"{path} is mounted by itself, and the files beside it are not: mount the directory that it is in"
        )


def _mount_points() -> set[str]:
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return set()
    return {
        _ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), line.split()[4]).decode(errors="surrogateescape")
        for line in lines
    }

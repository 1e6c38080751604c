"""Small file systems, for what happens when they are full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from aiolibkv.testing.servers.cluster import Member

M = TypeVar("M", bound=Member)


@contextmanager
def small_disk(directory: Path, mebibytes: int) -> Iterator[Path]:
    """Mount a file system in memory; the test is skipped where that may not be."""
    directory.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(directory)]
    mounting = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounting.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounting.stderr}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@asynccontextmanager
async def on_small_disk(server: M, mebibytes: int) -> AsyncIterator[M]:
    """Start a server whose data is in a small file system."""
    try:
        with small_disk(server.data_directory, mebibytes):
            await server.start()
            yield server
            await server.kill()
    finally:
        await server.close()


def enlarge(disk: Path, mebibytes: int) -> None:
    """Make space."""
    subprocess.run(["mount", "-o", f"remount,size={mebibytes}m", str(disk)], check=True)

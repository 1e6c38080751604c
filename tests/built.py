"""Check what is in a built wheel and sdist: the arguments, in this order."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def tracked(*folders: str) -> set[str]:
    """Return the files of the repository in these folders."""
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.splitlines())


def main(wheel: str, sdist: str) -> None:
    with zipfile.ZipFile(wheel) as opened:
        packed = set(opened.namelist())
    expected = {name.removeprefix("src/") for name in tracked("src")}
    assert "aiolibkv/py.typed" in packed
    assert {name for name in packed if ".dist-info/" not in name} == expected

    with tarfile.open(sdist) as source:
        packed = {name.partition("/")[2] for name in source.getnames()}
    needed = tracked("src", "tests", "docs", "examples", "benchmarks", "README.md", "CHANGELOG.md", "pyproject.toml")
    assert needed <= packed, needed - packed


main(*sys.argv[1:])

"""docs/guarantees.md names tests that exist, and each promise once."""

from __future__ import annotations

import re
from pathlib import Path

import aiolibkv

ROOT = Path(__file__).parents[2]
SUITE = Path(aiolibkv.__file__).parent / "testing/conformance"
WORDS = re.compile(r"(?P<folder>\w+): (?=`)|`(?P<test>test_\w+)`|; (?=`)")


def test_every_test_that_is_named_exists() -> None:
    missing = []
    for row in (ROOT / "docs/guarantees.md").read_text().splitlines():
        place = SUITE
        for word in WORDS.finditer(row):
            if word["test"] is None:
                place = ROOT / "tests" / word["folder"] if word["folder"] else SUITE
            elif not any(f"def {word['test']}(" in file.read_text() for file in place.glob("*.py")):
                missing.append(f"{place.name}: {word['test']}")
    assert not missing


def test_every_promise_stands_once() -> None:
    rows = re.findall(
        r"^\| (?!promise |fault )([^|]+)\|[^|]+\|$", (ROOT / "docs/guarantees.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 100
    assert sorted(set(rows)) == sorted(rows)

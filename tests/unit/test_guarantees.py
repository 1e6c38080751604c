"""docs/guarantees.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_is_named_exists() -> None:
    places = {"": ROOT / "src/aiolibkv/testing/conformance"}
    missing = []
    for row in (ROOT / "docs/guarantees.md").read_text().splitlines():
        if not row.startswith("|"):
            continue
        folder = ""
        for word in re.findall(r"(?:; |\| )(\w+): `|`(test_\w+)`|(; )(?=`)", row):
            if word[0]:
                folder = word[0]
            elif word[2]:
                folder = ""
            else:
                place = places.setdefault(folder, ROOT / "tests" / folder)
                if not any(f"def {word[1]}(" in file.read_text() for file in place.glob("*.py")):
                    missing.append(f"{folder}: {word[1]}")
    assert not missing

"""The pages of the documentation, and what stands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NEEDS = "# Needs "
"""How a block begins that cannot be executed here; readers see it too."""

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page: where it stands, from the root of the repository.
        line: of the page, where its text begins.
        text: its lines.
    """

    page: Path
    line: int
    text: str

    @property
    def is_executed(self) -> bool:
        return not self.text.startswith(NEEDS)

    @property
    def is_program(self) -> bool:
        return "asyncio.run(" in self.text


def pages() -> Sequence[Path]:
    """Return all pages, from the root of the repository."""
    found = [*ROOT.glob("*.md"), ROOT / "examples" / "README.md", *DOCS.rglob("*.md")]
    return sorted(page.relative_to(ROOT) for page in found)


def read(page: Path | str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> Iterator[Block]:
    text = read(page)
    for found in _BLOCK.finditer(text):
        if found["language"] == language:
            yield Block(page, text.count("\n", 0, found.start("text")) + 1, dedent(found["text"]))


def links(page: Path) -> Sequence[str]:
    return _LINK.findall(_CODE.sub("", read(page)))


def anchors(page: Path) -> set[str]:
    """Return what links to headings of a page end with."""
    text = re.sub(r"^ *```.*?^ *```$", "", read(page), flags=re.MULTILINE | re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in _HEADING.findall(text)}


def tables(page: Path | str, first_heading: str) -> Sequence[Sequence[Sequence[str]]]:
    """Return the rows of the tables of a page whose first column has a heading, without the code marks."""
    found: list[list[list[str]]] = []
    is_in_table = False
    for line in read(page).splitlines():
        if not line.startswith("|"):
            is_in_table = False
            continue
        cells = [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        if not is_in_table:
            found.append([])
            is_in_table = True
        found[-1].append(cells)
    return [table[2:] for table in found if table[0][0] == first_heading]

"""Secrets that are recognised wherever they turn up, and a pytest plugin that fails whatever puts one out.

Every password and token made by ``new_secret`` contains the same unmistakable words, so nothing has to be registered,
and it works for what worker processes and servers say, and under pytest-xdist.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Generator, Sequence
from uuid import uuid4

import pytest

_WORDS = "keep-this-quiet"


def new_secret() -> str:
    """Make a secret with characters that a URL has to encode."""
    return f"{_WORDS}/{uuid4().hex}@+%"


def _in_base64() -> Sequence[str]:
    """Return what the words look like in base64, wherever they begin; their neighbours' bits are left out."""
    encoded = (b64encode(bytes(before) + _WORDS.encode()).decode() for before in range(3))
    return tuple(text[start:].rstrip("=")[:-1] for text, start in zip(encoded, (0, 2, 3), strict=True))


_TRACES = (_WORDS, _WORDS.encode().hex(), *_in_base64())


def betrayed(text: str) -> list[str]:
    """Return the lines that show a secret: plain, percent-encoded, in hexadecimal or base64; its words are left out."""
    shown = []
    for line in text.splitlines():
        traces = [trace for trace in _TRACES if trace in line]
        for trace in traces:
            line = line.replace(trace, "<secret>")  # noqa: PLW2901 -- the same line
        if traces:
            shown.append(line)
    return shown


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test whose output, log or failure shows a secret."""
    report = yield
    shown = betrayed(report.longreprtext)
    for section in list(report.sections):
        name, text = section
        if lines := betrayed(text):
            report.sections.remove(section)
            # A report has the sections of the phases before, too.
            shown += lines if name.endswith(report.when) else []
    if shown:
        report.outcome = "failed"
        report.longrepr = "\n".join(["what is put out shows a secret:", *shown])
    return report

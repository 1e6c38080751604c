"""Runs the conformance suite against mutants, one after the other, in a process of its own.

``python -m mutants.runner NAME...``, in the directory above, prints a line of JSON for every name: the name, the first
test that did not pass, None when all did, and what else went wrong. An empty name stands for the backend as it is.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.store import Driver
from mutants.broken import FIRST, MUTANTS

_SUITE = Path(__file__).parents[1] / "memory/test_conformance.py"

_LONGEST = 20
"""Seconds for one test: a mutant may make one wait for ever."""


class _Verdict:
    """What became of a run.

    Attributes:
        passed: how many tests passed.
        failure: the first that failed, with what it said.
        problem: what is no failure of a test: an error while collecting or setting up.
    """

    def __init__(self, first: str | None) -> None:
        self.passed = 0
        self.failure: str | None = None
        self.problem: str | None = None
        self._first = first

    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        items.sort(key=lambda item: item.function.__qualname__.partition(".")[0] != self._first)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.problem = self.problem or report.longreprtext

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.when == "setup" and "conformance" not in report.longreprtext:
            self.problem = self.problem or report.longreprtext
        elif report.failed:
            self.failure = self.failure or f"{report.nodeid.rpartition('::')[2]} ({report.when})"
        elif report.when == "call" and report.passed:
            self.passed += 1


def run(name: str) -> dict[str, object]:
    """Run the suite until its first failure."""
    verdict = _Verdict(FIRST[name].__name__ if name else None)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as output:
        # What is broken must be asked for.
        patch.setattr(MemoryDriver, "read_at_once", Driver.read_at_once)
        if name:
            MUTANTS[name](patch)
        # What an earlier run has imported cannot be prepared for pytest again.
        arguments = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider", "-Wignore::pytest.PytestAssertRewriteWarning"]
        arguments += ["-o", f"timeout={_LONGEST}"]
        pytest.main([*arguments, str(_SUITE)], plugins=[verdict])
    return {"name": name, "output": output.getvalue()[-2000:], **vars(verdict)}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(json.dumps(run(name)), flush=True)

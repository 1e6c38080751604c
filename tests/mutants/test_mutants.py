"""The conformance suite notices every mutant of the memory backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aiolibkv.testing.scale import scaled
from mutants.broken import MUTANTS

_TESTS = Path(__file__).parent.parent
_BATCH = 12
_AS_IT_IS = ""

Verdicts = dict[str, "Future[dict[str, dict[str, Any]]]"]


def _run(names: list[str]) -> dict[str, dict[str, Any]]:
    """Run a process for some mutants and return what it says of each."""
    # A mutant that loses something shows by a wait that is in vain: let it be a short one.
    scale = {"AIOLIBKV_TIME_SCALE": str(scaled(0.2))}
    done = subprocess.run(
        [sys.executable, "-m", "mutants.runner", *names],
        cwd=_TESTS,
        env={**os.environ, **scale},
        capture_output=True,
        text=True,
        check=False,
    )
    verdicts = {verdict["name"]: verdict for verdict in map(json.loads, done.stdout.splitlines())}
    missing = {"failure": None, "problem": done.stderr[-2000:] or "the process ended before", "passed": 0}
    return {name: verdicts.get(name, missing) for name in names}


@pytest.fixture(scope="session")
def verdicts(request: pytest.FixtureRequest) -> Iterator[Verdicts]:
    """Run the mutants that are asked for, on all processors; much of their time is waiting."""
    names = [
        str(item.callspec.params["name"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and "verdicts" in item.fixturenames
    ]
    with ThreadPoolExecutor(max_workers=(os.cpu_count() or 1) + 1) as pool:
        pending: Verdicts = {}
        for first in range(0, len(names), _BATCH):
            batch = names[first : first + _BATCH]
            pending |= dict.fromkeys(batch, pool.submit(_run, batch))
        yield pending
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", [_AS_IT_IS])
def test_the_backend_as_it_is_passes(verdicts: Verdicts, name: str) -> None:
    verdict = verdicts[name].result()[name]
    assert verdict["problem"] is None
    assert verdict["failure"] is None, verdict["output"]
    assert verdict["passed"] > 200


@pytest.mark.parametrize("name", MUTANTS)
def test_the_suite_notices(verdicts: Verdicts, name: str) -> None:
    verdict = verdicts[name].result()[name]
    assert verdict["problem"] is None
    assert verdict["failure"] is not None, f"all {verdict['passed']} tests passed: {MUTANTS[name].__doc__}"


def test_there_are_enough_mutants() -> None:
    assert len(MUTANTS) >= 30
    assert all(mutant.__doc__ for mutant in MUTANTS.values())

"""Nothing secret shows in a log, an error or a repr: everything that can be made to talk is searched."""

from __future__ import annotations

import json
import os
import sys
from base64 import b64encode
from pathlib import Path
from urllib.parse import quote

import pytest

from aiolibkv.testing.servers.process import run_program
from faults.guarded import GUARDED
from secrecy import betrayed, new_secret

_WORKER = Path(__file__).with_name("telling.py")


@pytest.mark.asyncio
@pytest.mark.parametrize("backend", sorted(GUARDED))
async def test_whatever_is_told_shows_no_secret(backend: str, tmp_path: Path) -> None:
    async with GUARDED[backend]() as guarded:
        description = {
            "backend": backend,
            "endpoint": guarded.server.endpoint,
            "good": guarded.admin,
            "bad": guarded.unknown,
        }
        given = tmp_path / "given"
        given.write_text(json.dumps(description))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        told = await run_program([sys.executable, str(_WORKER), str(given)], environment, within=40)
    shown = betrayed(told)
    # Neither may what the server has made up be shown.
    learned = given.with_suffix(".learned").read_text().splitlines()
    shown += [line for line in told.splitlines() if any(secret in line for secret in learned)]
    assert bool(learned) == (backend != "consul")
    if shown:
        pytest.fail("\n".join(sorted({line[:300] for line in shown})))
    # It was listened closely enough.
    for sign in ("AccessDeniedError(", "NotReachableError(", "ValueError(", "asyncio Executing <", "all was told"):
        assert sign in told, sign


_TESTS = """
import logging, pathlib, pytest

shown = pathlib.Path("shown").read_text().splitlines()

@pytest.fixture
def late():
    told = []
    yield told
    print(told)

@pytest.mark.parametrize("number", range(len(shown)))
class Test:
    def test_print(self, number):
        print(shown[number])

    def test_log(self, number):
        logging.getLogger("any").warning("it is %s", shown[number])

    def test_failure(self, number):
        pytest.fail(shown[number])

    def test_late(self, late, number):
        late.append(shown[number])

def test_harmless():
    print("keep that quiet")
"""


def test_a_test_that_shows_a_secret_fails(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    secret = new_secret()
    forms = [
        secret,
        quote(secret, safe=""),
        secret.encode().hex(),
        *(b64encode(f"{before}{secret}".encode()).decode() for before in ("", "a:", "an:", "ann:")),
    ]
    (pytester.path / "shown").write_text("\n".join(forms))
    pytester.makepyfile(_TESTS)
    result = pytester.runpytest_subprocess("-p", "secrecy", "-p", "no:cacheprovider", "-rA")
    result.assert_outcomes(passed=len(forms) + 1, failed=3 * len(forms), errors=len(forms))
    result.stdout.fnmatch_lines(["*keep that quiet*"])
    assert betrayed(result.stdout.str()) == []

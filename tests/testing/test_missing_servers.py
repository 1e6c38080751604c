from pathlib import Path

import pytest

import missing

TESTS = """
import pytest
from aiolibkv.testing.servers import EtcdServer

@pytest.fixture(scope="module")
async def server():
    async with EtcdServer(version="0.0"):
        yield

@pytest.mark.asyncio
async def test_with_a_server_of_the_module(server):
    pass

@pytest.mark.asyncio
async def test_another(server):
    pass

@pytest.mark.asyncio
async def test_with_its_own_server():
    async with EtcdServer(version="0.0"):
        pass
"""


@pytest.mark.parametrize("in_ci", [False, True])
def test_what_is_missing_is_skipped_but_not_in_ci(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, *, in_ci: bool
) -> None:
    monkeypatch.setenv("CI", "true" if in_ci else "")
    monkeypatch.setenv("PYTHONPATH", str(Path(missing.__file__).parent))
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess("-ra", "-p", "missing", "-p", "no:cacheprovider", "--asyncio-mode=auto")
    result.assert_outcomes(**{"errors": 2, "failed": 1} if in_ci else {"skipped": 3})
    result.stdout.fnmatch_lines(["*etcd 0.0 is not in *"])

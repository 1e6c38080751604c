"""What a test of the suite leaves behind fails it."""

from __future__ import annotations

import pytest

_CASES = {
    "a task": (
        "tasks.append(asyncio.ensure_future(asyncio.sleep(3600)))",
        "a task is left over*sleep",
    ),
    "a coroutine that was not awaited": (
        "asyncio.sleep(0)",
        "*coroutine 'sleep' was never awaited*",
    ),
    "the exception of a task that nobody asked for": (
        "tasks.append(asyncio.ensure_future(fail())); await asyncio.wait(tasks); tasks.clear()",
        "*exception handler was called: Task exception was never retrieved: ZeroDivisionError*",
    ),
    "an error in a callback": (
        "asyncio.get_running_loop().call_soon(lambda: 1 / 0); await asyncio.sleep(0)",
        "*exception handler was called: Exception in callback*ZeroDivisionError*",
    ),
    "an open socket": (
        "socket.socket()",
        "*unclosed <socket*",
    ),
    "an open connection": (
        "pair = socket.socketpair(); await asyncio.open_connection(sock=pair[0]); pair[1].close()",
        "*unclosed <*",
    ),
}

_TEST = """
import asyncio
import socket

import pytest

tasks = []

async def fail():
    1 / 0

{marker}
@pytest.mark.asyncio
async def test_it():
    {body}

@pytest.mark.leaves_nothing_behind
@pytest.mark.asyncio
async def test_the_next_one():
    await asyncio.sleep(0)
"""


def _run(pytester: pytest.Pytester, body: str, marker: str) -> pytest.RunResult:
    pytester.makepyfile(_TEST.format(body=body, marker=marker))
    return pytester.runpytest_subprocess(
        "-p", "aiolibkv.testing.plugin", "-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function"
    )


@pytest.mark.parametrize("case", _CASES)
def test_a_marked_test_fails_by_what_it_leaves(pytester: pytest.Pytester, case: str) -> None:
    body, message = _CASES[case]
    result = _run(pytester, body, "@pytest.mark.leaves_nothing_behind")
    outcomes = result.parseoutcomes()
    assert outcomes.get("failed", 0) + outcomes.get("errors", 0) == 1, outcomes
    result.stdout.fnmatch_lines([f"*{message}*"])
    result.stdout.no_fnmatch_line("*ERROR*test_the_next_one*")
    result.stdout.no_fnmatch_line("*FAILED*test_the_next_one*")


@pytest.mark.parametrize(
    ("scope", "by_default"),
    [("class", False), ("module", False), ("package", False), ("session", False), ("module", True)],
)
def test_what_is_left_in_a_shared_loop(pytester: pytest.Pytester, scope: str, *, by_default: bool) -> None:
    pytester.makepyfile(
        f"""
        import asyncio

        import pytest
        import pytest_asyncio

        pytestmark = [
            pytest.mark.asyncio{"" if by_default else f"(loop_scope={scope!r})"},
            pytest.mark.leaves_nothing_behind,
        ]
        tasks = []

        @pytest_asyncio.fixture(scope={scope!r}, loop_scope={scope!r})
        async def server():
            task = asyncio.ensure_future(asyncio.sleep(3600))
            yield task
            task.cancel()

        class TestIt:
            async def test_it(self, server):
                tasks.append(asyncio.ensure_future(asyncio.sleep(7200)))

            async def test_the_next_one(self, server):
                assert tasks[0].cancelled()
                assert not server.done()
        """
    )
    default = [f"-oasyncio_default_test_loop_scope={scope}"] if by_default else []
    result = pytester.runpytest_subprocess(
        "-p",
        "aiolibkv.testing.plugin",
        "-p",
        "no:cacheprovider",
        "-oasyncio_default_fixture_loop_scope=function",
        *default,
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*a task is left over*sleep*"])
    result.stdout.no_fnmatch_line("*ERROR*test_the_next_one*")


def test_what_is_left_in_a_loop_of_anyio(pytester: pytest.Pytester) -> None:
    """AnyIO's own tasks, which run the tests and fixtures, are nothing that a test leaves."""
    pytester.makepyfile(
        """
        import asyncio

        import pytest

        pytestmark = [pytest.mark.anyio, pytest.mark.leaves_nothing_behind]
        tasks = []

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        async def test_it():
            tasks.append(asyncio.ensure_future(asyncio.sleep(3600)))

        async def test_the_next_one():
            await asyncio.sleep(0)
        """
    )
    result = pytester.runpytest_subprocess(
        "-p", "aiolibkv.testing.plugin", "-p", "no:cacheprovider", "-oasyncio_default_fixture_loop_scope=function"
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*a task is left over*sleep*"])
    result.stdout.no_fnmatch_line("*ERROR*test_the_next_one*")


@pytest.mark.parametrize("case", _CASES)
def test_other_tests_are_left_alone(pytester: pytest.Pytester, case: str) -> None:
    body, _ = _CASES[case]
    _run(pytester, body, "").assert_outcomes(passed=2)


def test_a_test_that_leaves_nothing_passes(pytester: pytest.Pytester) -> None:
    _run(pytester, "await asyncio.sleep(0)", "@pytest.mark.leaves_nothing_behind").assert_outcomes(passed=2)


def test_the_suite_asks_for_the_plugin(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from aiolibkv.testing.conformance import ConformanceSuite, factory_of

        class TestMemory(ConformanceSuite):
            @pytest.fixture
            def store_factory(self):
                return factory_of("memory", ["shared"])
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-k", "libkv_list")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'leaves_nothing_behind' not found*"])

import asyncio

import pytest

from aiolibkv.testing.scale import eventually, scaled


def test_time_scale_multiplies_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOLIBKV_TIME_SCALE", "2.5")
    assert scaled(4) == 10

    monkeypatch.delenv("AIOLIBKV_TIME_SCALE")
    assert scaled(4) == 4


@pytest.mark.asyncio
async def test_eventually_returns_when_the_condition_holds() -> None:
    answers = iter([0, None, "", "yes", "asked too often"])
    await eventually(lambda: next(answers), within=5, message="never true")
    assert next(answers) == "asked too often"


@pytest.mark.asyncio
async def test_eventually_awaits_conditions() -> None:
    answers = iter([False, False, True])

    async def condition() -> bool:
        return next(answers)

    await eventually(condition, within=5, message="never true")
    assert list(answers) == []


@pytest.mark.asyncio
async def test_eventually_fails_with_its_message() -> None:
    with pytest.raises(AssertionError, match="the moon is not green"):
        await eventually(lambda: False, within=0.02, message="the moon is not green")


@pytest.mark.asyncio
async def test_eventually_ends_a_condition_that_hangs() -> None:
    with pytest.raises(AssertionError, match="hung"):
        await eventually(asyncio.Event().wait, within=0.02, message="hung")


@pytest.mark.asyncio
async def test_eventually_passes_errors_of_the_condition_on() -> None:
    async def condition() -> bool:
        message = "of the condition"
        raise TimeoutError(message)

    with pytest.raises(TimeoutError, match="of the condition"):
        await eventually(condition, within=5, message="never true")

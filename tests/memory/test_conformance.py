"""The memory backend against the conformance suite."""

from uuid import uuid4

import pytest

from aiolibkv.testing.conformance import ConformanceSuite, CutOff, StoreFactory, cut_off_by_driver, factory_of


class TestMemory(ConformanceSuite):
    """Every test of the suite."""

    @pytest.fixture
    def space(self) -> str:
        """Name a space of the test's own."""
        return uuid4().hex

    @pytest.fixture
    def store_factory(self, space: str) -> StoreFactory:
        """Make stores of the space."""
        return factory_of("memory", [space])

    @pytest.fixture
    def cut_off(self, store_factory: StoreFactory) -> CutOff:
        """Make stores of the space that can be cut off from it."""
        return cut_off_by_driver(store_factory)

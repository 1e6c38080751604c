"""The memory backend against the conformance suite."""

from uuid import uuid4

import pytest

from aiolibkv.testing.conformance import ConformanceSuite, StoreFactory, factory_of


class TestMemory(ConformanceSuite):
    """Every test of the suite."""

    @pytest.fixture
    def store_factory(self) -> StoreFactory:
        """Make stores of a space of their own."""
        return factory_of("memory", [uuid4().hex])

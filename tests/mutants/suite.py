"""The conformance suite for a mutant; what runs it has broken the memory backend before."""

from uuid import uuid4

import pytest

from aiolibkv.testing.conformance import ConformanceSuite, StoreFactory, factory_of


class TestMutant(ConformanceSuite):
    """Every test of the suite."""

    @pytest.fixture
    def store_factory(self) -> StoreFactory:
        """Make stores of a space of their own."""
        return factory_of("memory", [uuid4().hex])

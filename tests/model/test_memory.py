"""The memory backend against the model."""

from uuid import uuid4

from hypothesis import settings

from aiolibkv.testing.conformance import factory_of
from model.machine import StoreMachine


class MemoryMachine(StoreMachine):
    """The machine on one space."""

    store_factory = staticmethod(factory_of("memory", [uuid4().hex]))


TestMemoryModel = MemoryMachine.TestCase
TestMemoryModel.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)

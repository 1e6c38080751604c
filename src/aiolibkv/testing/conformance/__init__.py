"""The conformance suite: what the contract promises of every store, as tests.

A backend's own test file is this::

    class TestMine(ConformanceSuite):
        @pytest.fixture
        def store_factory(self):
            return factory_of("mine", ["127.0.0.1:4711"], request_timeout=10)

with ``pytest_plugins = ["aiolibkv.testing.plugin"]`` in the topmost conftest.py, and pytest-asyncio in any mode.

- ``store_factory`` gives stores that share one set of data: called as ``store_factory(prefix="a/b", **config)`` it
  makes a store, not entered, rooted at that prefix. ``factory_of`` does for registered backends; any callable like
  StoreFactory will do. The fixture may have a wider scope, and start a server.
- ``cut_off`` may give a ``CutOff``: a factory of stores that can be cut off from their server, by a ``FaultProxy``, or,
  where there is no network, by ``cut_off_by_driver``. Without it the tests of that are skipped. It has the scope of a
  function.
- Every test works in a directory of its own below ``conformance/`` and removes it afterwards, so that all of them may
  share a server, also one that others use.
- What a test needs beyond the common ground it asks of ``store.capabilities``, never of a backend's name; it is skipped
  with the name of the capability where the store does not claim it.
- A test fails also when it leaves a task, a coroutine that was not awaited or an open socket behind, or when the event
  loop's exception handler was called.
- Bounds of time are multiplied by the environment variable AIOLIBKV_TIME_SCALE.
"""

from aiolibkv.testing.conformance.calls import Calls, CompareAndSwap
from aiolibkv.testing.conformance.cancelling import Cancelling
from aiolibkv.testing.conformance.closing import Closing, Errors
from aiolibkv.testing.conformance.committing import Committing
from aiolibkv.testing.conformance.coordinating import Coordinating
from aiolibkv.testing.conformance.directories import DeletingTrees, Directories
from aiolibkv.testing.conformance.electing import Electing
from aiolibkv.testing.conformance.keys import Keys, Values
from aiolibkv.testing.conformance.libkv import Libkv
from aiolibkv.testing.conformance.lifetimes import KeepingAlive, Lifetimes
from aiolibkv.testing.conformance.listing import Listing
from aiolibkv.testing.conformance.locking import Guarding, Locking, Losing
from aiolibkv.testing.conformance.mirroring import Mirroring
from aiolibkv.testing.conformance.namespaces import Namespaces
from aiolibkv.testing.conformance.outages import Outages
from aiolibkv.testing.conformance.permitting import Permitting
from aiolibkv.testing.conformance.repeating import Repeating
from aiolibkv.testing.conformance.rooting import Rooting, SelfDescription
from aiolibkv.testing.conformance.suite import CutOff, StoreFactory, cut_off_by_driver, factory_of
from aiolibkv.testing.conformance.telling import Telling
from aiolibkv.testing.conformance.watching import Watching
from aiolibkv.testing.conformance.watching_trees import WatchingTrees


# The order of the bases is from the last to the first that of the tests: what takes longest comes last.
class ConformanceSuite(
    Outages,
    Losing,
    Guarding,
    Locking,
    Permitting,
    Repeating,
    Electing,
    Mirroring,
    Coordinating,
    KeepingAlive,
    Lifetimes,
    Cancelling,
    Closing,
    Errors,
    WatchingTrees,
    Watching,
    Namespaces,
    Telling,
    Rooting,
    SelfDescription,
    Committing,
    Listing,
    DeletingTrees,
    Directories,
    Values,
    Keys,
    CompareAndSwap,
    Calls,
    Libkv,
):
    """All parts of the suite."""


__all__ = ["ConformanceSuite", "CutOff", "StoreFactory", "cut_off_by_driver", "factory_of"]

"""What each backend promises of itself: users choose by it, and the conformance suite asks for no more."""

from __future__ import annotations

import pytest

from aiolibkv import new_store

_NAMES = (
    *("distributed", "durable", "survives_failover", "linearizable_reads", "exact_compare", "atomic_list"),
    *("atomic_delete_tree", "every_change", "lifetime_with_children", "ttl_survives_client"),
)

# In the order of the names; then min_ttl, and how much later a key of 3 s may go when its writer has died.
_PROMISES = {
    "memory": ("no no no yes yes yes yes yes yes no", 0, 0.0),
    "sqlite": ("no yes no yes yes yes yes yes yes yes", 0, 0.0),
    # It learns of standbys that commits wait for when it connects, and then survives a failover.
    "postgresql": ("yes yes no yes yes yes yes yes yes yes", 0, 0.0),
    "etcd": ("yes yes yes yes yes yes yes yes yes yes", 2, 2.0),
    "consul": ("yes yes yes yes yes yes yes no yes yes", 10, 18.0),
    # Its servers' ticks are 2 s, when they are not told otherwise.
    "zookeeper": ("yes yes yes no no no yes no no no", 4, 9.0),
}


@pytest.mark.parametrize("backend", _PROMISES)
def test_what_a_backend_promises_of_itself(backend: str) -> None:
    promised, min_ttl, overshoot = _PROMISES[backend]
    capabilities = new_store(backend, ["h"]).capabilities
    found = " ".join("yes" if getattr(capabilities, name) else "no" for name in _NAMES)
    assert (found, capabilities.min_ttl, capabilities.ttl_overshoot(3)) == (promised, min_ttl, overshoot)
    assert capabilities.max_operations >= 20
    assert min(capabilities.max_value_bytes, capabilities.max_commit_bytes) >= 256 * 1024

"""What each backend promises of itself: users choose by it, and the conformance suite asks for no more."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from aiolibkv import new_store

_YES = frozenset({"linearizable_reads", "exact_compare", "atomic_list", "atomic_delete_tree", "every_change"})
_PROMISES: dict[str, tuple[Sequence[str], frozenset[str], float]] = {
    "memory": ([], _YES | {"lifetime_with_children"}, 0),
    "sqlite": (["file.db"], _YES | {"durable", "lifetime_with_children", "ttl_survives_client"}, 0),
    "etcd": (["h"], _YES | {"distributed", "durable", "lifetime_with_children", "ttl_survives_client"}, 2),
    "consul": (
        ["h"],
        _YES - {"every_change"} | {"distributed", "durable", "lifetime_with_children", "ttl_survives_client"},
        10,
    ),
    # Its servers' ticks are 2 s, when they are not told otherwise.
    "zookeeper": (["h"], frozenset({"distributed", "durable", "atomic_delete_tree"}), 4),
}


@pytest.mark.parametrize("backend", _PROMISES)
def test_what_a_backend_promises_of_itself(backend: str) -> None:
    endpoints, promised, min_ttl = _PROMISES[backend]
    capabilities = new_store(backend, endpoints).capabilities
    names = (*_YES, "distributed", "durable", "lifetime_with_children", "ttl_survives_client")
    assert {name for name in names if getattr(capabilities, name)} == promised
    assert capabilities.min_ttl == min_ttl
    assert capabilities.max_value_bytes >= 256 * 1024

"""For tests: the conformance suite, a pytest plugin, real servers, a fault proxy, time bounds that scale.

- ``aiolibkv.testing.conformance``: what the contract promises of every store, as tests for any backend.
- ``aiolibkv.testing.plugin``: the pytest plugin that the suite needs.
- ``aiolibkv.testing.faults``: a driver around another one, that delays, fails and loses answers on demand.
- ``aiolibkv.testing.servers``: etcd, Consul and ZooKeeper, one and three, on free ports.
- ``aiolibkv.testing.proxy``: a TCP proxy that counts, delays, blackholes, resets and cuts.
- ``aiolibkv.testing.scale``: bounds of time, multiplied by AIOLIBKV_TIME_SCALE.

It needs the extra ``test``.
"""

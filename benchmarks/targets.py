"""What this library wants to reach, measured against the other clients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from records import Results
from subjects import OURS


@dataclass(frozen=True)
class Target:
    """How fast this library is to be.

    Attributes:
        backend, measurement, sizes: where.
        peers: how many times as fast as each of them.
        cpu: microseconds of CPU that an operation may take at most, where that is the target.
        reason: why it is missed, should it be.
    """

    backend: str
    measurement: str
    sizes: Sequence[int]
    peers: dict[str, float]
    cpu: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a target at one size.

    Attributes:
        target: the target.
        size: where.
        wanted: what is wanted.
        reached: what was measured, in the same unit.
        cpu: microseconds of CPU of this library and of the other.
        is_met: whether that is enough.
    """

    target: Target
    size: int
    wanted: str
    reached: str
    cpu: str
    is_met: bool


def outcomes(results: Results) -> list[Outcome]:
    """Compare the targets with what was measured; what was not measured is left out."""
    return [outcome for target in TARGETS for size in target.sizes for outcome in _outcomes(results, target, size)]


def _outcomes(results: Results, target: Target, size: int) -> Iterator[Outcome]:
    found = {
        record.subject: record
        for record in results.find(backend=target.backend, measurement=target.measurement, size=size)
    }
    if OURS not in found:
        return
    ours = found[OURS]
    for peer, factor in target.peers.items():
        if peer in found:
            ratio = round(ours.speed / found[peer].speed, 2)
            cpu = f"{ours.cpu:.3g} / {found[peer].cpu:.3g}"
            yield Outcome(target, size, f"{factor:g} x {peer}", f"{ratio:.2f} x", cpu, ratio >= factor)
    if target.cpu:
        used = round(ours.cpu)
        yield Outcome(target, size, f"{target.cpu:g} us of CPU", f"{used} us", "", used <= target.cpu)


def _each(factor: float, *peers: str) -> dict[str, float]:
    return dict.fromkeys(peers, factor)


_CACHES = "each key is read once, when it is not in the processor's caches"
_RENEWED = "the locks are renewed meanwhile"

GROWING = {
    ("memory", "keys", "get"): _CACHES,
    ("sqlite", "keys", "get"): _CACHES,
    ("consul", "locks", "put elsewhere"): _RENEWED,
    ("zookeeper", "locks", "put elsewhere"): _RENEWED,
    ("zookeeper", "locks", "release"): _RENEWED,
    ("memory", "keys", "put, and a watched tree tells it"): "each state is a list of all pairs, copied in slices",
    ("sqlite", "keys", "list, for each pair"): "up to 256 pairs are read in one go, more in pages",
    ("etcd", "kept-alive keys", "put"): "they share a lease, and etcd looks at all its keys at each put under it",
    ("consul", "keys", "put, and a watched tree tells it"): "Consul tells no changes: each is a list of the directory",
    ("consul", "watches", "put, and its watch tells it"): "beyond 84 keys the poll of their directory serves",
    ("consul", "watches", "put elsewhere"): "beyond 84 keys the poll of their directory serves",
}
"""Why something costs more among many, by backend, measurement and figure."""

_ETCD = ("grpc.aio", "aetcd", "etcd3aio")

_SYNC = (
    "the server is the limit: before what we read it catches up with the leader, which takes it as long as a read or"
    " two; theirs may be old. With us a sync serves all reads that leave together"
)
_SERVER = "the server, beside us on two cores, is the limit: it takes more CPU than we do"
_DISK = (
    "50 tasks wait for the same write of the server's disk; the time in which nobody waits for it is shared by server"
    " and client, and the client's part is less than half of theirs already"
)
_WAITING = "most of the time of a single call is the server's, and the kernel's"

TARGETS = (
    *(Target("etcd", name, (50, 500), _each(1.5, *_ETCD), 40, _SERVER) for name in ("get", "exists")),
    *(Target("etcd", name, (50, 500), _each(1.5, *_ETCD), 40, _DISK) for name in ("put", "delete")),
    Target(
        "etcd",
        "atomic_put",
        (50,),
        _each(1.3, *_ETCD),
        reason="a transaction takes the server twice as long as a put, whoever asks; of our CPU little is left to save",
    ),
    *(Target("etcd", name, (1,), _each(1.3, *_ETCD), reason=_WAITING) for name in ("get", "put")),
    Target(
        "etcd",
        "list",
        (50,),
        _each(1, "aetcd", "etcd3aio"),
        reason="a pair takes 1.3 us to be decoded, checked and made a KVPair in Python; they have protobuf in C, and"
        " hand out its objects",
    ),
    Target("etcd", "lock", (1,), _each(1.5, "aetcd")),
    Target("etcd", "hand-over", (200,), _each(1, "aetcd")),
    Target("etcd", "put to watch", (1,), _each(1, "aetcd")),
    Target(
        "consul",
        "get",
        (50,),
        {"aiohttp": 0.9, "py-consul": 1},
        reason="the server sets the rate; a call takes no more of its client's CPU than theirs",
    ),
    Target(
        "consul",
        "exists",
        (50,),
        {"aiohttp": 0.9, "py-consul": 1},
        reason="a transaction on the one key, sent as JSON; they have all names listed that begin like it, which is"
        " less to say, and much to read where there are many",
    ),
    Target(
        "consul",
        "put",
        (50,),
        {"aiohttp": 0.9, "py-consul": 1},
        reason="a transaction, which detaches the key from a session and tells its index, takes the server 310 us of"
        " CPU; a plain PUT, which says only that it was done, 210",
    ),
    Target(
        "consul",
        "delete",
        (50,),
        {"aiohttp": 0.9, "py-consul": 1},
        reason="a transaction, which tells whether there was such a key; a plain DELETE does not",
    ),
    Target(
        "consul",
        "atomic_put",
        (50,),
        {"aiohttp": 0.9, "py-consul": 1.5},
        reason="one transaction in place of their two requests, which takes the server as long as both",
    ),
    Target(
        "consul",
        "list",
        (50,),
        _each(1, "aiohttp"),
        reason="each pair is checked and becomes a KVPair; theirs stays what json.loads gives",
    ),
    *(Target("zookeeper", name, (50, 500), {"aiozk": 1.8, "kazoo": 3}, 0, _SYNC) for name in ("get", "exists")),
    Target("zookeeper", "put", (50, 500), {"aiozk": 1.8, "kazoo": 3}, 0, _SERVER),
    Target(
        "zookeeper",
        "atomic_put",
        (50,),
        _each(1, "aiozk"),
        reason="two round trips: versions begin anew with a key, which aiozk does not look at",
    ),
    Target(
        "zookeeper",
        "delete",
        (50,),
        _each(1, "kazoo"),
        reason="one trip, but four requests to the server: it catches up, the key is read, deleted, and the directory"
        " that may be empty now is looked at",
    ),
    Target("zookeeper", "lock", (1,), {"kazoo": 1, "aiozk": 0.7}),
    Target("memory", "get", (1,), {"dict": 0.1, "py-key-value": 20}),
    Target(
        "memory",
        "put",
        (1,),
        _each(5, "py-key-value"),
        reason="of 7 us a turn of the event loop, in which other tasks run, takes 2.3; checks, deadline and coroutines"
        " 4, the write 0.7",
    ),
    Target(
        "sqlite",
        "put",
        (50,),
        _each(8, "aiosqlite"),
        reason="50 puts share one commit already; of 19 us of CPU the two statements take 5, most of the rest is"
        " Python's",
    ),
    Target(
        "sqlite",
        "get",
        (50,),
        _each(8, "aiosqlite"),
        reason="of 6 us the SELECT alone takes 4.5, more than an eighth of aiosqlite's call",
    ),
    Target(
        "sqlite",
        "list",
        (50,),
        _each(1.2, "aiosqlite"),
        reason="of 113 us the SELECT takes 65; 40 make pairs of the rows and check their keys; theirs stay tuples",
    ),
    Target(
        "sqlite",
        "put",
        (1,),
        _each(0.85, "aiosqlite"),
        reason="1.8 times the CPU: the log for watches is a second page, and locks, notes and comparing files are 13"
        " system calls more",
    ),
)

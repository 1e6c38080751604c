"""What locks, elections and registrations say of themselves, and of arguments that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aiolibkv import Candidate, Discovery, Follower, InvalidKeyError, KVPair, PeriodicJob, Semaphore
from stores import MemoryStore

pytestmark = pytest.mark.asyncio

_REFUSED: list[tuple[Callable[[Any], object], type[Exception], str]] = [
    (lambda store: Candidate(store, "leader", b"one"), TypeError, "a node is a str, not bytes"),  # type: ignore[arg-type]
    (lambda store: Candidate(store, "leader", "one", ttl=0), ValueError, "a ttl is a finite number"),
    (lambda store: Follower(store, ""), InvalidKeyError, "the key is empty"),
    (lambda store: Semaphore(store, "permits", "3"), TypeError, "permits is an int, not str"),  # type: ignore[arg-type]
    (lambda store: Semaphore(store, "permits", 2.5), TypeError, "permits is an int, not float"),  # type: ignore[arg-type]
    (lambda store: PeriodicJob(store, "job", every="5"), TypeError, "every is a number of seconds, not str"),  # type: ignore[arg-type]
    (lambda store: Semaphore(store, "permits", 0), ValueError, "permits is at least 1, not 0"),
    (lambda store: Discovery(store, "s").register("web", 8080), TypeError, "an address is a str, not int"),  # type: ignore[arg-type]
    (lambda store: Discovery(store, "s").register("web", "a", metadata="x"), TypeError, "metadata is a mapping"),  # type: ignore[arg-type]
    (lambda store: Discovery(store, "s").register("web", "a", ttl=-1), ValueError, "a ttl is a finite number"),
]


@pytest.mark.parametrize(("make", "kind", "message"), _REFUSED, ids=[message for _, _, message in _REFUSED])
async def test_arguments_that_cannot_be(make: Callable[[Any], object], kind: type[Exception], message: str) -> None:
    async with MemoryStore() as store:
        with pytest.raises(kind, match=message):
            make(store)


@pytest.mark.parametrize(
    ("index", "kind"), [("1", TypeError), (1.0, TypeError), (True, TypeError), (0, ValueError), (2**63, ValueError)]
)
async def test_an_index_that_cannot_be(index: Any, kind: type[Exception]) -> None:
    async with MemoryStore() as store:
        await store.put("key", b"")
        with pytest.raises(kind, match="the last_index of previous is"):
            await store.atomic_put("key", b"", KVPair("key", b"", index))


async def test_what_is_held_says_so() -> None:
    async with MemoryStore() as store:
        lock = store.new_lock("jobs/report")
        assert repr(lock) == "<Lock 'jobs/report', not held>"
        async with lock as held:
            assert repr(lock) == "<Lock 'jobs/report', held>"
            assert repr(held) == f"<HeldLock 'jobs/report', held, token {held.fencing_token}>"
        assert repr(held) == f"<HeldLock 'jobs/report', not held, token {held.fencing_token}>"
        semaphore = Semaphore(store, "permits", 1)
        assert repr(semaphore) == "<Semaphore 'permits', not held>"
        async with semaphore as permit:
            assert repr(semaphore) == f"<Semaphore 'permits', {permit!r}>"
        candidate = Candidate(store, "leader", "one")
        assert repr(candidate) == "<Candidate 'one' for 'leader', not leading>"
        async with candidate.lead():
            assert repr(candidate) == "<Candidate 'one' for 'leader', leading>"
        registration = Discovery(store, "services").register("web", "h:1", id="a")
        assert repr(registration) == "<Registration 'services/web/a', not entered>"
        async with registration:
            assert repr(registration) == "<Registration 'services/web/a', entered>"

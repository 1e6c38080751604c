"""A process that forks while it has a store open: the child is told, and opens one of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from uuid import uuid4

import pytest

from aiolibkv import AsyncStore, HeldLock, KVPair, Lock, StoreError, Watch
from aiolibkv.testing.scale import scaled
from faults.single import NETWORKED, Ground

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork"),
]

Inherited = tuple[AsyncStore, Lock, HeldLock, Watch[KVPair | None]]


async def _texts(inherited: Inherited) -> Sequence[str]:
    """Return what whoever uses the parent's store in the child is told."""
    store, lock, held, watch = inherited
    calls = [
        lambda: store.get("key"),
        lambda: store.put("key", b"child", guard=held),
        lambda: store.new_lock("other").acquire(),
        lambda: anext(store.watch_tree("")),
        lambda: anext(watch),
        lock.release,
        held.wait_lost,
        store.close,
    ]
    texts = []
    for call in calls:
        try:
            async with asyncio.timeout(scaled(5)):
                texts.append(repr(await call()))
        except StoreError as error:
            texts.append(str(error))
        except Exception as error:  # noqa: BLE001 - it is what the parent looks at
            texts.append(repr(error))
    return texts


async def _own(ground: Ground, prefix: str) -> bytes:
    """Do in the child what the parent does, with a store of its own."""
    async with ground.store(prefix) as store:
        async with store.new_lock("childs") as held:
            await store.put("child", b"1", guard=held)
        async with store.watch("key") as watch:
            pair = await anext(watch)
        await store.put("alive", b"", ttl=15, keep_alive=True)
        return b"" if pair is None else pair.value


def _child(ground: Ground, prefix: str, inherited: Inherited, pipe: Connection) -> None:
    try:
        pipe.send((asyncio.run(_texts(inherited)), asyncio.run(_own(ground, prefix))))
    except BaseException as error:  # noqa: BLE001 - it is what the parent looks at
        pipe.send(([repr(error)], b""))


@pytest.mark.parametrize("ground", NETWORKED, indirect=True)
async def test_a_fork_with_an_open_store(ground: Ground) -> None:
    prefix = uuid4().hex
    async with ground.store(prefix) as store, store.watch("key") as watch:
        assert await anext(watch) is None
        await store.put("key", b"parent")
        assert (await anext(watch)) is not None
        await store.put("kept", b"", ttl=5, keep_alive=True)
        lock = store.new_lock("lock", ttl=15)
        held = await lock.acquire()
        here, there = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(
            target=_child, args=(ground, prefix, (store, lock, held, watch), there)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there are threads, which the child does not have
            child.start()
        there.close()
        texts, seen = await asyncio.to_thread(here.recv)
        await asyncio.to_thread(child.join, scaled(10))
        assert child.exitcode == 0
        assert seen == b"parent"
        assert len(texts) == 8
        assert [text for text in texts if "fork" not in text] == []
        # Neither the child's calls nor its end have harmed what it inherited.
        assert held.is_held
        await store.put("key", b"guarded", guard=held)
        pair = await anext(watch)
        assert pair is not None
        assert pair.value == b"guarded"
        await lock.release()
        assert {each.key for each in await store.list("")} == {"key", "kept", "child"}

"""Changes that are shown before they are made."""

from __future__ import annotations

import asyncio

from aiolibkv import KVPair, open_store
from aiolibkv.cli.changes import Tally, steps_to


def test_what_is_modified_meanwhile_is_left_alone() -> None:
    async def change() -> None:
        async with open_store("memory://") as store:
            for key in ("changed", "deleted", "free"):
                await store.put(key, b"old")
            wanted = [KVPair(key, b"new", 0) for key in ("changed", "created", "deleted", "free")]
            steps = await steps_to(store, wanted)
            await store.put("changed", b"by others")
            await store.put("created", b"by others")
            await store.delete("deleted")
            tally = Tally()
            await tally.carry_out(steps, store)
            assert tally.modified == ["changed", "created", "deleted"]
            assert tally.done == 1
            values = {pair.key: pair.value for pair in await store.list("")}
            assert values == {"changed": b"by others", "created": b"by others", "free": b"new"}

    asyncio.run(change())

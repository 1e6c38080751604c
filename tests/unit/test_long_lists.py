"""Long lists: others run while the keys of one are made of paths."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from aiolibkv import Config, KVPair, Namespace
from aiolibkv.keys import RESERVED
from aiolibkv.parts import AT_ONCE
from aiolibkv.store import Call, Listing, Names, Page
from counting import counted_turns
from unit.faulty import FaultyDriver, FaultyStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

NAMES = [f"dir/{number:06}" for number in range(10 * AT_ONCE)]


class Large(FaultyDriver):
    """Has many keys, one of them the library's own, and answers at once."""

    def _paths(self) -> Sequence[str]:
        start = f"{self.config.prefix}/" if self.config.prefix else ""
        return [f"{start}{RESERVED}/x", *(start + name for name in NAMES)]

    async def list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
        return Listing([KVPair(path, b"", 1) for path in self._paths()], exists=False)

    async def keys(self, call: Call, directory: str, *, consistent: bool) -> Names:
        return Names(self._paths(), exists=False)

    async def children(self, call: Call, directory: str, *, consistent: bool) -> Names:
        return Names([RESERVED, *NAMES], exists=False)

    async def page(self, call: Call, directory: str, after: str, limit: int) -> Page:
        return Page((await self.list(call, directory, consistent=True)).pairs, more=False, exists=False)


@pytest.mark.parametrize("prefix", ["", "app"])
@pytest.mark.parametrize("call", ["list", "keys", "children", "scan"])
async def test_others_have_their_turn_while_a_long_list_is_made(prefix: str, call: str) -> None:
    async with FaultyStore(["s"], Config(prefix=prefix), driver=Large) as store, counted_turns() as turns:
        found: dict[str, list[str]] = {}
        if call == "scan":
            found[call] = [pair.key async for pair in store.scan("")]
        elif call == "list":
            found[call] = [pair.key for pair in await store.list("")]
        else:
            found[call] = list(await getattr(store, call)(""))
    assert found[call] == NAMES
    assert turns() >= len(NAMES) // AT_ONCE


@pytest.mark.parametrize("call", ["list", "keys"])
async def test_others_have_their_turn_while_a_namespace_names_what_it_reads(call: str) -> None:
    async with FaultyStore(["s"], driver=Large) as store, counted_turns() as turns:
        found = await getattr(Namespace(store, "dir"), call)("")
    assert [f"dir/{getattr(each, 'key', each)}" for each in found] == NAMES
    assert turns() >= 2 * len(NAMES) // AT_ONCE

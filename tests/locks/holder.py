"""A process that acquires a lock, holds it until told otherwise, and says what happens, with times of the common clock.

It keeps a key alive as well.

Arguments: the store's URL, the ttl. Commands on standard input: "release".
"""

from __future__ import annotations

import asyncio
import sys
import time

from aiolibkv import HeldLock, LockLostError, open_store


def say(*words: object) -> None:
    print(*words, f"{time.monotonic():.6f}", flush=True)


async def told_to_release() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.readline()


async def main(url: str, ttl: float) -> None:
    async with open_store(url) as store:
        await store.put("kept", b"by the holder", ttl=ttl, keep_alive=True)
        held: HeldLock | None = None
        try:
            async with store.new_lock("lock", value=b"holder", ttl=ttl) as held:
                say("held", held.fencing_token, held.ttl, held.freed_within)
                await told_to_release()
            say("released")
        except LockLostError:
            say("lost")
        assert held is not None
        try:
            await store.put("guarded", b"by the holder", guard=held)
            say("written")
        except LockLostError:
            say("refused")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))

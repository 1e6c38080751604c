"""A process that holds a lock while its machine is suspended.

Arguments: the store's URL, the ttl. As after a suspension, the clock that counts it is an hour ahead, and the one that
timers follow is not: the process moves to a time namespace in which that is so.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from pathlib import Path

from aiolibkv import LockLostError, open_store

_NEW_TIME_NAMESPACE = 0x80
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def make_namespace() -> int:
    """Return a descriptor of a time namespace that is an hour of suspension ahead."""
    _checked(_libc.unshare(_NEW_TIME_NAMESPACE))
    Path("/proc/self/timens_offsets").write_text("boottime 3600 0\n")
    return os.open("/proc/self/ns/time_for_children", os.O_RDONLY)


async def main(url: str, ttl: float) -> None:
    try:
        namespace = make_namespace()
    except OSError as error:
        print(error, flush=True)
        return
    async with open_store(url) as store:
        lock = store.new_lock("lock", ttl=ttl)
        waking = 0.0
        try:
            async with lock as held:
                print("held", flush=True)
                before = held.is_held
                _checked(_libc.setns(namespace, _NEW_TIME_NAMESPACE))
                waking = time.monotonic()
                print(before, held.is_held, flush=True)
                await asyncio.sleep(ttl)
        except LockLostError:
            print(time.monotonic() - waking, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))

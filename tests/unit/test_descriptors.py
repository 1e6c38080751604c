"""Clean-up when the process has no file descriptor left."""

from __future__ import annotations

import subprocess
import sys

from aiolibkv.testing.scale import scaled

CODE = """
import asyncio, os
from aiolibkv import open_store

async def main():
    async with open_store("memory://shared") as store, open_store("memory://shared") as other:
        lock = store.new_lock("lock")
        await lock.acquire()
        taken = []
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            await lock.release()
        free = not await other.exists("lock")
        for each in taken:
            os.close(each)
        print(len(taken) > 0, free)

import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
asyncio.run(main())
"""


def test_a_lock_is_released_without_a_descriptor() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE],
        capture_output=True,
        text=True,
        timeout=scaled(60),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True True\n", "")

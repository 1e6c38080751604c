"""Execute the Python blocks of one page, in the order in which they stand there: the argument, from the root.

A whole program runs by itself. Other blocks share their names, and an open store on SQLite called ``store``.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import sys
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from aiolibkv import open_store
from docs.pages import Block, blocks


def compiled(block: Block) -> CodeType:
    tree = ast.parse(block.text)
    ast.increment_lineno(tree, block.line - 1)
    code: CodeType = compile(tree, str(block.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return code


async def run(fragments: list[Block]) -> None:
    async with open_store("sqlite:///fragments.db") as store:
        names: dict[str, Any] = {"asyncio": asyncio, "store": store, "__name__": "page", "__builtins__": builtins}
        before = asyncio.all_tasks()
        for fragment in fragments:
            ended = FunctionType(compiled(fragment), names)()
            if ended is not None:
                await ended
        # What a page leaves running, on purpose.
        left = asyncio.all_tasks() - before
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def main(page: str) -> None:
    found = list(blocks(Path(page), "python"))
    for block in found:
        code = compiled(block)
        if block.is_executed and block.is_program:
            exec(code, {"__name__": "__main__"})
    asyncio.run(run([block for block in found if block.is_executed and not block.is_program]))


main(sys.argv[1])

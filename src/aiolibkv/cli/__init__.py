"""The command ``aiolibkv``."""

from __future__ import annotations

import gc
import sys

_OBJECTS_BETWEEN_COLLECTIONS = 10_000
"""New objects after which garbage is looked for; of what is imported nothing is garbage."""


def main() -> None:
    """Run the command line; it needs the extra ``cli``."""
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    try:
        from aiolibkv.cli.commands import run
    except ImportError as error:
        sys.exit(f"aiolibkv: the command line needs more packages ({error}): pip install 'aiolibkv[cli]'")
    code = run(sys.argv[1:])
    gc.freeze()  # the interpreter would look through everything once more
    sys.exit(code)

"""The command ``aiolibkv``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; it needs the extra ``cli``."""
    try:
        from aiolibkv.cli.commands import run
    except ImportError as error:
        sys.exit(f"aiolibkv: the command line needs more packages ({error}): pip install 'aiolibkv[cli]'")
    sys.exit(run(sys.argv[1:]))

"""The command ``aiolibkv``."""

from __future__ import annotations

import gc
import os
import signal
import sys

_OBJECTS_BETWEEN_COLLECTIONS = 10_000
"""New objects after which garbage is looked for; of what is imported nothing is garbage."""
_INTERRUPTED = 130


def main() -> None:
    """Run the command line; it needs the extra ``cli``."""
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until work begins, which has handlers of its own. A KeyboardInterrupt may come out where nobody sees it.
        signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    try:
        from aiolibkv.cli.commands import run
    except ImportError as error:
        sys.exit(f"aiolibkv: the command line needs more packages ({error}): pip install 'aiolibkv[cli]'")
    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the code stands
    gc.freeze()  # the interpreter would look through everything once more
    sys.exit(code)

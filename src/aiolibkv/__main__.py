"""``python -m aiolibkv``."""

from aiolibkv.cli import main

main()

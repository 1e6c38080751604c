"""Print what an administrator runs where the store's role may not create tables."""

import argparse

from aiolibkv.backends.postgresql.schema import schema

_parser = argparse.ArgumentParser(prog="python -m aiolibkv.backends.postgresql", description=__doc__)
_parser.add_argument("--schema", default="public", help="the store's option of that name")
_parser.add_argument("--table", default="aiolibkv", help="the store's option of that name")
_parser.add_argument("--role", help="who is to use the tables")
print(schema(**vars(_parser.parse_args())), end="")  # noqa: T201 - it is what this is for

"""Backend ``postgresql``: a store in a database that an application may already have."""

from aiolibkv.backends.postgresql.driver import PostgresDriver
from aiolibkv.backends.postgresql.schema import schema

__all__ = ["PostgresDriver", "schema"]

"""What the author of a backend uses; begin with ``aiolibkv.store.base``."""

from aiolibkv.store.base import BaseStore
from aiolibkv.store.driver import Call, Guard, Lease, LeaseLost, Lifetime, Listing
from aiolibkv.store.endpoints import Endpoint, Endpoints
from aiolibkv.store.tasks import Tasks
from aiolibkv.store.watch import Feed

__all__ = [
    "BaseStore",
    "Call",
    "Endpoint",
    "Endpoints",
    "Feed",
    "Guard",
    "Lease",
    "LeaseLost",
    "Lifetime",
    "Listing",
    "Tasks",
]

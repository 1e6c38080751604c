"""What the author of a backend uses; begin with ``aiolibkv.store.base``."""

from aiolibkv.store.base import BaseStore
from aiolibkv.store.driver import UNSEEN, Call, Guard, Lease, LeaseLost, Lifetime, Listing, Unseen
from aiolibkv.store.endpoints import Endpoint, Endpoints
from aiolibkv.store.tasks import Tasks
from aiolibkv.store.watch import Feed

__all__ = [
    "UNSEEN",
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
    "Unseen",
]

"""What the author of a backend uses; begin with ``aiolibkv.store.driver``."""

from aiolibkv.store.driver import (
    UNSEEN,
    Acquired,
    Call,
    Condition,
    Driver,
    Guard,
    Lease,
    LeaseLostError,
    Lifetime,
    Listing,
    Names,
    OwnCall,
    Page,
    Removal,
    Removed,
    Step,
    Unseen,
    Write,
    children_of,
)
from aiolibkv.store.endpoints import Endpoint, Endpoints
from aiolibkv.store.followers import Followers
from aiolibkv.store.store import Store
from aiolibkv.store.tasks import Tasks
from aiolibkv.store.watch import Feed
from aiolibkv.store.wrapping import WrappedDriver

__all__ = [
    "UNSEEN",
    "Acquired",
    "Call",
    "Condition",
    "Driver",
    "Endpoint",
    "Endpoints",
    "Feed",
    "Followers",
    "Guard",
    "Lease",
    "LeaseLostError",
    "Lifetime",
    "Listing",
    "Names",
    "OwnCall",
    "Page",
    "Removal",
    "Removed",
    "Step",
    "Store",
    "Tasks",
    "Unseen",
    "WrappedDriver",
    "Write",
    "children_of",
]

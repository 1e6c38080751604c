"""What processes agree on through a store: leaders, services, values. It sees only AsyncStore."""

from aiolibkv.coordination.discovery import Discovery
from aiolibkv.coordination.election import Candidate, Election, Follower
from aiolibkv.coordination.mirror import Mirror
from aiolibkv.coordination.namespace import Namespace
from aiolibkv.coordination.registration import Instance, Registration
from aiolibkv.coordination.update import update

__all__ = [
    "Candidate",
    "Discovery",
    "Election",
    "Follower",
    "Instance",
    "Mirror",
    "Namespace",
    "Registration",
    "update",
]

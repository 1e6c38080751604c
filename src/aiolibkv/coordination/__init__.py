"""What processes agree on through a store: leaders, services, values. It sees only AsyncStore."""

from aiolibkv.coordination.discovery import Discovery
from aiolibkv.coordination.election import Candidate, Election, Follower
from aiolibkv.coordination.mirror import Mirror
from aiolibkv.coordination.namespace import Namespace
from aiolibkv.coordination.periodic import PeriodicJob
from aiolibkv.coordination.readwrite import ReadWriteLock
from aiolibkv.coordination.registration import Instance, Registration
from aiolibkv.coordination.semaphore import Semaphore
from aiolibkv.coordination.update import update

__all__ = [
    "Candidate",
    "Discovery",
    "Election",
    "Follower",
    "Instance",
    "Mirror",
    "Namespace",
    "PeriodicJob",
    "ReadWriteLock",
    "Registration",
    "Semaphore",
    "update",
]

"""Memory stores that are broken on purpose, each in one way that the conformance suite has to notice."""

from mutants.broken import (
    calls,
    closing,
    commits,
    coordination,
    directories,
    keys,
    lifetimes,
    locks,
    outages,
    prefixes,
    telling,
    watches,
)
from mutants.broken.registry import FIRST, MUTANTS

__all__ = [
    "FIRST",
    "MUTANTS",
    "calls",
    "closing",
    "commits",
    "coordination",
    "directories",
    "keys",
    "lifetimes",
    "locks",
    "outages",
    "prefixes",
    "telling",
    "watches",
]

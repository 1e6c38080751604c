"""What was measured, to be looked up."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from measurements import MEASUREMENTS, Measurement
from subjects import OURS


class Spread(NamedTuple):
    """A figure of several rounds."""

    median: float
    least: float
    most: float


class Record:
    """One measurement of one subject at one size.

    Attributes:
        backend, measurement, size, subject: what was measured.
        figures: what was found; none when it failed.
        failure: why it failed, or "".
    """

    def __init__(self, record: dict[str, Any]) -> None:
        """Take one from the file."""
        self.backend: str = record["backend"]
        self.measurement: str = record["measurement"]
        self.size: int = record["size"]
        self.subject: str = record["subject"]
        self.figures = {name: Spread(*spread) for name, spread in record.get("figures", {}).items()}
        self.failure: str = record.get("failure", "")

    @property
    def first(self) -> tuple[str, Spread]:
        """The figure that subjects are compared by, and its name."""
        return next(iter(self.figures.items()))

    @property
    def cpu(self) -> float:
        """Microseconds of the client's CPU for each operation, or change."""
        return next(spread.median for name, spread in self.figures.items() if name.startswith("CPU"))

    @property
    def speed(self) -> float:
        """What is larger for the faster subject."""
        name, spread = self.first
        return spread.median if name == "per second" else 1 / spread.median


class Results:
    """A run.

    Attributes:
        facts: command, date, machine, versions, servers.
        records: all that was measured.
    """

    def __init__(self, path: Path) -> None:
        """Read the file of a run."""
        self.facts: dict[str, Any] = json.loads(path.read_text())
        self.records = [Record(record) for record in self.facts.pop("records")]

    def find(
        self,
        *,
        backend: str | None = None,
        measurement: str | None = None,
        size: int | None = None,
        subject: str | None = None,
    ) -> Sequence[Record]:
        """Return what did not fail, of these."""
        return [
            record
            for record in self.records
            if not record.failure
            and backend in (None, record.backend)
            and measurement in (None, record.measurement)
            and size in (None, record.size)
            and subject in (None, record.subject)
        ]

    def speeds(self, backend: str, measurement: str, size: int) -> dict[str, float]:
        """Return how fast each subject was, this library first."""
        found = self.find(backend=backend, measurement=measurement, size=size)
        return {record.subject: record.speed for record in sorted(found, key=lambda record: record.subject != OURS)}

    def measurements(self, backend: str) -> Iterable[tuple[Measurement, int]]:
        """Return what was measured on a backend, in order."""
        done = {(record.measurement, record.size) for record in self.records if record.backend == backend}
        return ((each, size) for each in MEASUREMENTS for size in each.sizes if (each.name, size) in done)

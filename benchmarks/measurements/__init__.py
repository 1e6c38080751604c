"""What is measured, in this order."""

from measurements.base import Bench, Figures, Measurement
from measurements.growth import GROWTH
from measurements.handing_over import HANDING_OVER
from measurements.operations import OPERATIONS
from measurements.starting import STARTING
from measurements.watching import WATCHING

MEASUREMENTS: list[Measurement] = [*OPERATIONS, *HANDING_OVER, *WATCHING, *STARTING, *GROWTH]

__all__ = ["GROWTH", "MEASUREMENTS", "Bench", "Figures", "Measurement"]

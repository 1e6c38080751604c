"""Start-up."""

from __future__ import annotations

from measurements.base import Bench, Figures, Measurement, spending


async def _measure(bench: Bench, clients: int, seconds: float) -> Figures:
    """Import the library, connect and read a value; in memory it is written first."""
    subject = bench.subject
    with spending() as spent:
        await subject.connect()
        if not subject.is_shared:
            await subject.put(bench.first_key, bench.value)
        await subject.get(bench.first_key)
    return {"ms": spent.seconds * 1e3, "CPU, ms": spent.cpu * 1e3}


STARTING = [Measurement("start-up", "get", "client", (1,), _measure, is_fresh=True)]

"""Traces and metrics by OpenTelemetry: a listener for ``Config.listener``. Needs the extra ``otel``.

Names follow OpenTelemetry's conventions for database clients (semantic conventions 1.30). Neither values nor secrets
are recorded; keys are only when they are asked for.
"""

from __future__ import annotations

import time
from typing import Any

from aiolibkv.errors import BackendNotSupportedError
from aiolibkv.events import CallEnded, Connected, Disconnected, Event, LeaseLost, LockAcquired, LockLost, WatchStale

try:
    from opentelemetry import metrics, trace
except ImportError as _missing:
    raise BackendNotSupportedError(
        f"telemetry needs more packages ({_missing}): pip install 'aiolibkv[otel]'"
    ) from _missing

_SCOPE = "aiolibkv"
_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
"""Boundaries of the histogram, as the conventions advise."""


class OpenTelemetry:
    """A listener that records a span and a duration for each call, and counts what goes wrong.

    Use it as ``Config(listener=OpenTelemetry())``; one object may serve several stores.

    - Span ``<call>``, of kind client, in the caller's context: ``db.system.name``, ``db.operation.name``,
      ``server.address``, ``server.port``, ``error.type`` when it failed, ``aiolibkv.key`` if asked for.
    - Histogram ``db.client.operation.duration``, in seconds, with the same attributes but the key.
    - Counters ``aiolibkv.connections``, ``aiolibkv.disconnections``, ``aiolibkv.watches.stale``,
      ``aiolibkv.locks.acquired``, ``aiolibkv.locks.lost``, ``aiolibkv.leases.lost``.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        *,
        keys: bool = False,
    ) -> None:
        """Make a listener.

        Args:
            tracer_provider: gives the tracer; the global one when None.
            meter_provider: gives the meter; the global one when None.
            keys: whether spans tell the key of the call.
        """
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
        self._keys = keys
        self._duration = meter.create_histogram(
            "db.client.operation.duration",
            unit="s",
            description="Duration of calls.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._counters: dict[type[Event], metrics.Counter] = {
            kind: meter.create_counter(name, unit=unit, description=description)
            for kind, name, unit, description in (
                (Connected, "aiolibkv.connections", "{connection}", "Connections made, reconnections included."),
                (Disconnected, "aiolibkv.disconnections", "{connection}", "Connections that ended."),
                (WatchStale, "aiolibkv.watches.stale", "{watch}", "Watches that were cut off from the server."),
                (LockAcquired, "aiolibkv.locks.acquired", "{lock}", "Locks acquired."),
                (LockLost, "aiolibkv.locks.lost", "{lock}", "Locks lost."),
                (LeaseLost, "aiolibkv.leases.lost", "{lease}", "Leases of kept-alive keys lost."),
            )
        }

    def __call__(self, event: Event) -> None:
        """Record an event."""
        attributes = _attributes(event)
        if isinstance(event, CallEnded):
            self._record(event, attributes)
        elif (counter := self._counters.get(type(event))) is not None:
            counter.add(1, attributes)

    def _record(self, event: CallEnded, attributes: dict[str, Any]) -> None:
        attributes["db.operation.name"] = event.call
        if event.error is not None:
            attributes["error.type"] = type(event.error).__qualname__
        self._duration.record(event.seconds, attributes)
        end = time.time_ns()
        told = {**attributes, "aiolibkv.key": event.key} if self._keys and event.key is not None else attributes
        span = self._tracer.start_span(
            event.call, kind=trace.SpanKind.CLIENT, attributes=told, start_time=end - int(event.seconds * 1e9)
        )
        if event.error is not None:
            # Its text may hold the key.
            span.set_status(trace.StatusCode.ERROR, str(event.error) if self._keys else None)
        span.end(end)


def _attributes(event: Event) -> dict[str, Any]:
    attributes: dict[str, Any] = {"db.system.name": event.backend}
    host, _, port = event.endpoint.rpartition(":")
    if host and port.isdecimal() and "," not in event.endpoint:
        attributes |= {"server.address": host, "server.port": int(port)}
    elif event.endpoint:
        attributes["server.address"] = event.endpoint
    return attributes

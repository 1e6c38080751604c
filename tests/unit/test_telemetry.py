"""What OpenTelemetry's own exporters get of a store's calls."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from aiolibkv import Config, KeyNotFoundError, Put, open_store
from aiolibkv.events import CallEnded, LockLost
from aiolibkv.telemetry import OpenTelemetry


async def _calls(**settings: Any) -> tuple[list[ReadableSpan], dict[str, list[tuple[dict[str, Any], float]]]]:
    """Make some calls below a span of the caller; return the spans, and the points of each metric."""
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracing, metering = TracerProvider(), MeterProvider([reader])
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    listener = OpenTelemetry(tracing, metering, **settings)
    async with open_store("memory://spans", Config(listener=listener)) as store:
        with tracing.get_tracer("test").start_as_current_span("request"):
            await store.put("secret/key", b"value")
            await store.commit(Put("a", b""), Put("b", b""))
            with pytest.raises(KeyNotFoundError):
                await store.get("secret/missing")
        async with store.new_lock("lock"):
            pass
    listener(LockLost("memory", "spans", "lock", "by the test"))
    listener(CallEnded("etcd", "[::1]:2379", "get", "k", 0.25, None))
    data = reader.get_metrics_data()
    assert data is not None
    points: dict[str, list[tuple[dict[str, Any], float]]] = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            size = point.value if hasattr(point, "value") else point.count
            points.setdefault(metric.name, []).append((dict(point.attributes or {}), size))
    return list(exporter.get_finished_spans()), points


@pytest.mark.asyncio
async def test_spans() -> None:
    spans, _ = await _calls()
    *told, request, other = spans
    assert [span.name for span in told] == ["put", "commit", "get"]
    assert all(span.kind is SpanKind.CLIENT for span in told)
    assert request.context is not None
    assert all(span.parent is not None and span.parent.span_id == request.context.span_id for span in told)
    assert dict(told[0].attributes or {}) == {
        "db.system.name": "memory",
        "server.address": "spans",
        "db.operation.name": "put",
    }
    assert told[2].status.status_code is StatusCode.ERROR
    assert dict(told[2].attributes or {})["error.type"] == "KeyNotFoundError"
    assert dict(other.attributes or {}) == {
        "db.system.name": "etcd",
        "server.address": "[::1]",
        "server.port": 2379,
        "db.operation.name": "get",
    }
    assert other.start_time is not None
    assert other.end_time is not None
    assert 0.24e9 < other.end_time - other.start_time < 0.26e9
    assert not any("secret" in span.to_json() or "value" in (span.attributes or {}).values() for span in spans)


@pytest.mark.asyncio
async def test_keys_only_when_they_are_asked_for() -> None:
    spans, points = await _calls(keys=True)
    told = [(span.attributes or {}).get("aiolibkv.key") for span in spans if span.name in {"put", "commit", "get"}]
    assert told == ["secret/key", None, "secret/missing", "k"]
    assert "secret" not in str(points)


@pytest.mark.asyncio
async def test_metrics() -> None:
    _, points = await _calls()
    durations = {
        (found["db.system.name"], found["db.operation.name"], found.get("error.type")): count
        for found, count in points["db.client.operation.duration"]
    }
    assert durations == {
        ("memory", "put", None): 1,
        ("memory", "commit", None): 1,
        ("memory", "get", "KeyNotFoundError"): 1,
        ("etcd", "get", None): 1,
    }
    assert [count for _, count in points["aiolibkv.locks.acquired"]] == [1]
    assert [count for _, count in points["aiolibkv.locks.lost"]] == [1]


def test_durations_are_in_seconds_and_endpoints_may_be_several() -> None:
    reader = InMemoryMetricReader()
    OpenTelemetry(meter_provider=MeterProvider([reader]))(CallEnded("etcd", "a:1, b:2", "get", "k", 0.25, None))
    data = reader.get_metrics_data()
    assert data is not None
    (point,) = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    assert point.sum == 0.25  # type: ignore[union-attr]
    assert dict(point.attributes or {})["server.address"] == "a:1, b:2"


def test_without_the_package_the_command_to_install_it_is_named() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import aiolibkv\n"
        "try: import aiolibkv.telemetry\n"
        "except aiolibkv.BackendNotSupportedError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'aiolibkv[otel]'" in done.stdout

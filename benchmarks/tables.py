"""Results as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from measurements import GROWTH
from records import Record, Results, Spread
from subjects import OURS, SUBJECTS
from targets import GROWING, outcomes

_GROWTH = {measurement.name for measurement in GROWTH}
_TASKS = 50
_SHOWN = {
    "get": "get",
    "put": "put",
    "atomic_put": "compare-and-swap",
    "list": "list of 100 pairs",
    "lock": "lock and release",
}
_FLAT = 2.0
"""What costs at most so many times as much among the most as among a hundred is called flat."""
_GROWTH_FROM = 100


def summary(results: Results) -> str:
    """Return one table, and what stands around it, of all backends at 50 tasks."""
    rows = []
    for backend in results.facts["servers"]:
        cells = [_compared(backend, results.speeds(backend, name, _TASKS)) for name in _SHOWN]
        rows.append([backend, *cells])
    return "\n".join(
        [
            f"Operations in a second, of {_TASKS} tasks, and how many times as many that is as the fastest other",
            f"client made; {_circumstances(results)}.",
            "",
            *_table(["", *_SHOWN.values()], rows),
        ]
    )


def everything(results: Results) -> str:
    """Return what the run was, the targets, and the tables of each backend."""
    facts = results.facts
    lines = [
        f"`{facts['command']}`; {_circumstances(results)}, Python {facts['python']}. {facts['rounds']} rounds of",
        f"{facts['seconds']:g} s, values of {facts['value']} bytes.",
        "",
        *_targets(results),
    ]
    for backend, server in facts["servers"].items():
        lines += ["", f"### {backend}: {server}", "", *_comparison(results, backend), "", *_notes(results, backend)]
        lines += ["", *_growth(results, backend)]
    return "\n".join(lines)


def _circumstances(results: Results) -> str:
    facts = results.facts
    return f"{facts['date']}, {facts['machine']}"


def _compared(backend: str, speeds: dict[str, float]) -> str:
    """Return our speed, and how many times the fastest other library's it is."""
    if OURS not in speeds:
        return ""
    ours = speeds[OURS]
    libraries = [subject.name for subject in SUBJECTS[backend] if subject.package and subject.name != OURS]
    others = {name: speeds[name] for name in libraries if name in speeds}
    if not others:
        return _number(ours)
    fastest = max(others, key=lambda name: others[name])
    return f"{_number(ours)} ({ours / others[fastest]:.2g} x {fastest})"


def _targets(results: Results) -> Iterable[str]:
    found = outcomes(results)
    missed = [outcome for outcome in found if not outcome.is_met]
    yield f"{len(found) - len(missed)} of {len(found)} targets are met.{' Missed are:' if missed else ''}"
    yield ""
    rows = [
        [
            f"{each.target.backend} {each.target.measurement}, {each.size}",
            each.wanted,
            each.reached,
            each.cpu,
            each.target.reason,
        ]
        for each in missed
    ]
    yield from _table(["", "target", "measured", "us of CPU, ours / its", "why"], rows)


def _comparison(results: Results, backend: str) -> Iterable[str]:
    names = [subject.name for subject in SUBJECTS[backend] if results.find(backend=backend, subject=subject.name)]
    rows = []
    for measurement, size in results.measurements(backend):
        if measurement.name not in _GROWTH:
            cells = {
                record.subject: _cell(record)
                for record in results.find(backend=backend, measurement=measurement.name, size=size)
            }
            rows.append([f"{measurement.name}, {measurement.counted(size)}", *(cells.get(name, "") for name in names)])
    return _table(["", *names], rows)


def _cell(record: Record) -> str:
    texts: list[str] = []
    for name, spread in record.figures.items():
        what, _, unit = name.rpartition(", ")
        prefix = f"{what} " if what not in ("", "p50") else ""
        text = f"{prefix}{_number(spread.median)}{'/s' if unit == 'per second' else f' {unit}'}"
        if not texts and spread.least < spread.most:
            text += f" ({_number(spread.least)} - {_number(spread.most)})"
        texts.append(text)
    return "; ".join(texts)


def _notes(results: Results, backend: str) -> Iterable[str]:
    packages = results.facts["packages"]
    for subject in SUBJECTS[backend]:
        version = f"{subject.package} {packages[subject.package]}" if subject.package else ""
        yield f"- {subject.name}: {'. '.join(text for text in (version, subject.note) if text)}"
    for record in results.records:
        if record.backend == backend and record.failure:
            yield f"- {record.subject} failed at {record.measurement}, {record.size}: {record.failure}"


def _growth(results: Results, backend: str) -> Iterable[str]:
    sizes = [size for size in GROWTH[0].sizes if results.find(backend=backend, measurement=GROWTH[0].name, size=size)]
    rows = []
    for name in [measurement.name for measurement in GROWTH]:
        found = {record.size: record.figures for record in results.find(backend=backend, measurement=name)}
        for figure in next(iter(found.values()), {}):
            costs = {size: figures[figure] for size, figures in found.items()}
            cells = [_number(costs[size].median) if size in costs else "" for size in sizes]
            reason = GROWING.get((backend, name, figure), "")
            rows.append([f"{name}: {figure}", *cells, _growing(costs, reason)])
    return _table([f"us of CPU among so many ({backend})", *map(_number, sizes), "grows"], rows)


def _growing(costs: dict[int, Spread], reason: str) -> str:
    most = max(costs)
    if most <= _GROWTH_FROM or _GROWTH_FROM not in costs:
        return ""
    factor = costs[most].median / costs[_GROWTH_FROM].median
    return "flat" if factor <= _FLAT else f"{factor:.1f} x{reason and ': '}{reason}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _number(value: float) -> str:
    """Return three digits, thousands apart by a space."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}".replace(",", " ") if rounded >= 100 else f"{rounded:g}"

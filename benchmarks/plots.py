"""Results as plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from measurements import GROWTH
from records import Results

_TASKS = 50
_OPERATIONS = ("get", "put", "atomic_put", "list")


def plot(results: Results, directory: Path) -> None:
    """Write comparison.svg and growth.svg; the same results give the same files.

    Raises:
        ImportError: matplotlib is missing.
    """
    import matplotlib as mpl

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "aiolibkv", "font.size": 9, "axes.titlesize": 9})
    directory.mkdir(parents=True, exist_ok=True)
    for name, figure in (("comparison", _comparison(results)), ("growth", _growth(results))):
        path = directory / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        path.write_text("".join(f"{line.rstrip()}\n" for line in path.read_text().splitlines()))


def _comparison(results: Results) -> Any:
    """Draw how many operations each client does in a second, a panel for each backend."""
    from matplotlib.figure import Figure

    backends = list(results.facts["servers"])
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, (len(backends) + 1) // 2, squeeze=False).flat
    for axes, backend in zip(panels, backends, strict=False):
        found = [each for each in results.find(backend=backend, size=_TASKS) if each.measurement in _OPERATIONS]
        names = list(dict.fromkeys(record.subject for record in found))
        width = 0.8 / max(1, len(names))
        for number, name in enumerate(names):
            own = [record for record in found if record.subject == name]
            spreads = [record.first[1] for record in own]
            axes.bar(
                [_OPERATIONS.index(record.measurement) + number * width for record in own],
                [spread.median for spread in spreads],
                width,
                yerr=[
                    [spread.median - spread.least for spread in spreads],
                    [spread.most - spread.median for spread in spreads],
                ],
                error_kw={"linewidth": 0.7},
                label=name,
            )
        axes.set_xticks([number + 0.4 - width / 2 for number in range(len(_OPERATIONS))], _OPERATIONS)
        axes.set_yscale("log")
        axes.set_title(backend)
        axes.legend(fontsize=7)
    figure.supylabel(f"operations in a second, {_TASKS} tasks (logarithmic)")
    return figure


def _growth(results: Results) -> Any:
    """Draw what an operation costs among few and among many, a panel for each kind, a line for each backend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    for axes, measurement in zip(figure.subplots(2, (len(GROWTH) + 1) // 2).flat, GROWTH, strict=False):
        figure_name = _GROWING[measurement.name]
        for backend in results.facts["servers"]:
            found = sorted(results.find(backend=backend, measurement=measurement.name), key=lambda each: each.size)
            axes.plot(
                [record.size for record in found],
                [record.figures[figure_name].median for record in found],
                marker=".",
                label=backend,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(f"{measurement.name}:\n{figure_name}")
        axes.set_xlabel(measurement.counted(0).removeprefix("0 "))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    figure.supylabel("microseconds of CPU for each (logarithmic)")
    return figure


_GROWING = {
    "keys": "put, and a watched tree tells it",
    "watches": "put, and its watch tells it",
    "watches of one key": "a change, for each watch",
    "kept-alive keys": "put",
    "registrations": "register",
    "locks": "acquire",
}
"""The figure that is drawn of each kind."""

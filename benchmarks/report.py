"""What was measured, as tables in Markdown and as plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PLOTTED_TASKS = 50


def table(results: dict[str, Any]) -> str:
    """Return a table for each backend, and the versions and notes below it."""
    where = f"{results['machine']}; Python {results['python']}, SQLite {results['sqlite']}"
    what = f"Operations in a second, the median of {results['rounds']} rounds (least - most), with values of"
    lines = [
        "# Results",
        "",
        f"`{results['command']}`, {results['date']}; {where}.",
        "",
        f"{what} {results['value']} bytes; and microseconds of the client's CPU for each.",
    ]
    for backend, part in results["backends"].items():
        clients = [name for name, client in part["clients"].items() if "left out" not in client]
        lines += ["", f"## {backend}", ""]
        lines += [f"| operation, tasks | {' | '.join(clients)} |", f"|---|{'---|' * len(clients)}"]
        rows: dict[tuple[str, int], dict[str, str]] = {}
        for result in part["results"]:
            rows.setdefault((result["operation"], result["tasks"]), {})[result["client"]] = _cell(result)
        for (operation, tasks), cells in rows.items():
            lines.append(f"| {operation}, {tasks} | {' | '.join(cells.get(name, '') for name in clients)} |")
        lines.append("")
        for name, client in part["clients"].items():
            facts = (client["package"], client.get("version", ""), client["note"], client.get("left out", ""))
            lines.append(f"- {name}: {' '.join(fact for fact in facts if fact)}")
        lines += [
            f"- {result['client']} failed at {result['operation']}, {result['tasks']} tasks: {result['failure']}"
            for result in part["results"]
            if "failure" in result
        ]
    return "\n".join(lines) + "\n"


def _cell(result: dict[str, Any]) -> str:
    if "failure" in result:
        return "failed"
    rate, cpu = result["rate"], result["cpu"]
    return f"{rate['median']:.0f} ({rate['min']:.0f} - {rate['max']:.0f}), {cpu['median']:.1f} us"


def plot(results: dict[str, Any], directory: Path) -> None:
    """Write a plot for each backend, if matplotlib is there."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    for backend, part in results["backends"].items():
        measured = [each for each in part["results"] if each["tasks"] == PLOTTED_TASKS and "failure" not in each]
        operations = list(dict.fromkeys(each["operation"] for each in measured))
        clients = list(dict.fromkeys(each["client"] for each in measured))
        if not measured:
            continue
        figure = Figure(figsize=(9, 4))
        axes = figure.subplots()
        width = 0.8 / len(clients)
        for number, name in enumerate(clients):
            own = [each for each in measured if each["client"] == name]
            places = [operations.index(each["operation"]) + number * width for each in own]
            rates = [each["rate"] for each in own]
            medians = [rate["median"] for rate in rates]
            errors = [
                [rate["median"] - rate["min"] for rate in rates],
                [rate["max"] - rate["median"] for rate in rates],
            ]
            axes.bar(places, medians, width, yerr=errors, label=name)
        axes.set_xticks([number + 0.4 - width / 2 for number in range(len(operations))], operations)
        axes.set_yscale("log")
        axes.set_ylabel("operations in a second")
        axes.set_title(f"{backend}, {PLOTTED_TASKS} tasks: median, least and most of the rounds")
        axes.legend()
        figure.tight_layout()
        figure.savefig(directory / f"{backend}.svg")

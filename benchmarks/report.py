"""Write the tables and plots of a run, from its file.

    python benchmarks/report.py

They stand in README.md here and in that of the project, between the marks; the plots are in docs/images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from environment import HERE, run_there

PROJECT = HERE.parent
_BEGIN, _END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def main() -> int:
    """Write what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=HERE / "results.json", help="the file of a run")
    parser.add_argument("--output", type=Path, help="write results.md and the plots into this directory instead")
    parser.add_argument("--here", action="store_true", help="take the libraries of this Python, and install nothing")
    arguments = parser.parse_args()
    if not arguments.here:
        return run_there(__file__)

    from plots import plot
    from records import Results
    from tables import everything, summary

    results = Results(arguments.results)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "results.md").write_text(f"{summary(results)}\n\n{everything(results)}\n")
        images = arguments.output
    else:
        replace(PROJECT / "README.md", summary(results))
        replace(HERE / "README.md", everything(results))
        images = PROJECT / "docs/images"
    try:
        plot(results, images)
    except ImportError as error:
        print(f"no plots: {error}", file=sys.stderr)
    return 0


def replace(path: Path, text: str) -> None:
    """Put a text between the marks of a page."""
    before, _, rest = path.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    path.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}")


if __name__ == "__main__":
    sys.exit(main())

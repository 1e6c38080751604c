"""The commands as a page of documentation: ``python -m aiolibkv.cli.reference > docs/cli.md``."""

from __future__ import annotations

import click

from aiolibkv.cli.commands import MODULES, aiolibkv

_WIDTH = 100
_BEGINNING = """\
# The command line

Made by `python -m aiolibkv.cli.reference > docs/cli.md` from what `--help` says.
"""


def page() -> str:
    """Return the page."""
    root = click.Context(aiolibkv, info_name="aiolibkv", terminal_width=_WIDTH, max_content_width=_WIDTH)
    parts = [_BEGINNING, _section("aiolibkv", aiolibkv.get_help(root))]
    for name in MODULES:
        command = aiolibkv.get_command(root, name)
        assert command is not None, "listed"
        context = click.Context(command, root, name, terminal_width=_WIDTH, max_content_width=_WIDTH)
        parts.append(_section(f"aiolibkv {name}", command.get_help(context)))
    return "\n".join(parts)


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n```text\n{text.rstrip()}\n```\n"


if __name__ == "__main__":
    click.echo(page(), nl=False)

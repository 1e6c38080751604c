"""Completion in shells: of commands and options by click, of keys by asking the store."""

from __future__ import annotations

import asyncio

import click
from click.shell_completion import CompletionItem, get_completion_class

from aiolibkv import Config, StoreError, open_store
from aiolibkv.cli.output import Output
from aiolibkv.cli.running import run
from aiolibkv.cli.settings import Command, Settings

_PATIENCE = 1.0
"""Seconds; who presses the tab key waits."""


_BASH = """\
_aiolibkv_completion() {
    local IFS=$'\\n' line value
    COMPREPLY=()
    while read -r line; do
        value=${line#*,}
        if [[ $line == plain,* ]]; then
            COMPREPLY+=("$(printf %q "$value")")
            [[ $value == */ ]] && compopt -o nospace
        else
            compopt -o default
        fi
    done < <(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD="$COMP_CWORD" _AIOLIBKV_COMPLETE=bash_complete "$1")
}
complete -F _aiolibkv_completion aiolibkv
"""
"""Unlike click's, it quotes keys, and a directory can be gone on with."""


@click.command(
    "completion",
    cls=Command,
    examples=[
        'eval "$(aiolibkv completion bash)"',
        "aiolibkv completion fish > ~/.config/fish/completions/aiolibkv.fish",
    ],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> int | None:
    """Write what a SHELL evaluates to complete commands, options and keys.

    bash: eval "$(aiolibkv completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc; fish: aiolibkv completion fish >
    ~/.config/fish/completions/aiolibkv.fish.
    """
    if shell == "bash":
        text = _BASH
    else:
        kind = get_completion_class(shell)
        assert kind is not None, "one of click's own"
        text = kind(context.find_root().command, {}, "aiolibkv", "_AIOLIBKV_COMPLETE").source() + "\n"
    return run(context.ensure_object(Settings), lambda: Output(as_json=False).write(text.encode()))


def keys_like(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """Return the keys and directories that begin like this, one level; none when the store does not answer."""
    settings = context.find_object(Settings) or Settings()
    directory, slash, _ = incomplete.rpartition("/")

    async def names() -> list[str]:
        config = Config(connection_timeout=_PATIENCE, request_timeout=_PATIENCE)
        async with open_store(settings.resolved_url(), config) as store:
            return list(await store.children(directory))

    try:
        found = asyncio.run(names())
    except (StoreError, ValueError, OSError):
        return []
    whole = (f"{directory}{slash}{name}" for name in found)
    return [CompletionItem(name) for name in whole if name.startswith(incomplete)]

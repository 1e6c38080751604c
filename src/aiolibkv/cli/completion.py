"""Completion in shells: of commands and options by click, of keys by asking the store."""

from __future__ import annotations

import asyncio

import click
from click.shell_completion import CompletionItem

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
_ZSH = """\
_aiolibkv_completion() {
    local -a answer names described directories
    local kind value help
    local -x COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT - 1)) _AIOLIBKV_COMPLETE=zsh_complete
    answer=("${(@f)$(aiolibkv)}")
    for kind value help in $answer; do
        case $kind in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain)
                if [[ $help != _ ]]; then
                    described+=("$value:$help")
                elif [[ $value == */ ]]; then
                    directories+=("$value")
                else
                    names+=("$value")
                fi ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described -U
    (( $#names )) && compadd -U -V unsorted -a names
    (( $#directories )) && compadd -U -V unsorted -S '' -a directories
}
compdef _aiolibkv_completion aiolibkv
"""

_FISH = """\
function _aiolibkv_completion
    set -l words (commandline -opc)
    set -l answer (env COMP_WORDS=(commandline -cp | string collect) COMP_CWORD=(count $words) \\
        _AIOLIBKV_COMPLETE=zsh_complete aiolibkv)
    for at in (seq 1 3 (count $answer))
        set -l value $answer[(math $at + 1)]
        set -l help $answer[(math $at + 2)]
        switch $answer[$at]
            case dir
                __fish_complete_directories $value
            case file
                __fish_complete_path $value
            case plain
                if test $help = _
                    echo $value
                else
                    printf '%s\\t%s\\n' $value $help
                end
        end
    end
end
complete --no-files --command aiolibkv --arguments "(_aiolibkv_completion)"
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
"""Unlike click's, these quote keys, keep commas in them, and go on in a directory."""


@click.command(
    "completion",
    cls=Command,
    examples=[
        'eval "$(aiolibkv completion bash)"',
        "aiolibkv completion fish > ~/.config/fish/completions/aiolibkv.fish",
    ],
)
@click.argument("shell", type=click.Choice(list(_SCRIPTS)))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> int | None:
    """Write a script for SHELL that completes commands, options and keys.

    bash: eval "$(aiolibkv completion bash)" in ~/.bashrc; zsh: eval "$(aiolibkv completion zsh)" in ~/.zshrc, after
    compinit; fish: aiolibkv completion fish > ~/.config/fish/completions/aiolibkv.fish.
    """
    return run(context.ensure_object(Settings), lambda: Output(as_json=False).write(_SCRIPTS[shell].encode()))


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

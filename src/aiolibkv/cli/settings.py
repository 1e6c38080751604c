"""The options that all commands have, before or after the command's name, and what comes of them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from aiolibkv import AsyncStore, Config, open_store
from aiolibkv.cli.text import escaped, masked

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from aiolibkv.events import Event

URL_VARIABLE = "AIOLIBKV_URL"


class Settings:
    """What the common options say.

    Attributes:
        url: the store's URL, None when it is not given.
        as_json: whether items are written as JSON.
        timeout: request_timeout, None for the library's.
        is_verbose: whether the library's log and tracebacks are shown.
        is_quiet: whether nothing but errors is told.
    """

    def __init__(self) -> None:
        self.url: str | None = None
        self.as_json: bool = False
        self.timeout: float | None = None
        self.is_verbose: bool = False
        self.is_quiet: bool = False

    def store(self, url: str | None = None, listener: Callable[[Event], object] | None = None) -> AsyncStore:
        """Make the store that is meant, or another one with the same settings.

        Args:
            url: that of another one.
            listener: is given what the store tells.

        Raises:
            ValueError: the URL or the timeout cannot be.
            BackendNotSupportedError: its backend is not there.
        """
        config = Config(listener=listener)
        if self.timeout is not None:
            config = replace(config, request_timeout=self.timeout)
        return open_store(url or self.resolved_url(), config)

    def resolved_url(self) -> str:
        """Return the URL that is given, that of the environment, or that of the user's own database."""
        return self.url or os.environ.get(URL_VARIABLE) or self._own_database()

    @property
    def is_own_database(self) -> bool:
        """Tell whether no URL is given."""
        return not (self.url or os.environ.get(URL_VARIABLE))

    def start_log(self) -> None:
        """Have the library's log on standard error: all of it when verbose, else what waits or goes wrong."""
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_OneLine(self.is_verbose))
        log = logging.getLogger("aiolibkv")
        log.addHandler(handler)
        log.setLevel(logging.DEBUG if self.is_verbose else logging.ERROR if self.is_quiet else logging.WARNING)

    def leave_standard_error_to_a_command(self) -> None:
        """Have no more of the library's log on standard error than errors, unless verbose."""
        if not self.is_verbose:
            logging.getLogger("aiolibkv").setLevel(logging.ERROR)

    def _own_database(self) -> str:
        from urllib.parse import quote

        from platformdirs import user_data_path

        directory = user_data_path("aiolibkv", ensure_exists=True)
        return f"sqlite:///{quote(str(directory / 'aiolibkv.db'))}"


class _OneLine(logging.Formatter):
    def __init__(self, is_verbose: bool) -> None:  # noqa: FBT001 - an internal class
        self._is_verbose = is_verbose
        super().__init__("aiolibkv: %(asctime)s %(levelname)s %(message)s" if is_verbose else "aiolibkv: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        text = masked(super().format(record))
        return text if self._is_verbose and record.exc_info else escaped(text)


class Command(click.Command):
    """A command that has the common options, and examples at the end of its help."""

    def __init__(self, *args: Any, examples: Sequence[str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.epilog: str | None = "\n  ".join(("\b\nExamples:", *examples))
        self.params.extend(common_options())


def complete_key(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the keys and directories that begin like this; for ``shell_complete`` of an argument."""
    from aiolibkv.cli.completion import keys_like

    return keys_like(context, incomplete)


def common_options() -> list[click.Parameter]:
    """Make the options that all commands have."""
    return [
        _option("url", "--url", "-u", help=f"URL of the store; else {URL_VARIABLE}, else a SQLite file of your own."),
        _option("as_json", "--json", is_flag=True, help="Write each item as a JSON object in a line."),
        _option(
            "timeout",
            "--timeout",
            metavar="SECONDS",
            type=float,
            help="Give up a request after this time (5); to connect: ?connection_timeout= in the URL.",
        ),
        _option("is_verbose", "--verbose", is_flag=True, help="Show the library's log, and tracebacks."),
        _option("is_quiet", "--quiet", is_flag=True, help="Show nothing but errors."),
    ]


def _option(*names: str, **settings: Any) -> click.Option:
    return click.Option(names, expose_value=False, callback=_keep, **settings)


def _keep(context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value == "":
        raise click.UsageError(f"{parameter.opts[0]} is empty.")  # as of a variable of a script that is not set
    if value is not None and value is not False:
        assert parameter.name is not None, "an option has one"
        setattr(context.ensure_object(Settings), parameter.name, value)

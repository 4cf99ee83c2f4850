"""What every command shares: settings, the choice of JSON, output on stdout, talk on stderr, exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from workers import database, logs, migrations
from workers import settings as settings_module
from workers.settings import Settings

DONE, SOME_FAILED, USAGE, UNREACHABLE = 0, 1, 2, 3

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class State:
    """One invocation. Settings are read on first use, so that `--help` needs none."""

    config: Path | None = None
    json: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)
    legacy: Path | None = None
    verbose: bool = False
    _settings: Settings | None = None

    @property
    def settings(self) -> Settings:
        """The settings of this invocation, which become those of the process."""
        if self._settings is None:
            self._settings = settings_module.load(self.config, self.overrides)
            settings_module.use(self._settings)
        return self._settings

    def prepare(self) -> Settings:
        """Settings, with the control database reached and its migrations applied. Raises ServerUnavailable."""
        conf = self.settings
        # Unconfigured, the log goes to stdout, where the data are.
        logs.configure(conf.logs.model_copy(update={"level": "WARNING"}))
        with database.connection(conf.target(), purpose="cli") as conn:
            for name in migrations.migrate(conn, migrations.FOUNDATION):
                self.say(f"migrated the control database: {name}")
        return conf

    def emit(self, document: Mapping[str, Any]) -> None:
        """One JSON document on stdout."""
        sys.stdout.buffer.write(orjson.dumps(document, default=_plain, option=orjson.OPT_INDENT_2) + b"\n")
        sys.stdout.buffer.flush()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table on stdout; plain columns where it is no terminal."""
        # Where nobody looks at it through a window of some width, no cell is cut or wrapped.
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 1000)
        shown = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for column in columns:
            shown.add_column(escape(column))
        for row in rows:
            shown.add_row(*(_cell(value) for value in row))
        with console.capture() as captured:
            console.print(shown)
        click.echo("\n".join(line.rstrip() for line in captured.get().rstrip().split("\n")))

    def out(self, text: str) -> None:
        """A line of data on stdout."""
        click.echo(text)

    def say(self, text: str) -> None:
        """A line of talk on stderr."""
        click.echo(text, err=True)


pass_state = click.make_pass_decorator(State, ensure=True)


def json_option(command: F) -> F:
    """`--json` after the command, for those who did not put it before."""

    def switch(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(State).json = True

    option = click.option(
        "--json",
        "json_",
        is_flag=True,
        expose_value=False,
        callback=switch,
        help="One JSON document on stdout.",
    )
    return option(command)


def here_options(command: F) -> F:
    """`--here`, `--wait`, `--here-timeout`: of every command that works by messages."""
    for option in (
        click.option(
            "--here-timeout", type=float, default=600.0, show_default=True,
            help="Seconds to wait for locks and servers with --here, from the last progress on.",
        ),
        click.option("--wait", is_flag=True, help="Follow the work until it is done."),
        click.option("--here", is_flag=True, help="Do the work in this process: no Redis, no worker."),
    ):  # fmt: skip
        command = option(command)
    return command


def asked_at_once(names: Sequence[str], ask: Callable[[str], dict[str, Any]]) -> list[dict[str, Any]]:
    """What `ask` says of each name, in their order; a slow server keeps only its own thread waiting."""

    def one(name: str) -> dict[str, Any]:
        try:
            return ask(name)
        finally:
            database.close_all()

    with ThreadPoolExecutor(max_workers=max(1, min(32, len(names)))) as pool:
        return list(pool.map(one, names))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    if isinstance(value, (list, tuple)):
        return " ".join(str(item) for item in value) or "-"
    return escape(str(value))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    return str(value)

"""What the commands about jobs have in common: the database that is meant, the old file, times, JSON."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from producers.cli.context import State
from workers.postprocessing import api
from workers.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

database_option = click.option("--database", "-D", "db", help="A database of the settings, if there are several.")


def legacy_option(command: F) -> F:
    """`--legacy-config hdbpp_postprocessing.conf`: that file's databases are this invocation's."""

    def read(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
        if value is not None:
            state = ctx.ensure_object(State)
            state.legacy = value
            state.overrides = api.settings_from_hdbpp(value)

    option = click.option(
        "--legacy-config",
        "-c",
        type=click.Path(path_type=Path),
        expose_value=False,
        callback=read,
        help="hdbpp-postprocessing's YAML file: its root keys are the databases.",
    )
    return option(command)


class Moment(click.ParamType[datetime]):
    """A time such as 2027-03-28T01:30Z; without an offset it is UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The aware datetime."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time; write it as 2027-03-28 01:30 or 2027-03-28T01:30:00+02:00", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Json(click.ParamType[str]):
    """A JSON document, kept as it was written."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, once it is known to be JSON."""
        import json

        try:
            json.loads(value)
        except ValueError as error:
            self.fail(f"{value!r} is no JSON: {error}", param, ctx)
        return str(value)


def the_database(conf: Settings, name: str | None) -> str:
    """The database that is meant: the one named, or the only one there is."""
    if name is not None:
        return api.check_name(conf, name)
    names = api.names(conf)
    if len(names) == 1:
        return names[0]
    ready = [one for one in names if api.is_set_up(conf, one)]
    if len(ready) == 1:
        return ready[0]
    raise click.UsageError(f"name one of the databases with --database: {', '.join(names)}")

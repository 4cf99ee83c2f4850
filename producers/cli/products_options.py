"""What the commands of products have in common: the mission that is meant, days, and how work is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from typing import Any, TypeVar

import click

from producers.cli import follow
from producers.cli.context import State
from workers.messages import Message
from workers.products import api

F = TypeVar("F", bound=Callable[..., Any])

HERE_LANE = 1000  # of commands that build in their own process: no worker's lane is waited for


class Day(click.ParamType[date]):
    """A day as 2027-03-01."""

    name = "YYYY-MM-DD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        """The day. Fails with a usage error for anything else."""
        if isinstance(value, date):
            return value
        try:
            return date.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no day; write it as 2027-03-01", param, ctx)


DAY = Day()


def mission_option(command: F) -> F:
    """`--mission NAME`."""
    return click.option("--mission", metavar="NAME", help="A mission (default: every one that this host sees).")(
        command
    )


def days_options(command: F) -> F:
    """`--since D --until D`."""
    for option in (
        click.option("--until", type=DAY, help="The last day of outputs that is meant."),
        click.option("--since", type=DAY, help="The first day of outputs that is meant."),
    ):
        command = option(command)
    return command


def here(state: State, messages: Sequence[Message], *, timeout: float, missions: Sequence[str] = ()) -> int:
    """Do the work in this process; the exit code. Outputs of the missions that stay failed make it 1."""

    def troubles() -> Sequence[str]:
        if not missions:
            return ()
        with api.connection(state.settings, purpose="cli") as conn:
            return api.troubles(conn, missions)

    return follow.here(state, messages, timeout=timedelta(seconds=timeout), afterwards=troubles)

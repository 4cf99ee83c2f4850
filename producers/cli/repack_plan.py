"""`headrace repack plan`: every statement of a rewrite, with the lock that it takes and why, and none is run."""

from __future__ import annotations

from typing import Any

import click

from producers.cli import repack_choice as choice
from producers.cli.context import DONE, SOME_FAILED, UNREACHABLE, State, json_option, pass_state
from producers.cli.repack_options import (
    places_options,
    plan_option,
    rules_options,
    scope,
    tables_argument,
    tell_notes,
)
from producers.cli.repack_work import Report
from workers.errors import HeadraceError, SettingsError
from workers.repack import api


@click.command()
@tables_argument
@places_options
@plan_option
@rules_options
@click.option("--prepare", "only_prepare", is_flag=True, help="Of `prepare`: without the swap.")
@json_option
@pass_state
def plan(state: State, tables: tuple[str, ...], only_prepare: bool) -> int:
    """Print every statement that a rewrite would run, in order, with its lock and reason; run nothing.

    Of the tables named, or of those that a plan, or repcloud's file, lists now.
    """
    found = scope(state)
    conf = state.settings
    tell_notes(state, found)
    report = Report()
    jobs = choice.gather(state, found, tables, "ready" if only_prepare else "swap", report, looks_only=True)
    shown: list[dict[str, Any]] = []
    refused = [str(row["problem"]) for row in report.tables]
    for job in jobs:
        assert job.wish is not None
        try:
            sections = api.plan_statements(conf, job.database, job.schema, job.table, job.wish)
        except SettingsError:
            raise
        except HeadraceError as error:
            refused += str(error).splitlines()
            continue
        if not state.json:
            state.out(f"-- {job.database}: {job.name} ({job.wish.engine})\n\n{api.script(sections)}\n")
        shown.append({
            "database": job.database, "schema": job.schema, "table": job.table, "engine": job.wish.engine,
            "statements": [
                {"step": section.step, "statement": one.text, "lock": one.lock, "why": one.why}
                for section in sections
                for one in section.statements
            ],
        })  # fmt: skip
    problems = [*refused, *report.problems]
    if state.json:
        state.emit({"tables": shown, "problems": problems})
    for problem in problems:
        state.say(problem)
    if report.unreachable and not shown and not refused:
        return UNREACHABLE
    return SOME_FAILED if problems else DONE

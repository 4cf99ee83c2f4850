"""`headrace products fsck`, `clean`, `forget`, `clear-dependencies` and `latest`: what is kept, and what goes."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import click

from producers.cli import products_choice as choice
from producers.cli.context import DONE, SOME_FAILED, State, json_option, pass_state
from producers.cli.products_options import days_options, mission_option
from workers.errors import RetryLater
from workers.products import api

_FINDINGS = ("mission", "kind", "path", "what", "what to do")
_VICTIMS = ("id", "product", "day", "version", "path", "size", "superseded by")
_DOOMED = ("id", "product", "day", "state", "path", "size", "why")
_MOST_LINES = 200
_AGES = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Age(click.ParamType[timedelta]):
    """A time span as 30d."""

    name = "AGE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """The span. Fails with a usage error for anything else."""
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"(\d{1,6})([smhdw])", value)
        if match is None:
            self.fail(f"{value!r} is no age; write it as 30d, 12h or 2w", param, ctx)
        return timedelta(**{_AGES[match[2]]: int(match[1])})


yes_option = click.option("--yes", is_flag=True, help="Do it; without it only what would go is shown.")


@click.command()
@mission_option
@click.option("--fix", is_flag=True, help="Set rows to what the disk says, so that outputs are built again.")
@click.option("--deep", is_flag=True, help="Read every file, also those whose time and size are as they were.")
@days_options
@json_option
@pass_state
def fsck(state: State, mission: str | None, fix: bool, deep: bool, since: date | None, until: date | None) -> int:
    """Compare the database with the disk; exit 1 if anything is wrong and not put right.

    Missing, corrupt and half-placed files, those that came back, and, without days, files that nobody knows.
    """
    choice.check_days(since, until)
    reports: list[api.CheckReport] = []
    problems: list[str] = []
    with choice.changing(state, "fsck") as conn:
        missions = choice.seen(conn, state.settings, mission)
        conn.rollback()
        for one in missions:
            try:
                with choice.progress_bar(f"checking {one.name}") as told:
                    reports.append(
                        api.check_files(conn, one.id, fix=fix, deep=deep, since=since, until=until, progress=told)
                    )
            except RetryLater as error:
                conn.rollback()
                problems.append(str(error))
    if state.json:
        state.emit({"missions": [_facts(one) for one in reports], "problems": problems})
    else:
        _print_reports(state, reports)
    for problem in problems:
        state.say(problem)
    return DONE if not problems and all(one.is_clean for one in reports) else SOME_FAILED


@click.command()
@click.option("--superseded", is_flag=True, help="Files of which there is a newer version: the only ones that go.")
@click.option("--older-than", type=Age(), required=True, help="Registered for so long, such as 30d.")
@mission_option
@choice.products_option
@yes_option
@json_option
@pass_state
def clean(
    state: State, superseded: bool, older_than: timedelta, mission: str | None, products: tuple[str, ...], yes: bool
) -> int:
    """Take superseded files that nothing needs any more off the disk; without --yes only say which.

    The newest, released ones, and whatever these were built from stay. Rows stay, as removed.
    """
    if not superseded:
        raise click.UsageError("say --superseded: nothing else can be cleaned")
    with choice.changing(state, "clean") as conn:
        victims = [
            victim
            for one in choice.seen(conn, state.settings, mission, products)
            for victim in api.to_clean(conn, one.id, older_than=older_than, products=products or None)
        ]
        conn.rollback()
        done = None
        if yes:
            with choice.progress_bar("cleaning") as told:
                done = api.clean(conn, victims, progress=told)
    total = sum(one.bytes or 0 for one in victims)
    if state.json:
        document: dict[str, Any] = {"files": [asdict(one) for one in victims], "bytes": total, "dry_run": done is None}
        state.emit(document | ({"done": asdict(done)} if done is not None else {}))
    elif done is not None:
        needed = f"; {len(done.skipped):,} stay, as something needs them by now" if done.skipped else ""
        state.out(f"{done.removed:,} files are removed, {choice.size(done.bytes)}{needed}")
    elif victims:
        shown = [
            (one.id, one.product, one.day, one.version, api.plain(one.place), choice.size(one.bytes or 0),
             one.superseded_by) for one in victims[:_MOST_LINES]
        ]  # fmt: skip
        state.table("Would go", _VICTIMS, shown)
        _tell_more(state, len(victims), len(shown))
        state.out(f"{len(victims):,} files, {choice.size(total)}; nothing was removed: --yes does")
    else:
        state.out("nothing is to be cleaned")
    for problem in done.problems if done is not None else ():
        state.say(api.plain(problem))
    return SOME_FAILED if done is not None and done.problems else DONE


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@choice.mission_choice
@click.option("--no-descendants", is_flag=True, help="Only these: what was built from them is built again.")
@click.option("--disk", is_flag=True, help="Also delete the files, where they are what their rows say.")
@yes_option
@json_option
@pass_state
def forget(
    state: State, files: tuple[str, ...], mission: str | None, no_descendants: bool, disk: bool, yes: bool
) -> int:
    """Delete the rows of FILEs and of everything built from them; without --yes only say which; exit 1 if refused."""
    with choice.changing(state) as conn:
        ids = [choice.file(conn, one, mission) for one in files]
        plan = api.to_forget(conn, ids, descendants=not no_descendants)
        conn.rollback()
        done = api.forget(conn, ids, descendants=not no_descendants, disk=disk) if yes and not plan.refusals else None
    if state.json:
        document: dict[str, Any] = asdict(plan) | {"dry_run": done is None}
        state.emit(document | ({"done": asdict(done)} if done is not None else {}))
    elif done is not None:
        state.out(f"{done.rows:,} files are forgotten; {done.deleted:,} deleted from disk, {choice.size(done.bytes)}")
    else:
        shown = [
            (one.id, one.product, one.day, one.state, api.plain(one.path), choice.size(one.bytes or 0),
             "named" if one.is_asked else "built from it") for one in plan.files[:_MOST_LINES]
        ]  # fmt: skip
        state.table("Would be forgotten", _DOOMED, shown)
        _tell_more(state, len(plan.files), len(shown))
        state.out(f"{len(plan.files):,} files; nothing was forgotten{'' if plan.refusals else ': --yes does'}")
    problems = plan.refusals + (done.problems if done is not None else [])
    for problem in problems:
        state.say(api.plain(problem))
    return SOME_FAILED if problems else DONE


@click.command("clear-dependencies")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@choice.mission_choice
@yes_option
@json_option
@pass_state
def clear_dependencies(state: State, files: tuple[str, ...], mission: str | None, yes: bool) -> int:
    """Let FILEs count as delivered: what they were built from is forgotten; without --yes only say what that is."""
    with choice.changing(state) as conn:
        ids = [choice.file(conn, one, mission) for one in files]
        inputs = {one: api.lineage(conn, one).links[one] for one in ids}
        cleared = api.clear_dependencies(conn, ids) if yes else 0
        conn.commit()
    if state.json:
        shown = [{"id": one, "inputs": inputs[one]} for one in ids]
        state.emit({"files": shown, "cleared": cleared, "dry_run": not yes})
    elif yes:
        state.out(f"{cleared:,} files count as delivered now")
    else:
        for text, one in zip(files, ids, strict=True):
            state.out(f"{text}: {len(inputs[one])} inputs would be forgotten")
        state.out("nothing was changed: --yes does")
    return DONE


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@choice.mission_choice
@json_option
@pass_state
def latest(state: State, folder: Path, mission: str | None) -> int:
    """Make FOLDER hold a link to the newest version of each file; exit 1 if something is in a link's way."""
    with choice.changing(state) as conn:
        links = api.latest_links(conn, choice.only(conn, mission).id, folder)
    if state.json:
        state.emit(asdict(links))
    else:
        state.out(f"{folder}: {links.made:,} links made, {links.kept:,} kept, {links.removed:,} removed")
    for problem in links.problems:
        state.say(api.plain(problem))
    return SOME_FAILED if links.problems else DONE


def _facts(report: api.CheckReport) -> dict[str, Any]:
    return {
        "mission": report.mission, "files": report.files, "bytes_read": report.bytes_read,
        "counts": dict(report.counts), "fixed": dict(report.fixed), "is_clean": report.is_clean,
        "findings": [asdict(one) for one in report.findings],
    }  # fmt: skip


def _print_reports(state: State, reports: list[api.CheckReport]) -> None:
    rows = [
        (report.mission, one.kind, api.plain(one.path), api.plain(one.detail), api.plain(one.remedy))
        for report in reports
        for one in report.findings
    ]
    if rows:
        state.table("Findings", _FINDINGS, rows[:_MOST_LINES])
        _tell_more(state, sum(report.counts.total() for report in reports), min(len(rows), _MOST_LINES))
    for report in reports:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(report.counts.items())) or "all is well"
        fixed = f"; {report.fixed.total():,} put right" if report.counts else ""
        read = f", {choice.size(report.bytes_read)} read" if report.bytes_read else ""
        state.out(f"{report.mission}: {report.files:,} files{read}: {kinds}{fixed}")
    if any(report.fixed["missing"] or report.fixed["corrupt"] for report in reports):
        state.say("what can be built again is built by workers, or now by `headrace products build`")


def _tell_more(state: State, count: int, shown: int) -> None:
    if shown < count:
        state.out(f"... and {count - shown:,} more; --json shows more of them")

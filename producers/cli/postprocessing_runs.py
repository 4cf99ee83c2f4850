"""The commands of `headrace postprocessing` that look at runs, and hold them back or make up for them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from producers.cli import follow
from producers.cli.context import DONE, SOME_FAILED, State, json_option, pass_state
from producers.cli.postprocessing_options import Moment, database_option, legacy_option, the_database
from workers.errors import PermanentFailure
from workers.postprocessing import api


@click.command()
@click.argument("job", type=int, required=False)
@click.option("--run", type=int, help="One run, with everything that is known of it.")
@click.option("--failed", is_flag=True, help="Only runs that did not end well.")
@click.option("--limit", default=20, show_default=True)
@database_option
@legacy_option
@json_option
@pass_state
def history(state: State, job: int | None, run: int | None, failed: bool, limit: int, db: str | None) -> int:
    """Runs, newest first: those skipped, lost and stopped included."""
    conf = state.prepare()
    chosen = the_database(conf, db)
    rows = api.history(conf, chosen, job=job, run=run, failed=failed, limit=limit)
    if state.json:
        state.emit({"database": chosen, "runs": rows})
    elif run is not None:
        for key, value in (rows[0] if rows else {}).items():
            if value not in (None, "", []):
                state.out(f"{key}: {value}")
    else:
        columns = ("run", "job", "scheduled for [UTC]", "state", "started [UTC]", "took [s]", "try", "why")
        shown = [
            (
                row["run_id"],
                row["job_id"],
                row["scheduled_for"],
                row["state"],
                row["started_at"],
                row["seconds"],
                f"{row['attempt']} {row['reason']}",
                " ".join(part for part in (row["sqlstate"], row["message"], _kept(row)) if part) or None,
            )
            for row in rows
        ]
        state.table(f"Runs in {chosen}", columns, shown)
    return DONE


@click.command(name="next-runs")
@click.argument("job", type=int, required=False)
@click.option("--cron", help="Of this expression instead of a job's schedule.")
@click.option("--tz", "--timezone", "zone", default="UTC", show_default=True, help="With --cron: the time zone.")
@click.option("--from", "start", type=Moment(), help="From this time on (default: now).")
@click.option("--count", default=10, show_default=True, type=click.IntRange(1, 10_000))
@database_option
@legacy_option
@json_option
@pass_state
def next_runs(
    state: State, job: int | None, cron: str | None, zone: str, start: datetime | None, count: int, db: str | None
) -> int:
    """When a job, or a cron expression, starts next: UTC, one line each. Writes nothing."""
    if (job is None) == (cron is None):
        raise click.UsageError("name a job, or an expression with --cron")
    try:
        if cron is not None:
            plan = api.Schedule(cron=cron, zone=zone)
            moments = api.preview(plan, start=start or datetime.now(UTC), count=count)
        else:
            assert job is not None
            conf = state.settings
            moments = api.next_runs(conf, the_database(conf, db), job, count=count, start=start)
    except api.ScheduleError as problem:
        raise PermanentFailure(str(problem)) from problem
    texts = [f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}+00:00" for moment in moments]
    if state.json:
        state.emit({"starts": texts})
    else:
        for text in texts:
            state.out(text)
        if not texts:
            state.say("no further start by itself")
    return DONE


@click.command(name="back-fill")
@click.argument("job", type=int)
@click.option("--from", "start", type=Moment(), required=True, help="Slots after this time ...")
@click.option("--until", "end", type=Moment(), required=True, help="... and up to this one.")
@database_option
@legacy_option
@json_option
@pass_state
def back_fill(state: State, job: int, start: datetime, end: datetime, db: str | None) -> int:
    """Queue the past slots of a job's schedule that never had a run; they run one after the other."""
    conf = state.prepare()
    chosen = the_database(conf, db)
    slots = api.back_fill(conf, chosen, job, start=start, end=end, by=follow.who())
    if state.json:
        state.emit({"database": chosen, "job_id": job, "queued": len(slots)})
    else:
        state.out(f"{chosen}: {len(slots)} slots of job {job} are queued")
    return DONE


@click.command()
@click.option("--job", type=int, help="Only this job (default: the whole database).")
@click.option("--from", "starts", type=Moment(), help="Not before (default: now).")
@click.option("--until", type=Moment(), help="Ends by itself then (default: by `resume`).")
@click.option("--reason")
@database_option
@legacy_option
@json_option
@pass_state
def pause(
    state: State, job: int | None, starts: datetime | None, until: datetime | None, reason: str | None, db: str | None
) -> int:
    """Nothing of a database, or of one job, starts for a while; what is due waits. Running ones go on."""
    conf = state.prepare()
    chosen = the_database(conf, db)
    api.pause(conf, chosen, job=job, span=(starts, until), by=follow.who(), reason=reason)
    if state.json:
        state.emit({"database": chosen, "job_id": job})
    else:
        end = f" until {until:%Y-%m-%d %H:%M:%S}" if until else "; `headrace postprocessing resume` ends it"
        state.out(f"{chosen}: {'everything' if job is None else f'job {job}'} is paused{end}")
    return DONE


@click.command()
@click.option("--job", type=int, help="Only this job.")
@database_option
@legacy_option
@json_option
@pass_state
def resume(state: State, job: int | None, db: str | None) -> int:
    """Take pauses of a database, or of one job, back."""
    conf = state.prepare()
    chosen = the_database(conf, db)
    count = api.resume(conf, chosen, job=job)
    if state.json:
        state.emit({"database": chosen, "resumed": count})
    else:
        taken = "one pause" if count == 1 else f"{count} pauses"
        state.out(f"{chosen}: {taken} taken back" if count else f"{chosen}: nothing was paused")
    return DONE if count else SOME_FAILED


def _kept(row: dict[str, Any]) -> str | None:
    """What a run that committed inside and failed later has left behind."""
    if row["state"] in ("succeeded", "skipped") or not row["inner_transactions"]:
        return None
    return f"(it had ended {row['inner_transactions']} transactions by itself; what they committed stays)"

"""Jobs of ours as SQL for others: add_job() calls for another database of ours, or for TimescaleDB."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from workers.database import Connection
from workers.postprocessing import catalog, store
from workers.postprocessing.jobs import ORIGIN_HDBPP
from workers.sql_files import queries

SQL = queries("postprocessing_interchange")

DEFAULT_DAILY = ("0 2 * * *", "UTC")
# A routine as people write it, no more than parse_ident() takes: its error would end the transaction.
_SPACE = r"[ \t\n\r\f]*"
_NAME = rf'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*){_SPACE}'
WRITTEN = rf"{_SPACE}{_NAME}(?:\.{_SPACE}{_NAME})?"
ROUTINE = re.compile(WRITTEN)
# Arguments of our alter_job() that add_job() has not, with the values that a new job has anyway; then those of no
# function at all, and those of TimescaleDB's alter_job().
_ALTERED: dict[str, Any] = {
    "max_runtime": "00:00:00", "max_retries": -1, "retry_period": "00:05:00", "run_window": None, "atomic": False,
    "on_lost": "rerun", "missed": "once", "overlap": "skip", "lock_group": None, "priority": 0,
}  # fmt: skip
_UPDATED: dict[str, Any] = {"after_failure": "stop", "missed_cap": 10, "start_deadline": None, "alert_after": None}
_TIMESCALEDB = ("max_runtime", "max_retries", "retry_period")
# Cron expressions that are a plain interval: the interval, the unit that the first slot is counted from, its offset.
_MINUTE, _HOUR = r"(?P<minute>[0-5]?\d)", r"(?P<hour>[01]?\d|2[0-3])"
_GRIDS = (
    (re.compile(rf"{_MINUTE} \* \* \* \*"), "1 hour", "hour"),
    (re.compile(rf"{_MINUTE} {_HOUR} \* \* \*"), "1 day", "day"),
    (re.compile(rf"{_MINUTE} {_HOUR} \* \* (?P<weekday>[0-7])"), "7 days", "week"),
    (re.compile(rf"{_MINUTE} {_HOUR} (?P<day>1?\d|2[0-8]) \* \*"), "1 month", "month"),
)


def exportable(
    conn: Connection, *, job: int | None = None, daily: tuple[str, str] = DEFAULT_DAILY
) -> list[dict[str, Any]]:
    """Definitions for `export_sql`: of every job or of one; hdbpp's with their routine, config and daily schedule."""
    rows = SQL["exportable_jobs"].records(conn, {"job": job})
    hdbpp = any(row["origin"] == ORIGIN_HDBPP for row in rows) and store.facts(conn).has_hdbpp
    theirs = {row["source_id"]: row for row in SQL["hdbpp_jobs"].records(conn)} if hdbpp else {}
    for row in rows:
        if row["origin"] != ORIGIN_HDBPP:
            continue
        source = theirs.get(row["job_id"], {})
        written, row["config"] = source.get("proc_name"), source.get("config")
        if written is not None and ROUTINE.fullmatch(written):
            row["proc_schema"], row["proc_name"] = catalog.parts_of(conn, written)
        if not any(row[kind] for kind in ("schedule_interval", "cron", "run_at", "after_job")):
            row["cron"], row["timezone"] = daily[0], row["timezone"] or daily[1]
    return rows


def export_sql(rows: Sequence[Mapping[str, Any]], *, dialect: Literal["headrace", "timescaledb"]) -> list[str]:
    """A piece of SQL for each row of `exportable`, to be run one after the other in one session; pure.

    Jobs come in the order of their numbers, but after those that they follow. `headrace` keeps everything but a job
    without any schedule; `timescaledb` tells in comments what TimescaleDB has not.
    """
    ordered = _parents_first(rows)
    followed = {row["after_job"] for row in rows}
    places = {row["job_id"]: place for place, row in enumerate(ordered, 1)}
    if dialect == "timescaledb":
        return [_for_timescaledb(row) for row in ordered]
    return [_for_headrace(row, places, is_followed=row["job_id"] in followed) for row in ordered]


# The text of a value


def quoted(name: str) -> str:
    """An identifier in its quotes."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: Any) -> str:
    """A literal as standard_conforming_strings has it, which every PostgreSQL since 9.1 has on."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    text = value.astimezone(UTC).isoformat(" ") if isinstance(value, datetime) else str(value)
    return "'" + text.replace("'", "''") + "'"


def dollar_quoted(text: str, tag: str) -> str:
    """The text between dollar quotes that it does not hold itself; `tag` names them for readers."""
    number = 0
    mark = f"${tag}$"
    while mark in text + "$":
        number += 1
        mark = f"${tag}{number}$"
    return f"{mark}{text}{mark}"


def one_line(text: str, most: int = 200) -> str:
    """Fit for a comment or a message: no line break can end it."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


# The text of a job


def _for_headrace(row: Mapping[str, Any], places: Mapping[int, int], *, is_followed: bool) -> str:
    named = _common(row)
    if row["after_job"] in places:
        named["after_job"] = f"current_setting('headrace.exported_{places[row['after_job']]}')::integer"
    elif row["after_job"] is not None:
        return _left_out(row, f"it follows job {row['after_job']}, which is not exported")
    elif row["run_at"] is not None:
        named["run_at"] = literal(row["run_at"])
    elif row["cron"] is not None:
        named["cron"] = literal(row["cron"])
    elif row["schedule_interval"] is None:
        return _left_out(row, "it runs only on request, and add_job() wants a schedule")
    if row["proc_name"] is None:
        return _left_out(row, "its proc_name is not the name of a routine")
    call = _call("headrace.add_job", [literal(_routine(row)), literal(row["schedule_interval"])], named)
    changed = {name: literal(row[name]) for name, usual in _ALTERED.items() if row[name] != usual}
    updated = {name: literal(row[name]) for name, usual in _UPDATED.items() if row[name] != usual}
    number = call
    if changed:
        call = _call("headrace.alter_job", [call], changed)
        number = f"({call}).job_id"
    setting = f"headrace.exported_{places[row['job_id']]}"
    if updated or is_followed:
        call = f"set_config('{setting}', {number}::text, false)"
    statement = _as_role(row["run_as"], call)
    if updated:
        pairs = ", ".join(f"{name} = {value}" for name, value in updated.items())
        statement += f"\nUPDATE headrace.job SET {pairs} WHERE job_id = current_setting('{setting}')::integer;"
    return statement


def _for_timescaledb(row: Mapping[str, Any]) -> str:
    named = _common(row)
    interval = row["schedule_interval"]
    if row["cron"] is not None:
        grid = _grid(row["cron"], row["timezone"] or "UTC")
        if grid is None:
            return _left_out(row, f"TimescaleDB has no cron, and {row['cron']} is no plain interval")
        interval, named["initial_start"] = grid
        named.pop("fixed_schedule", None)  # says nothing beside cron, and would let an interval drift
        named["timezone"] = literal(row["timezone"] or "UTC")
    elif row["run_at"] is not None:
        return _left_out(row, f"TimescaleDB has no job that runs once (at {row['run_at'].astimezone(UTC)})")
    elif row["after_job"] is not None:
        return _left_out(row, f"TimescaleDB has no job that follows another one (job {row['after_job']})")
    elif interval is None:
        return _left_out(row, "it runs only on request, and add_job() wants a schedule")
    if row["proc_name"] is None:
        return _left_out(row, "its proc_name is not the name of a routine")
    call = _call("public.add_job", [literal(_routine(row)), literal(interval)], named)
    changed = {name: literal(row[name]) for name in _TIMESCALEDB if row[name] != _ALTERED[name]}
    if changed:
        # Its alter_job() takes the time zone away unless that is given again.
        zone = {"timezone": named["timezone"]} if "timezone" in named else {}
        call = _call("public.alter_job", [call], changed | zone)
    usual = {name: value for name, value in (_ALTERED | _UPDATED).items() if name not in _TIMESCALEDB}
    lost = [f"{name} {one_line(str(row[name]))}" for name, value in usual.items() if row[name] != value]
    comment = f"-- Lost, for TimescaleDB has no such thing: {', '.join(lost)}\n" if lost else ""
    return comment + _as_role(row["run_as"], call)


def _common(row: Mapping[str, Any]) -> dict[str, str]:
    """The arguments of add_job() that both have, where they are not what it takes anyway."""
    check = _name(row["check_schema"], row["check_name"]) if row["check_name"] else None
    name = re.sub(r" \[\d+\]$", "", row["name"] or "")
    given = {
        "config": row["config"],
        "initial_start": row["initial_start"],
        "scheduled": None if row["scheduled"] else False,
        "check_config": check,
        "fixed_schedule": None if row["fixed_schedule"] else False,
        "timezone": row["timezone"],
        # add_job() adds the number; both together have to fit a name of PostgreSQL, which has 63 bytes.
        "job_name": None if name in ("", "User-Defined Action") else name.encode()[:50].decode(errors="ignore"),
    }
    return {key: literal(value) for key, value in given.items() if value is not None}


def _grid(cron: str, zone: str) -> tuple[str, str] | None:
    """(interval, expression of a first slot in the future) of a cron expression that means a plain interval."""
    for pattern, interval, unit in _GRIDS:
        fields = pattern.fullmatch(" ".join(cron.split()))
        if fields is not None:
            parts = fields.groupdict()
            days = (int(parts["weekday"]) - 1) % 7 if "weekday" in parts else int(parts.get("day", 1)) - 1
            offset = f"{days} days {int(parts.get('hour', 0)):02}:{int(parts['minute']):02}"
            zoned = literal(zone)
            first = f"date_trunc('{unit}', now() AT TIME ZONE {zoned}) + interval '1 {unit}' + interval '{offset}'"
            return interval, f"({first}) AT TIME ZONE {zoned}"
    return None


def _parents_first(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    waiting = {row["job_id"]: row for row in sorted(rows, key=lambda row: row["job_id"])}
    ordered: list[Mapping[str, Any]] = []
    while waiting:
        ready = next((job for job, row in waiting.items() if row["after_job"] not in waiting), next(iter(waiting)))
        ordered.append(waiting.pop(ready))
    return ordered


def _call(function: str, arguments: list[str], named: Mapping[str, str]) -> str:
    return f"{function}({', '.join([*arguments, *(f'{name} => {value}' for name, value in named.items())])})"


def _as_role(role: str | None, call: str) -> str:
    if role is None:
        return f"SELECT {call};"
    # In one block, so that a role that cannot be had leaves no job of somebody with more rights behind.
    lines = (f"SET LOCAL ROLE {quoted(role)};", f"PERFORM {call};", "RESET ROLE;")
    block = "\nBEGIN\n" + "".join(f"    {line}\n" for line in lines) + "END\n"
    return f"DO {dollar_quoted(block, 'job')};"


def _left_out(row: Mapping[str, Any], why: str) -> str:
    return f"-- Left out: {one_line(_routine(row))}: {one_line(why)}"


def _routine(row: Mapping[str, Any]) -> str:
    return _name(row["proc_schema"], row["proc_name"]) if row["proc_name"] else f"job {row['job_id']}"


def _name(schema: str | None, name: str) -> str:
    return ".".join(
        part if re.fullmatch(r"[a-z_][a-z0-9_]*", part) else quoted(part) for part in (schema, name) if part
    )

"""How the scheduled jobs of a database read on the page: a summary, a line per job, and the runs that failed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flower.utils.template import format_duration

from workers.monitor.answers import Answer
from workers.monitor.readable import one_line

SHOWN = 100  # jobs of one database on the page: the most urgent ones
FAILURES = 20  # of its newest failed runs
_NOTHING = "—"
_TROUBLES = ("failing", "disabled", "misconfigured", "late")
_CLOCK = re.compile(r"(\d+):(\d\d):(\d\d)((?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Line:
    """One job in words; `needs` when somebody has to look after it."""

    number: int
    name: str
    procedure: str
    schedule: str
    state: str
    needs: bool
    next_start: str
    last_start: str
    duration: str
    successes: str
    message: str


@dataclass(frozen=True, slots=True)
class Failure:
    """One run that did not end well, in words."""

    run: int
    job: str
    state: str
    scheduled_for: str
    duration: str
    host: str
    message: str


@dataclass(frozen=True, slots=True)
class Section:
    """The jobs of one database; `holds` is what keeps them from starting, `more` how many have no line."""

    database: str
    summary: str
    holds: tuple[str, ...]
    lines: tuple[Line, ...]
    more: int
    failures: tuple[Failure, ...]


def sections(answers: Mapping[str, Answer[dict[str, Any]]]) -> Iterator[Section]:
    """A section for every database that answers and has jobs, or had some that failed."""
    for name, answer in answers.items():
        document = answer.value
        if document is not None and document["set_up"] and (document["jobs"] or document["failures"]):
            lines = tuple(line(row) for row in document["lines"] if row["place"] <= SHOWN)
            yield Section(
                database=name,
                summary=summary(document),
                holds=tuple(_holds(document)),
                lines=lines,
                more=max(0, document["jobs"] - len(lines)),
                failures=tuple(_failure(row) for row in document["failures"]),
            )


def summary(document: Mapping[str, Any]) -> str:
    """What the jobs of a database do, in one sentence."""
    counts = document["counts"]
    parts = [_count(document["jobs"], "job"), f"{document['scheduled']:,} scheduled"]
    parts += [f"{document[state]:,} {state}" for state in ("running", "queued", "overdue")]
    parts += [
        f"{counts[state]:,} {state}" for state in ("failing", "disabled", "misconfigured", "late") if counts[state]
    ]
    if document["alerts_waiting"]:
        parts.append(f"{_count(document['alerts_waiting'], 'alert')} not told yet")
    then = f"next start {moment(document['next_start'])} UTC" if document["next_start"] else "nothing is due"
    return f"{', '.join(parts)}; {then}."


def line(row: Mapping[str, Any]) -> Line:
    """One job of the room's overview in words."""
    return Line(
        number=row["job_id"],
        name=row["name"] or "",
        procedure=row["procedure"] or _NOTHING,
        schedule=schedule(row),
        state=state(row),
        needs=row["trouble"] is not None,
        next_start=moment(row["next_start"]),
        last_start=moment(row["last_run_started_at"]),
        duration=_duration(row["last_seconds"]),
        successes=f"{row['total_successes']:,}/{row['total_runs']:,}",
        message=one_line(row["problem"] or row["message"] or ""),
    )


def schedule(row: Mapping[str, Any]) -> str:
    """When a job runs: `0 2 * * * Europe/Paris`, `every 1 h 30 min`, `after job 7`, `once at …`, `daily`."""
    zone = f" {row['timezone']}" if row["timezone"] else ""
    if row["cron"]:
        return f"{row['cron']}{zone}"
    if row["schedule_interval"]:
        after = "" if row["fixed_schedule"] else " after the last end"
        return f"every {_interval(row['schedule_interval'])}{after}{zone}"
    if row["run_at"]:
        return f"once at {moment(row['run_at'])} UTC"
    if row["after_job"]:
        return f"after job {row['after_job']}"
    return f"daily{zone}" if row["origin"] == "hdbpp" else "on request"


def state(row: Mapping[str, Any]) -> str:
    """How a job stands, what is wrong first: `failing (2), running for 5.00 s, since …`."""
    parts = [_trouble(row)] if row["trouble"] else []
    if row["running_since"]:
        parts.append(f"running for {_duration(row['running_seconds'])}, since {moment(row['running_since'])}")
    elif row["live_run"]:
        parts.append("queued")
    elif not row["scheduled"] and row["trouble"] != "disabled":
        is_over = row["run_at"] and row["last_run_success"]
        parts.append("done" if is_over else "paused")
    elif row["quiet"]:
        parts.append(f"paused: {row['quiet']}")
    elif row["waits_for"]:
        parts.append(f"waits for {row['waits_for']}")
    if not parts:
        parts = ["ok" if row["total_runs"] else "has not run yet"]
    return ", ".join(parts)


def moment(when: datetime | None) -> str:
    """A moment to the second, in UTC."""
    return f"{when:%Y-%m-%d %H:%M:%S}" if when else _NOTHING


def _trouble(row: Mapping[str, Any]) -> str:
    failures = row["consecutive_failures"]
    match row["trouble"]:
        case "disabled":
            return f"disabled after {_count(failures, 'failure')}"
        case "failing":
            return f"failing ({failures})"
        case "late":
            since = row["last_successful_finish"]
            return f"late: no success {f'since {moment(since)}' if since else 'yet'}"
        case "overdue":
            return f"late: due for {_duration(row['due_seconds'])}"
    return str(row["trouble"])


def _holds(document: Mapping[str, Any]) -> Iterable[str]:
    if document["read_only"]:
        yield "The database is read-only (a standby?), so nothing starts here."
    for pause in document["pauses"]:
        what = f"Job {pause['job_id']}" if pause["job_id"] else "Every job"
        until = f"until {moment(pause['ends_at'])} UTC" if pause["ends_at"] else "with no end"
        why = f": {pause['reason']}" if pause["reason"] else ""
        yield f"{what} is paused from {moment(pause['starts_at'])} UTC {until}, by {pause['made_by']}{why}"
    is_held = document["read_only"] or any(pause["job_id"] is None for pause in document["pauses"])
    if document["overdue"] and not is_held:
        yield f"{_count(document['overdue'], 'job')} due for over a minute: are beat and a worker up?"


def _failure(row: Mapping[str, Any]) -> Failure:
    attempt = f", attempt {row['attempt']}" if row["attempt"] > 1 else ""
    code = f"{row['sqlstate']}: " if row["sqlstate"] else ""
    return Failure(
        run=row["run_id"],
        job=f"{row['job_id']} {row['job_name'] or ''}".strip(),
        state=f"{row['state']}{attempt}",
        scheduled_for=moment(row["scheduled_for"]),
        duration=_duration(row["seconds"]),
        host=row["host"] or _NOTHING,
        message=one_line(f"{code}{row['message'] or 'no reason was recorded'}"),
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _duration(seconds: float | None) -> str:
    return _NOTHING if seconds is None else str(format_duration(max(0.0, seconds)))


def _interval(text: str) -> str:
    """PostgreSQL's `1 day 01:30:00` as `1 day 1 h 30 min`."""

    def spoken(found: re.Match[str]) -> str:
        hours, minutes, seconds, rest = found.groups()
        parts = ((int(hours), "h"), (int(minutes), "min"))
        words = [f"{number} {unit}" for number, unit in parts if number]
        if int(seconds) or rest:
            words.append(f"{int(seconds)}{rest} s")
        return " ".join(words)

    return _CLOCK.sub(spoken, text)

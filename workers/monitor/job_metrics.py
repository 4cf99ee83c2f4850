"""Prometheus metrics of the scheduled jobs of every database; one that does not answer leaves its jobs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import Metric

from workers.monitor.answers import Answer
from workers.monitor.families import Rows, counter, gauge

MEASURED = 500  # jobs of one database; with six series each, still a small scrape
_JOB = ("database", "job", "name")
_SOME = f"Of at most {MEASURED} jobs per database: those in trouble, then by number."


def families(answers: Mapping[str, Answer[dict[str, Any]]]) -> Iterator[Metric]:
    """Every metric that the answers of the databases can tell."""
    yield gauge(
        "headrace_database_up",
        "Whether the database answers; one that does may still have no jobs.",
        ["database"],
        (((name,), float(answer.error is None)) for name, answer in answers.items()),
    )
    found = {
        name: answer.value for name, answer in answers.items() if answer.value is not None and answer.value["set_up"]
    }
    yield gauge(
        "headrace_jobs",
        "Scheduled jobs, all of them, by state; a job counts in every state that it is in. "
        "Paused: its schedule is off; overdue: due for over a minute; failing: its last runs failed, disabled by it or "
        "not; late: no success for longer than its alert_after; queued and running count runs.",
        ["database", "state"],
        (((name, state), number) for name, document in found.items() for state, number in _states(document).items()),
    )
    yield gauge(
        "headrace_job_last_success_timestamp_seconds",
        f"When the job last ended well; a job that never did has none. {_SOME}",
        _JOB,
        _rows(found, lambda line: _epoch(line["last_successful_finish"])),
    )
    yield gauge(
        "headrace_job_last_run_seconds",
        f"How long the last run of the job took, however it ended. {_SOME}",
        _JOB,
        _rows(found, lambda line: line["last_seconds"]),
    )
    yield gauge(
        "headrace_job_consecutive_failures",
        f"How many runs of the job have failed in a row; 0 after a success. {_SOME}",
        _JOB,
        _rows(found, lambda line: line["consecutive_failures"]),
    )
    yield gauge(
        "headrace_job_next_start_timestamp_seconds",
        f"When the job is due; one that runs, is paused or has no further slot has none. {_SOME}",
        _JOB,
        _rows(found, lambda line: _epoch(line["next_start"])),
    )
    yield counter(
        "headrace_job_runs",
        f"Runs of the job that ended, by how. {_SOME}",
        (*_JOB, "result"),
        (
            ((*labels, result), number)
            for result in ("succeeded", "failed")
            for labels, number in _rows(found, _total(result))
        ),
    )


def _states(document: Mapping[str, Any]) -> dict[str, float]:
    counts = document["counts"]
    return {
        "scheduled": document["scheduled"],
        "paused": document["jobs"] - document["scheduled"],
        **{state: document[state] for state in ("running", "queued", "overdue")},
        **{state: counts[state] for state in ("failing", "disabled", "misconfigured", "late")},
    }


def _rows(found: Mapping[str, dict[str, Any]], number: Callable[[dict[str, Any]], float | None]) -> Rows:
    """The labels and the number of each measured job that has one."""
    for name, document in found.items():
        for line in document["lines"]:
            value = number(line) if line["is_measured"] else None
            if value is not None:
                yield (name, str(line["job_id"]), line["name"] or line["procedure"]), value


def _total(result: str) -> Callable[[dict[str, Any]], float]:
    column = {"succeeded": "total_successes", "failed": "total_failures"}[result]
    return lambda line: float(line[column])


def _epoch(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()

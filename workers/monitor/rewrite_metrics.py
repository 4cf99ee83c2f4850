"""Numbers of rewrites, for the overview and for Prometheus; a database that does not answer leaves its figures out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import Metric

from workers.monitor.families import Rows, gauge
from workers.monitor.rewrites import WAITING, Answers, Request, documents, gained, name_of

STEPS = ("prepare", "copy", "index", "replay", "swap", "verify", "drop")
_TABLE = ("database", "table")
_NOW = "Only while it is being rewritten."
_LATELY = "Of tables rewritten within the last 7 days."


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests that are half-way, those of them that wait for a person, and tables whose newest request failed.

    `unseen` are databases that do not answer.
    """

    active: int
    waiting: int
    failed: int
    unseen: tuple[str, ...] = ()


def counts(answers: Answers) -> Counts | None:
    """The numbers of all databases together; None where nothing was ever prepared for rewrites."""
    found = [_counted(document) for document in documents(answers).values()]
    unseen = tuple(name for name, answer in answers.items() if answer.error is not None)
    if not found and not unseen:
        return None
    return Counts(
        active=sum(one.active for one in found),
        waiting=sum(one.waiting for one in found),
        failed=sum(one.failed for one in found),
        unseen=unseen,
    )


def families(answers: Answers) -> Iterator[Metric]:
    """Every metric that the answers can tell."""
    yield gauge(
        "headrace_repack_up",
        "Whether the database answers; one that does may never have had a table rewritten.",
        ["database"],
        (((name,), float(answer.error is None)) for name, answer in answers.items()),
    )
    found = documents(answers)
    yield gauge(
        "headrace_repack_active",
        "Tables that are being rewritten, by the step that they are in.",
        ["database", "step"],
        (((name, step), number) for name, document in found.items() for step, number in _by_step(document).items()),
    )
    yield _of_each(
        found, "failed", "Tables whose newest rewrite of the last 7 days failed.", lambda numbers: numbers.failed
    )
    yield _of_each(
        found, "waiting", "Rewrites that wait for a person: ready for the swap, or paused.",
        lambda numbers: numbers.waiting,
    )  # fmt: skip
    yield gauge(
        "headrace_repack_needs",
        "Reasons to look after the rewrites of the database; the page and `headrace repack status` say which.",
        ["database"],
        (((name,), float(len(document["needs"]))) for name, document in found.items()),
    )
    yield _of_tables(
        found, "backlog_rows", f"Changes in the log that the copy does not have yet. {_NOW}",
        lambda one: one["backlog_rows"],
    )  # fmt: skip
    yield _of_tables(found, "rows_copied", f"Rows that are in the copy. {_NOW}", lambda one: one["rows_copied"])
    yield _of_tables(
        found, "rows_estimated", f"Rows that the copy will have, about. {_NOW}", lambda one: one["rows_estimated"]
    )
    yield _of_tables(
        found, "log_bytes", f"What the log of changes takes on the disk. {_NOW}", lambda one: one["log_bytes"]
    )
    yield gauge(
        "headrace_repack_last_hold_seconds",
        f"How long the table's last swap kept everybody else out. {_LATELY}",
        _TABLE,
        _newest_with(found, lambda one: one["hold_seconds"]),
    )
    yield gauge(
        "headrace_repack_gained_bytes",
        f"What the table's last rewrite gave back; negative if it took some. {_LATELY}",
        _TABLE,
        _newest_with(found, gained),
    )


def _counted(document: Mapping[str, Any]) -> Counts:
    requests = document["requests"]
    return Counts(
        active=sum(one["state"] == "active" for one in requests),
        waiting=sum(one["is"] in WAITING for one in requests),
        failed=sum(one["state"] == "failed" for one in _newest(requests).values()),
    )


def _newest(requests: Iterable[Request]) -> dict[str, Request]:
    """The newest request of each table."""
    return {name_of(one): one for one in sorted(requests, key=lambda one: int(one["id"]))}


def _by_step(document: Mapping[str, Any]) -> dict[str, float]:
    numbers = dict.fromkeys(STEPS, 0.0)
    for one in document["requests"]:
        numbers[one["step"]] += one["state"] == "active"
    return numbers


def _of_each(
    found: Mapping[str, dict[str, Any]], name: str, sentence: str, number: Callable[[Counts], float]
) -> Metric:
    rows = (((database,), float(number(_counted(document)))) for database, document in found.items())
    return gauge(f"headrace_repack_{name}", sentence, ["database"], rows)


def _of_tables(
    found: Mapping[str, dict[str, Any]], name: str, sentence: str, number: Callable[[Request], float | None]
) -> Metric:
    """A number of each request that is half-way and has one."""
    rows = _newest_with(found, lambda one: number(one) if one["state"] == "active" else None)
    return gauge(f"headrace_repack_{name}", sentence, _TABLE, rows)


def _newest_with(found: Mapping[str, dict[str, Any]], number: Callable[[Request], float | None]) -> Rows:
    """The labels and the number of the newest request of each table that has one.

    Never two of the same labels, which would cost Prometheus the scrape: a dot may be in a schema's name, too.
    """
    for database, document in found.items():
        for table, one in _newest(one for one in document["requests"] if number(one) is not None).items():
            yield (database, table), float(number(one) or 0.0)

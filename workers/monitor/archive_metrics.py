"""Numbers of derived products, for the overview and for Prometheus; a database that does not answer has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import Metric

from workers.monitor.answers import Answer
from workers.monitor.archive import Row, oldest_due_seconds
from workers.monitor.families import gauge

COUNTED = 5000  # of the newest builds, those of the last hour are looked for among: a count that costs milliseconds
OUTCOMES = ("succeeded", "unchanged", "failed", "lost", "cancelled")

_OF_MISSIONS: tuple[tuple[str, str, Callable[[Row], float]], ...] = (
    ("due", "Outputs that are to be built now.", lambda row: float(row["due"])),
    ("building", "Builds in hand.", lambda row: float(row["building"])),
    ("retrying", "Outputs that failed and wait for their next attempt.", lambda row: float(row["retrying"])),
    (
        "failed",
        "Outputs that failed so often that they wait for other inputs, another code, or a person.",
        lambda row: float(row["given_up"]),
    ),
    ("quarantined", "Files that could not be taken in.", lambda row: float(row["quarantined"])),
    (
        "broken",
        "Files that are missing or damaged on disk; those that a higher version stands in for do not count.",
        lambda row: float(row["broken"]),
    ),
    ("oldest_due_seconds", "How long the oldest output that is due has been so; 0 when none is.", oldest_due_seconds),
)


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of all missions together; `unseen` when the database does not answer, and they are 0."""

    missions: int = 0
    due: int = 0
    building: int = 0
    retrying: int = 0
    failed: int = 0
    quarantined: int = 0
    broken: int = 0
    held: int = 0
    unseen: bool = False


def counts(answer: Answer[dict[str, Any]]) -> Counts | None:
    """The numbers for the overview; None where no mission was ever loaded."""
    if answer.value is None:
        return Counts(unseen=True) if answer.error is not None else None
    rows = answer.value["missions"]
    if not rows:
        return None
    return Counts(
        missions=len(rows),
        due=sum(row["due"] for row in rows),
        building=sum(row["building"] for row in rows),
        retrying=sum(row["retrying"] for row in rows),
        failed=sum(row["given_up"] for row in rows),
        quarantined=sum(row["quarantined"] for row in rows),
        broken=sum(row["broken"] for row in rows),
        held=len(answer.value["held_codes"]),
    )


def families(answer: Answer[dict[str, Any]]) -> Iterator[Metric]:
    """Every metric that the answer can tell."""
    if answer.value is None and answer.error is None:
        return
    yield gauge(
        "headrace_products_up",
        "Whether the products' database answers; one that does may never have had a mission loaded.",
        [],
        [((), float(answer.error is None))],
    )
    known = answer.value
    if known is None or not known["set_up"]:
        return
    for name, sentence, number in _OF_MISSIONS:
        rows = [((row["mission"],), number(row)) for row in known["missions"]]
        yield gauge(f"headrace_products_{name}", sentence, ["mission"], rows)
    yield gauge(
        "headrace_products_plan_timestamp_seconds",
        "When the mission was last looked over for outputs that are not as they should be, in seconds since 1970.",
        ["mission"],
        (((row["mission"],), row["planned_at"].timestamp()) for row in known["missions"] if row["planned_at"]),
    )
    yield gauge(
        "headrace_products_plan_seconds",
        "How long that look took.",
        ["mission"],
        (((row["mission"],), row["plan_seconds"]) for row in known["missions"] if row["planned_at"]),
    )
    held = Counter(row["mission"] for row in known["held_codes"])
    yield gauge(
        "headrace_products_held_codes",
        "Codes that are not used until a person approves them.",
        ["mission"],
        (((row["mission"],), float(held[row["mission"]])) for row in known["missions"]),
    )
    yield gauge(
        "headrace_products_builds_last_hour",
        f"Builds that ended within the last hour, by how; of the newest {COUNTED:,} builds, if there were more.",
        ["state"],
        (((state,), float(known["outcomes"].get(state, 0))) for state in OUTCOMES),
    )
    yield gauge(
        "headrace_products_connections",
        "Open connections of Headrace to the server that has the products' database.",
        [],
        [((), float(known["connections"]))],
    )
    yield gauge(
        "headrace_products_needs",
        "Reasons to look after products, the newest of each kind; the page and `headrace products status` say which.",
        [],
        [((), float(len(known["needs"])))],
    )

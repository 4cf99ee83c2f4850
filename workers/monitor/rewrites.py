"""How rewrites of tables read on the page: what needs somebody, a line per request, the newest estimates of bloat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from flower.utils.template import format_duration

from workers.monitor.answers import Answer
from workers.monitor.consumers import shortened
from workers.monitor.jobs import moment
from workers.repack import api

ENDED = 100  # requests that are over, of all databases together
ESTIMATES = 50  # of one database: the most wasteful tables
LOOKED_AT = timedelta(days=7)  # a table that was not looked at for longer may be gone
WAITING = ("ready", "paused")  # what such a request is waiting for is a person
_NOTHING = "—"

Answers = Mapping[str, Answer[dict[str, Any]]]  # by database
Request = Mapping[str, Any]  # as the room's status has it


@dataclass(frozen=True, slots=True)
class Active:
    """One request that is half-way, in words; `needs` when it does not go on by itself."""

    number: int
    database: str
    table: str
    state: str
    needs: bool
    step: str
    done: str
    rows: str
    rate: str
    backlog: str
    log: str
    copy: str
    size: str
    hold: str
    asked_by: str
    problem: str


@dataclass(frozen=True, slots=True)
class Ended:
    """One request that is over, in words; `needs` when it did not end well."""

    number: int
    database: str
    table: str
    state: str
    needs: bool
    ended_at: str
    took: str
    rows: str
    size: str
    gained: str
    hold: str
    asked_by: str
    problem: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one table was last thought to waste, what was decided on it, and what its last rewrite gave back."""

    database: str
    table: str
    size: str
    bloat: str
    part: str
    verdict: str
    looked_at: str
    gained: str


@dataclass(frozen=True, slots=True)
class Overview:
    """Every request and estimate; `more` is how many that are over have no line."""

    troubles: tuple[str, ...]
    active: tuple[Active, ...]
    ended: tuple[Ended, ...]
    more: int
    estimates: tuple[Estimate, ...]


def overview(answers: Answers) -> Overview:
    """What the page shows of all databases, what goes on first."""
    known = documents(answers)
    found = [(name, one) for name, document in known.items() for one in document["requests"]]
    going_on = [(name, one) for name, one in found if one["state"] == "active"]
    over = [(name, one) for name, one in found if one["state"] != "active"]
    going_on.sort(key=lambda each: each[1]["requested_at"], reverse=True)
    over.sort(key=lambda each: each[1]["finished_at"], reverse=True)
    return Overview(
        troubles=tuple(dict.fromkeys(_troubles(answers))),
        active=tuple(active(name, one) for name, one in going_on),
        ended=tuple(ended(name, one) for name, one in over[:ENDED]),
        more=max(0, len(over) - ENDED),
        estimates=tuple(_estimate(name, row) for name, document in known.items() for row in document["estimates"]),
    )


def name_of(one: Request) -> str:
    """`schema.table` for people."""
    return f"{one['schema']}.{one['table']}"


def documents(answers: Answers) -> dict[str, dict[str, Any]]:
    """What each database said that answers and has our tables."""
    return {
        name: answer.value for name, answer in answers.items() if answer.value is not None and answer.value["set_up"]
    }


def active(database: str, one: Request) -> Active:
    """One request that is half-way, in words."""
    return Active(
        number=one["id"],
        database=database,
        table=shortened(name_of(one)),
        state=_standing(one),
        needs=one["is"] in WAITING,
        step=f"{one['step']}, for {_duration(one['step_seconds'])}",
        done=_done(one),
        rows=_rows(one),
        rate=_NOTHING if one["rows_per_second"] is None else f"{one['rows_per_second']:,.0f}",
        backlog=_NOTHING if one["backlog_rows"] is None else f"{one['backlog_rows']:,}",
        log=_size(one["log_bytes"]),
        # After the swap the copy is the table, and what is in the way is the old one.
        copy=f"old: {_size(one['old_bytes'])}" if one["old_bytes"] else _size(one["copy_bytes"]),
        size=_sizes(one),
        hold=_hold(one),
        asked_by=shortened(one["requested_by"] or _NOTHING),
        problem=shortened(one["problem"] or ""),
    )


def ended(database: str, one: Request) -> Ended:
    """One request that is over, in words."""
    return Ended(
        number=one["id"],
        database=database,
        table=shortened(name_of(one)),
        state=f"{one['state']}: {one['reason']}" if one["reason"] else str(one["state"]),
        needs=one["state"] == "failed" or bool(one["reason"]),
        ended_at=moment(one["finished_at"]),
        took=_duration((one["finished_at"] - one["requested_at"]).total_seconds()),
        rows=f"{one['rows_copied']:,}",
        size=_sizes(one),
        gained=_gained(gained(one), one["estimated_gain_bytes"]),
        hold=_hold(one),
        asked_by=shortened(one["requested_by"] or _NOTHING),
        problem=shortened(one["problem"] or ""),
    )


def gained(one: Request) -> int | None:
    """The bytes that a rewrite gave back, negative if it took some; None if it is not done."""
    if one["state"] != "done" or one["bytes_before"] is None or one["bytes_after"] is None:
        return None
    return int(one["bytes_before"]) - int(one["bytes_after"])


def _troubles(answers: Answers) -> Iterator[str]:
    for name, answer in answers.items():
        if answer.error is not None:
            yield shortened(f"{name} cannot be seen: {answer.error}")
        for need in (answer.value or {}).get("needs", ()):
            yield shortened(need)


def _standing(one: Request) -> str:
    match one["is"]:
        case "paused":
            return shortened(f"paused by {one['paused_by']} since {moment(one['paused_at'])}")
        case "ready":
            return "ready: waits for a person"
        case "swapped":
            return f"swapped; the old table stays until {moment(one['keep_until'])}"
        case "outside its window":
            return f"outside its window until {moment(one['window_opens_at'])}"
    return str(one["is"])


def _rows(one: Request) -> str:
    whole = max(one["rows_estimated"], one["rows_copied"])
    return f"{one['rows_copied']:,} of {whole:,}" if whole else _NOTHING


def _done(one: Request) -> str:
    """How much of the step in hand is done, and how long it still takes at this rate."""
    if one["step"] in ("replay", "swap") and one["engine"] != "reindex":
        return f"{one['keys_replayed']:,} keys replayed"
    if one["percent"] is None:
        return _NOTHING
    what = ""
    if one["engine"] == "reindex" or one["step"] == "index":
        what = f", {one['indexes_built']:,} of {one['indexes']:,} indexes"
    elif one["step"] == "verify":
        what = f", {one['rows_verified']:,} rows compared"
    left = f"; {_duration(one['eta_seconds'])} left" if one["eta_seconds"] is not None else ""
    return f"{one['percent']:.1f} %{what}{left}"


def _estimate(database: str, row: Mapping[str, Any]) -> Estimate:
    return Estimate(
        database=database,
        table=shortened(f"{row['schema_name']}.{row['table_name']}"),
        size=_size(row["bytes"]),
        bloat=_size(row["bloat_bytes"]),
        part=f"{100 * row['bloat_bytes'] / row['bytes']:.1f} %" if row["bytes"] else _NOTHING,
        verdict=shortened(row["verdict"]),
        looked_at=moment(row["looked_at"]),
        gained=_gained(row["gained_bytes"], row["estimated_gain_bytes"]),
    )


def _gained(count: int | None, estimated: int | None) -> str:
    if count is None:
        return _NOTHING
    return f"{_size(count)} of {_size(estimated)} estimated" if estimated is not None else _size(count)


def _sizes(one: Request) -> str:
    after = f" → {_size(one['bytes_after'])}" if one["bytes_after"] is not None else ""
    return f"{_size(one['bytes_before'])}{after}"


def _size(count: int | None) -> str:
    if count is None:
        return _NOTHING
    return api.size(count) if count >= 0 else f"-{api.size(-count)}"


def _hold(one: Request) -> str:
    return _NOTHING if one["hold_seconds"] is None else f"{1000 * one['hold_seconds']:,.1f} ms"


def _duration(seconds: float | None) -> str:
    return _NOTHING if seconds is None else str(format_duration(max(0.0, seconds)))

"""How PgQ consumers read on the page: what needs somebody, a line per consumer, and the newest events that failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flower.utils.template import format_duration

from workers.monitor.answers import Answer
from workers.monitor.jobs import moment
from workers.monitor.readable import one_line
from workers.targets import redacted

FAILURES = 10  # of one consumer's newest failed events
_LONGEST_NEED = 600  # characters; what to do stands at its end
# A server's message repeats a value of any size, and the search for passwords takes quadratic time at worst.
_SEARCHED = 4000
_NOTHING = "—"

Answers = Mapping[tuple[str, str], Answer[dict[str, Any]]]  # by (consumer, queue)


@dataclass(frozen=True, slots=True)
class Line:
    """One consumer in words; `needs` when somebody has to look after it."""

    consumer: str
    queue: str
    route: str
    state: str
    needs: bool
    lag: str
    pending: str
    last_tick: str
    open_batch: str
    failed: str
    applied: str
    ticker: str
    rotation: str


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """One event that could not be applied, in words; its data are whatever somebody put into a row."""

    number: int
    table: str
    type: str
    destination: str
    data: str
    reason: str
    failed_at: str


@dataclass(frozen=True, slots=True)
class Failures:
    """The newest failed events of a consumer; `more` is how many others wait."""

    consumer: str
    events: tuple[FailedEvent, ...]
    more: int


@dataclass(frozen=True, slots=True)
class Overview:
    """Every consumer; empty where none is configured."""

    troubles: tuple[str, ...]
    lines: tuple[Line, ...]
    failures: tuple[Failures, ...]


def overview(answers: Answers, now: datetime) -> Overview:
    """What the page shows of all consumers; `now` is what the age of a tick is reckoned from."""
    troubles: dict[str, None] = {}  # two consumers of one queue have one ticker, and it is said once
    for name, answer in answers.items():
        troubles |= dict.fromkeys(_troubles(name[0], answer))
    return Overview(
        troubles=tuple(troubles),
        lines=tuple(line(name, answer, now) for name, answer in answers.items()),
        failures=tuple(_failures(answers)),
    )


def line(name: tuple[str, str], answer: Answer[dict[str, Any]], now: datetime) -> Line:
    """One consumer, (name, queue), in words; dashes where its databases do not answer."""
    known = answer.value or {}
    return Line(
        consumer=name[0],
        queue=name[1],
        route=f"{known['source']} → {known['target']}, {known['mode']}" if known else _NOTHING,
        state=_state(known) if known else "cannot be seen",
        needs=bool(answer.error or known.get("needs")),
        lag=_duration(known.get("lag_seconds")),
        pending=_count(known.get("pending_events")),
        last_tick=_last_tick(known, now),
        open_batch=_open_batch(known),
        failed=_failed(known),
        applied=_count(known.get("events")),
        ticker=_ticker(known),
        rotation=_rotation(known),
    )


def shortened(text: str) -> str:
    """A need fit for a page: no password, what to do at its end kept however long the reason before it is."""
    return visible(_without_middle(redacted(_without_middle(text, _SEARCHED)), _LONGEST_NEED))


def visible(text: str) -> str:
    """The same text with what cannot be seen, or turns the direction of writing around, as backslash escapes."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def _troubles(consumer: str, answer: Answer[dict[str, Any]]) -> Iterator[str]:
    if answer.error is not None:
        yield shortened(f"{consumer} cannot be seen: {answer.error}")
    for need in (answer.value or {}).get("needs", ()):
        yield shortened(need)


def _failures(answers: Answers) -> Iterator[Failures]:
    for (consumer, _), answer in answers.items():
        rows = (answer.value or {}).get("failures", ())
        if answer.value is not None and rows:
            more = max(0, answer.value["failed_events"] - len(rows))
            yield Failures(consumer, tuple(_failed_event(row) for row in rows), more)


def _failed_event(row: Mapping[str, Any]) -> FailedEvent:
    code = f"{row['sqlstate']}: " if row["sqlstate"] else ""
    return FailedEvent(
        number=row["id"],
        table=_cell(row["ev_extra1"]),
        type=_cell(row["ev_type"]),
        destination=_cell(row["destination"]),
        data=_cell(row["ev_data"]),
        reason=_cell(f"{code}{row['error']}"),
        failed_at=moment(row["failed_at"]),
    )


def _cell(text: str | None) -> str:
    return _NOTHING if text is None else visible(one_line(text[:_SEARCHED]))


def _state(known: Mapping[str, Any]) -> str:
    since = known.get("parked_at") if known["state"] == "parked" else known.get("late_since")
    late = "" if known["state"] == "parked" else ", late"
    return f"{known['state']}{late} since {moment(since)}" if since else str(known["state"])


def _last_tick(known: Mapping[str, Any], now: datetime) -> str:
    if known.get("tick") is None:
        return _NOTHING
    if known["tick_at"] is None:
        return str(known["tick"])
    # By the source's clock; one that is ahead of ours made it just now.
    return f"{known['tick']}, {_duration((now - known['tick_at']).total_seconds())} ago"


def _open_batch(known: Mapping[str, Any]) -> str:
    if known.get("current_batch") is None:
        return _NOTHING
    return f"{known['current_batch']}, for {_duration(known['open_batch_seconds'])}"


def _failed(known: Mapping[str, Any]) -> str:
    count = _count(known.get("failed_events"))
    return f"{count} since {moment(known['failed_since'])}" if known.get("failed_since") else count


def _ticker(known: Mapping[str, Any]) -> str:
    if not known.get("queue_exists"):
        return _NOTHING
    if known["ticker_paused"]:
        return "paused"
    if known["ticker_lag_seconds"] is None:
        return "has never ticked"
    ago = f"{_duration(known['ticker_lag_seconds'])} ago"
    return ago if known["ticker_alive"] else f"silent, last {ago}"


def _rotation(known: Mapping[str, Any]) -> str:
    if not known.get("queue_exists"):
        return _NOTHING
    return f"blocked since {moment(known['rotated_at'])}" if known["rotation_blocked"] else "ok"


def _count(number: int | None) -> str:
    return _NOTHING if number is None else f"{number:,}"


def _duration(seconds: float | None) -> str:
    return _NOTHING if seconds is None else str(format_duration(max(0.0, seconds)))


def _without_middle(text: str, longest: int) -> str:
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} … {text[-half:]}"

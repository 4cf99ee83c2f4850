"""Coverage: which product has a file for which day, and where there is a gap, a failure, or several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from itertools import groupby
from typing import Any, Literal

from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products import ask_store
from workers.products.versions import Version

State = Literal["present", "several", "failed", "damaged", "due", "gap"]
MISSING: tuple[State, ...] = ("failed", "damaged", "due", "gap")
LONGEST_DAYS = 40_000  # a longer range is a typing error, and would be a cell per product and day


@dataclass(frozen=True, slots=True)
class Cell:
    """A product and a day. `several`: files of different keys, and `lowest` is not None when their versions differ.

    `failed`: nothing is there and its build has failed; `damaged`: what was there is missing or corrupt; `due`: it
    waits to be built; `gap`: nothing. `failures` are outputs of that day that could not be built, also beside a file.
    """

    day: date
    state: State
    version: str | None
    lowest: str | None
    files: int
    failures: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class Line:
    """A product's days from `first` to `last`, each with its cell; both are None when it has none at all."""

    product: str
    level: float
    first: date | None
    last: date | None
    cells: tuple[Cell, ...]

    @property
    def days(self) -> int:
        """Days that have a file."""
        return sum(cell.state not in MISSING for cell in self.cells)

    @property
    def gaps(self) -> tuple[tuple[date, date], ...]:
        """First and last day of each stretch without a file, whatever the reason."""
        return tuple(
            (days[0], days[-1])
            for is_missing, cells in groupby(self.cells, key=lambda cell: cell.state in MISSING)
            if is_missing and (days := [cell.day for cell in cells])
        )


@dataclass(frozen=True, slots=True)
class Coverage:
    """The products of a mission, lowest level first; `since` and `until` as they were asked for."""

    mission: str
    since: date | None
    until: date | None
    lines: tuple[Line, ...]

    @property
    def span(self) -> tuple[date, date] | None:
        """First and last day of all lines."""
        ends = [end for line in self.lines for end in (line.first, line.last) if end is not None]
        return (min(ends), max(ends)) if ends else None

    def as_json(self) -> dict[str, Any]:
        """For `--json`: days as YYYY-MM-DD."""
        return {
            "mission": self.mission, "since": _text(self.since), "until": _text(self.until),
            "products": [
                {
                    "product": line.product, "level": line.level, "first": _text(line.first), "last": _text(line.last),
                    "days_with_files": line.days, "gaps": [[_text(day) for day in gap] for gap in line.gaps],
                    "days": [asdict(cell) | {"day": _text(cell.day)} for cell in line.cells],
                }
                for line in self.lines
            ],
        }  # fmt: skip


def coverage(
    conn: Connection,
    mission: int,
    *,
    products: Sequence[str] | None = None,
    since: date | None = None,
    until: date | None = None,
) -> Coverage:
    """What a mission's active products have for each day, from the tables alone.

    Without `since` or `until` a product's days begin or end with its first or last that has a file, a failure or
    something due. A file longer than a day covers every day of its period; any other one its own day.
    Raises PermanentFailure for an unknown product, and for a range that ends before it begins or is too long.
    """
    name = ask_store.mission_name(conn, mission)
    if name is None:
        raise PermanentFailure(f"there is no mission with the id {mission}")
    if since and until and not 0 <= (until - since).days <= LONGEST_DAYS:
        raise PermanentFailure(f"{since} to {until} is no range of at most {LONGEST_DAYS:,} days")
    asked = ask_store.covered_products(conn, mission, products)
    if unknown := set(products or ()) - {row["name"] for row in asked}:
        raise PermanentFailure(f"{name} has no active product {', '.join(sorted(unknown))}")
    ids = [row["id"] for row in asked]
    found = {
        kind: {(row["product_id"], row["day"]): row for row in question(conn, ids, since, until)}
        for kind, question in (
            ("covered", ask_store.covered_days), ("damaged", ask_store.damaged_days),
            ("expected", ask_store.expected_days),
        )
    }  # fmt: skip
    spans: dict[int, tuple[date, date]] = {}
    for product, day in (key for rows in found.values() for key in rows):
        first, last = spans.get(product, (day, day))
        spans[product] = min(first, day), max(last, day)
    lines = []
    for row in asked:
        first, last = spans.get(row["id"], (None, None))
        first, last = since or first or until, until or last or since
        if (first is None or last is None) or first > last:
            lines.append(Line(row["name"], row["level"], None, None, ()))
            continue
        if (last - first).days > LONGEST_DAYS:
            raise PermanentFailure(f"{row['name']} has files from {first} to {last}; say --since and --until")
        cells = tuple(
            _cell(day, *(found[kind].get((row["id"], day)) for kind in ("covered", "damaged", "expected")))
            for day in days(first, last)
        )
        lines.append(Line(row["name"], row["level"], first, last, cells))
    return Coverage(name, since, until, tuple(lines))


def days(first: date, last: date) -> Iterator[date]:
    """Each day from the first to the last."""
    return (first + timedelta(days=number) for number in range((last - first).days + 1))


def _cell(
    day: date, covered: dict[str, Any] | None, damaged: dict[str, Any] | None, expected: dict[str, Any] | None
) -> Cell:
    failures = expected["failed"] if expected else 0
    problem = expected["problem"] if expected else None
    if covered:
        highest, lowest = Version(*covered["highest"]), Version(*covered["lowest"])
        state: State = "several" if covered["files"] > 1 else "present"
        differs = str(lowest) if lowest != highest else None
        return Cell(day, state, str(highest), differs, covered["files"], failures, problem)
    if failures:
        state = "failed"
    elif damaged:
        state = "damaged"
    else:
        state = "due" if expected else "gap"
    return Cell(day, state, None, None, 0, failures, problem)


def _text(day: date | None) -> str | None:
    return day.isoformat() if day is not None else None

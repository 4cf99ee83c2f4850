"""Which tables are worth rewriting: verdicts on estimates of bloat, by a plan's thresholds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from workers.repack_settings import Thresholds

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one table has, and how much of it a rewrite would give back; `rows` None: not known.

    The bytes of indexes are without TOAST's own, which are with TOAST's. `unknown` says in a few words why nothing
    is said of the bloat, which is 0 then; `note` is for people.
    """

    schema: str
    table: str
    oid: int
    method: Literal["statistics", "pgstattuple"]
    table_bytes: int
    index_bytes: int
    toast_bytes: int
    table_bloat_bytes: int = 0
    index_bloat_bytes: int = 0
    toast_bloat_bytes: int = 0
    rows: int | None = None
    last_analyze: datetime | None = None
    note: str = ""
    unknown: str = ""

    @property
    def bytes(self) -> int:
        """Of everything: table, TOAST, indexes."""
        return self.table_bytes + self.toast_bytes + self.index_bytes

    @property
    def bloat_bytes(self) -> int:
        """What a rewrite of everything would give back."""
        return self.table_bloat_bytes + self.toast_bloat_bytes + self.index_bloat_bytes

    @property
    def bloat_percent(self) -> float:
        """The bloat's part of everything."""
        return _percent(self.bloat_bytes, self.bytes)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done with a table, and why; the engine is the one that would do, also if it is not chosen."""

    estimate: Estimate
    text: str
    is_chosen: bool
    engine: Literal["shadow", "reindex"]

    @property
    def rewritten_bytes(self) -> int:
        """What counts towards the budget: what is there now of what would be written anew."""
        return self.estimate.index_bytes if self.engine == "reindex" else self.estimate.bytes


def choose(
    estimates: Sequence[Estimate],
    thresholds: Thresholds,
    *,
    used_budget_bytes: int = 0,
    live: Collection[tuple[str, str]] = (),
) -> list[Verdict]:
    """A verdict on each table, the most wasteful first.

    `live` are the (schema, table) that are being rewritten; those among the estimates count towards `top`.
    A table that does not fit into the budget leaves its place to smaller ones.
    """
    ordered = sorted(estimates, key=lambda one: (-one.bloat_bytes, one.schema, one.table))
    chosen = sum((one.schema, one.table) in live for one in ordered)
    used = used_budget_bytes
    verdicts = []
    for one in ordered:
        engine = _engine(one, thresholds)
        text = "already being rewritten" if (one.schema, one.table) in live else _not_worth_it(one, thresholds)
        found = Verdict(one, text, False, engine)
        if not text and thresholds.top is not None and chosen >= thresholds.top:
            found = Verdict(one, f"beyond top {thresholds.top}", False, engine)
        elif not text and _beyond(used + found.rewritten_bytes, thresholds.budget_bytes):
            found = Verdict(one, "beyond the budget", False, engine)
        elif not text:
            text = f"chosen: {one.bloat_percent:.0f} % of {size(one.bytes)}"
            found = Verdict(one, text, True, engine)
            chosen += 1
            used += found.rewritten_bytes
        verdicts.append(found)
    return verdicts


def size(count: int) -> str:
    """Bytes for people, in powers of 1000: `1.2 GB`."""
    number, unit = float(count), _UNITS[0]
    for unit in _UNITS:
        if number < 999.5 or unit == _UNITS[-1]:
            break
        number /= 1000
    # Rounding must not print 1000 or 10.0: what rounds up to two digits before the point loses the one behind it.
    return f"{number:.1f} {unit}" if unit != "B" and number < 9.95 else f"{number:.0f} {unit}"


def _not_worth_it(one: Estimate, thresholds: Thresholds) -> str:
    if one.bytes < thresholds.min_bytes:
        return "smaller than min_bytes"
    if _beyond(one.bytes, thresholds.max_bytes):
        return "larger than max_bytes"
    # With both at zero whatever is listed is rewritten, and nobody needs an estimate.
    if one.unknown and (thresholds.min_bloat_percent or thresholds.min_bloat_bytes):
        return one.unknown
    if one.bloat_percent < thresholds.min_bloat_percent:
        return f"below {thresholds.min_bloat_percent:g} %"
    if one.bloat_bytes < thresholds.min_bloat_bytes:
        return "below min_bloat_bytes"
    return ""


def _engine(one: Estimate, thresholds: Thresholds) -> Literal["shadow", "reindex"]:
    least = thresholds.min_bloat_percent
    indexes = _percent(one.index_bloat_bytes, one.index_bytes)
    rest = _percent(one.table_bloat_bytes + one.toast_bloat_bytes, one.table_bytes + one.toast_bytes)
    return "reindex" if indexes >= least > rest else "shadow"


def _beyond(count: int, most: int | None) -> bool:
    return most is not None and count > most


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0

"""Choice of tables: what is worth rewriting, in which order, by which engine, and how much of it."""

from __future__ import annotations

from typing import Any

import pytest

from workers.repack.choice import Estimate, choose, size
from workers.repack_settings import Thresholds

MB = 1_000_000
ALL = {"min_bloat_percent": 0, "min_bloat_bytes": 0}


def table(name: str, total: int = 100, waste: int = 50, **more: Any) -> Estimate:
    """A table of so many MB, all in its heap, of which so many are bloat."""
    facts = {"table_bytes": total * MB, "table_bloat_bytes": waste * MB, "index_bytes": 0, "toast_bytes": 0}
    return Estimate("app", name, 1, "statistics", **(facts | more))


def verdicts(*tables: Estimate, used: int = 0, live: tuple[str, ...] = (), **thresholds: Any) -> dict[str, str]:
    """What is said of each table, in the order of the verdicts."""
    busy = {("app", name) for name in live}
    found = choose(tables, Thresholds(**thresholds), used_budget_bytes=used * MB, live=busy)
    return {one.estimate.table: one.text for one in found}


@pytest.mark.parametrize(
    ("one", "thresholds", "says"),
    [
        (table("t", 1200, 744), {}, "chosen: 62 % of 1.2 GB"),
        (table("t", 100, 30), {}, "chosen: 30 % of 100 MB"),
        (table("t", 100, 29), {}, "below 30 %"),
        (table("t", 100, 29), {"min_bloat_percent": 28.5}, "chosen: 29 % of 100 MB"),
        (table("t", 100, 28), {"min_bloat_percent": 28.5}, "below 28.5 %"),
        (table("t", 10, 9), {}, "below min_bloat_bytes"),
        (table("t", 10, 10), {}, "chosen: 100 % of 10 MB"),
        (table("t", 100, 90), {"min_bytes": 100 * MB + 1}, "smaller than min_bytes"),
        (table("t", 100, 90), {"min_bytes": 100 * MB, "max_bytes": 100 * MB}, "chosen: 90 % of 100 MB"),
        (table("t", 100, 90), {"max_bytes": 100 * MB - 1}, "larger than max_bytes"),
        (table("t", 100, 0, unknown="not analyzed"), {}, "not analyzed"),
        (table("t", 100, 0, unknown="not analyzed"), {"min_bloat_percent": 0}, "not analyzed"),
        (table("t", 100, 0, unknown="not analyzed"), ALL, "chosen: 0 % of 100 MB"),
        (table("t", 0, 0), ALL, "chosen: 0 % of 0 B"),
        (table("t", 0, 0), {}, "below 30 %"),
    ],
)
def test_each_threshold_gives_its_reason(one: Estimate, thresholds: dict[str, Any], says: str) -> None:
    """Bounds themselves are within; with both of bloat at zero every table is chosen, unknown ones too."""
    assert verdicts(one, **thresholds) == {"t": says}


def test_the_percentage_is_of_table_toast_and_indexes_together() -> None:
    """A bloated heap beside large tight indexes is below the threshold, and bloat anywhere counts."""
    tight = table("tight", 100, 80, index_bytes=200 * MB)
    toast = table("toast", 100, 0, toast_bytes=200 * MB, toast_bloat_bytes=180 * MB)
    assert verdicts(tight, toast) == {"toast": "chosen: 60 % of 300 MB", "tight": "below 30 %"}


def test_the_most_wasteful_come_first_and_equals_by_name() -> None:
    """Bytes of bloat say the order, not the percentage."""
    found = verdicts(table("b", 100, 60), table("small", 50, 49), table("large", 1000, 300), table("a", 200, 60))
    assert list(found) == ["large", "a", "b", "small"]


def test_beyond_top_nothing_is_chosen() -> None:
    """Only so many are chosen, and one that is below the threshold does not take a place."""
    found = verdicts(table("a", 100, 90), table("no", 1000, 85), table("b", 100, 80), table("c", 100, 70), top=2)
    assert found == {
        "a": "chosen: 90 % of 100 MB",
        "no": "below 30 %",
        "b": "chosen: 80 % of 100 MB",
        "c": "beyond top 2",
    }


def test_those_being_rewritten_are_left_alone_and_take_places() -> None:
    """So many at a time: a table that is being rewritten is one of them."""
    found = verdicts(table("a", 100, 90), table("b", 100, 80), table("c", 100, 70), top=2, live=("a", "elsewhere"))
    assert found == {"a": "already being rewritten", "b": "chosen: 80 % of 100 MB", "c": "beyond top 2"}


def test_the_budget_is_filled_in_order_and_smaller_ones_may_still_fit() -> None:
    """Bytes that are there now count, what was used before too, and an exact fit fits."""
    tables = table("a", 300, 200), table("b", 200, 150), table("c", 100, 90), table("d", 1, 1)
    found = verdicts(*tables, used=100, budget_bytes=500 * MB, min_bloat_bytes=0)
    assert found == {
        "a": "chosen: 67 % of 300 MB",
        "b": "beyond the budget",
        "c": "chosen: 90 % of 100 MB",
        "d": "beyond the budget",
    }


def test_only_indexes_are_rebuilt_where_only_they_are_bloated() -> None:
    """An index bloat over the threshold beside a table under it is for REINDEX, and its bytes alone are spent."""
    only = table("only", 100, 20, index_bytes=100 * MB, index_bloat_bytes=70 * MB)
    both = table("both", 100, 30, index_bytes=100 * MB, index_bloat_bytes=70 * MB)
    toast = table("toast", 10, 0, toast_bytes=89 * MB, toast_bloat_bytes=60 * MB, index_bytes=MB, index_bloat_bytes=MB)
    found = choose([only, both, toast], Thresholds(budget_bytes=400 * MB))
    assert {one.estimate.table: (one.engine, one.rewritten_bytes // MB) for one in found if one.is_chosen} == {
        "both": ("shadow", 200),
        "only": ("reindex", 100),
        "toast": ("shadow", 100),
    }


def test_without_thresholds_the_whole_table_is_rewritten() -> None:
    """All zero: nothing is known to be tight, so the engine is the one that rewrites everything."""
    [found] = choose([table("t", 100, 0, index_bytes=MB, index_bloat_bytes=MB)], Thresholds(**ALL))
    assert (found.is_chosen, found.engine) == (True, "shadow")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9949, "9.9 kB"),
        (9951, "10 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (1_234_567_890, "1.2 GB"),
        (5 * 10**18, "5000 PB"),
    ],
)
def test_sizes_are_short(count: int, text: str) -> None:
    """Two or three digits and a unit."""
    assert size(count) == text

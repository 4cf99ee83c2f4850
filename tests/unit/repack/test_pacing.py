"""When a rewrite waits, for how long, and whether there is room for it: by numbers alone."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from workers.repack import disk, pacing
from workers.repack.pacing import Hold, Sample
from workers.repack.pacing_catalog import Standby
from workers.repack_settings import DatabaseRules, Limits
from workers.zones import ScheduleError

NOW = datetime(2027, 1, 4, 12, tzinfo=UTC)  # a Monday
NIGHTS = "Mon-Fri 22:00-06:00"
MUCH = 10**20  # no disk has so much


def sample(seconds: float, position: int) -> Sample:
    return Sample(NOW + timedelta(seconds=seconds), position)


def test_the_pause_is_a_multiple_of_the_chunk() -> None:
    """A ratio of two sleeps twice as long as the chunk took; none sleeps never."""
    assert pacing.sleep(1.5, 2) == Hold("a pause of 2 chunk durations", 3)
    assert pacing.sleep(1.5, 0) is None and pacing.sleep(0, 2) is None


@pytest.mark.parametrize(
    ("written", "seconds", "expected"), [(1000, 1, 9), (100, 1, 0), (0, 5, -5), (50, 0, 0.5)]
)  # fmt: skip
def test_the_debt_is_what_brings_the_rate_down(written: int, seconds: float, expected: float) -> None:
    """So many seconds without WAL bring the rate to 100 bytes per second."""
    assert pacing.wal_debt(sample(0, 7), sample(seconds, 7 + written), 100) == pytest.approx(expected)


def test_the_worst_standby_counts() -> None:
    """One of several over the limit is enough, and it is the one that is named."""
    standbys = [Standby("near", 990, 0.1), Standby("far", 400, 0.2), Standby("slow", 900, 31)]
    seen = [sample(0, 1000)]
    by_bytes = pacing.lag(standbys, seen, Limits(max_replication_lag_bytes=500))
    assert by_bytes is not None and by_bytes.reason.startswith("standby far is 600 bytes behind")
    by_seconds = pacing.lag(standbys, seen, Limits(max_replication_lag_seconds=30))
    assert by_seconds is not None and by_seconds.reason.startswith("standby slow is 31.0 seconds behind")
    limits = Limits(max_replication_lag_bytes=600, max_replication_lag_seconds=31)
    assert pacing.lag(standbys, seen, limits) is None
    assert pacing.lag([], seen, limits) is None


def test_what_was_written_and_is_not_replayed_is_so_old() -> None:
    """The age is that of the first WAL seen that a standby lacks, when the server itself measures less or nothing."""
    seen = [sample(0, 100), sample(10, 200), sample(25, 300)]
    limits = Limits(max_replication_lag_seconds=12)
    late = pacing.lag([Standby("s", 150, None)], seen, limits)
    assert late is not None and "15.0 seconds" in late.reason
    assert pacing.lag([Standby("s", 200, 0.5)], seen, limits) is None
    assert pacing.lag([Standby("s", 300, None)], seen, limits) is None


@pytest.mark.parametrize(
    ("text", "zone", "now", "opens"),
    [
        (None, "UTC", NOW, None),
        (NIGHTS, "UTC", NOW, NOW.replace(hour=22)),
        (NIGHTS, "Europe/Paris", NOW, NOW.replace(hour=21)),
        (NIGHTS, "UTC", NOW.replace(hour=22), None),
        (NIGHTS, "UTC", NOW.replace(hour=5, day=9, minute=59), None),
        (NIGHTS, "UTC", NOW.replace(hour=6, day=9), NOW.replace(hour=22, day=11)),
    ],
)
def test_outside_its_windows_it_waits_for_the_next(
    text: str | None, zone: str, now: datetime, opens: datetime | None
) -> None:
    """It says when a window opens, and nothing while one is open or where there are none."""
    assert pacing.window_hold(text, zone, now) == opens


def test_a_window_that_is_not_understood_says_so() -> None:
    """A text or zone that settings could not have let through raises."""
    for text, zone in (("at night", "UTC"), (NIGHTS, "Mars/Olympus")):
        with pytest.raises(ScheduleError):
            pacing.window_hold(text, zone, NOW)


@pytest.mark.parametrize(
    ("sizes", "bloat", "needed"),
    [((1000, 200, 300), None, 1650), ((1000, 200, 300), 500, 1100), ((10, 0, 0), 20, 0), ((1, 0, 0), 0, 2)],
)
def test_needed_is_what_lives_and_a_tenth(sizes: tuple[int, int, int], bloat: int | None, needed: int) -> None:
    """Table, indexes and TOAST less what is known to be bloat, and a tenth for the log, never rounded down."""
    assert disk.needed_bytes(*sizes, bloat) == needed


def test_the_budget_counts_what_is_used_already() -> None:
    """What others' copies take and what is needed must fit together; without a budget everything does."""
    rules = DatabaseRules(disk_budget_bytes=1000)
    assert disk.problem(rules, 400, 600) is None
    problem = disk.problem(rules, 401, 600)
    assert problem is not None and "disk_budget_bytes 1,000" in problem and "601" not in problem
    assert disk.problem(DatabaseRules(), MUCH, MUCH) is None


def test_enough_must_stay_free_on_the_disk(tmp_path: Path) -> None:
    """What is needed is taken off the free space before it is compared."""
    found = os.statvfs(tmp_path)
    rules = DatabaseRules(disk_path=tmp_path, min_free_bytes=0)
    assert disk.problem(rules, 0, MUCH) is None
    problem = disk.problem(rules, found.f_blocks * found.f_frsize + 1, 0)
    assert problem is not None and f"{tmp_path} has " in problem and "min_free_bytes 0 must stay" in problem
    full = disk.problem(DatabaseRules(disk_path=tmp_path, min_free_bytes=MUCH), 0, 0)
    assert full is not None and f"{MUCH:,} must stay" in full


def test_a_disk_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A folder of another host, or a typing error, is a line that says so."""
    problem = disk.problem(DatabaseRules(disk_path=tmp_path / "gone"), 1, 0)
    assert problem is not None and problem.startswith(f"disk_path {tmp_path / 'gone'}: No such file or directory")

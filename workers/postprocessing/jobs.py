"""Jobs as the scheduler sees them: a definition, what became of it so far, and when it is due next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from workers.postprocessing.schedule import Interval, Schedule

ORIGIN_HDBPP = "hdbpp"
ENDED_BADLY = ("failed", "timeout", "lost")


@dataclass(frozen=True, slots=True)
class Job:
    """One row of headrace.job. `schedule` is None for a job that only follows another one, or waits to be asked."""

    id: int
    origin: str
    name: str | None
    scheduled: bool
    schedule: Schedule | None
    after_job: int | None = None
    run_window: str | None = None
    max_retries: int = -1
    retry_period: timedelta = timedelta(minutes=5)
    on_lost: str = "rerun"
    missed: str = "once"
    missed_cap: int = 10
    start_deadline: timedelta | None = None
    overlap: str = "skip"
    lock_group: str | None = None

    @property
    def zone(self) -> str | None:
        """The time zone of its schedule and of its window."""
        return self.schedule.zone if self.schedule else None


@dataclass(frozen=True, slots=True)
class State:
    """One row of headrace.job_state, as far as decisions need it."""

    next_start: datetime | None = None
    slot: datetime | None = None
    reason: str = "schedule"
    attempt: int = 1
    live_run: int | None = None
    catch_up_until: datetime | None = None
    planned_at: datetime | None = None
    last_slot: datetime | None = None
    last_finish: datetime | None = None
    consecutive_failures: int = 0
    waits_for: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """When a job is due next: not before `next_start`, for the slot `slot`. Without next_start: not by itself."""

    next_start: datetime | None = None
    slot: datetime | None = None
    reason: str = "schedule"
    attempt: int = 1
    catch_up_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended."""

    state: str
    slot: datetime
    reason: str
    attempt: int
    finished_at: datetime
    sqlstate: str | None = None


def job_from_row(row: dict[str, Any], *, daily: Schedule) -> Job:
    """A definition out of its columns; an hdbpp row without a schedule of its own runs by `daily`."""
    schedule = _schedule(row)
    if schedule is None and row["origin"] == ORIGIN_HDBPP and row["after_job"] is None:
        schedule = replace(daily, zone=row["timezone"] or daily.zone)
    return Job(
        id=row["job_id"],
        origin=row["origin"],
        name=row["name"],
        scheduled=row["scheduled"],
        schedule=schedule,
        after_job=row["after_job"],
        run_window=row["run_window"],
        max_retries=row["max_retries"],
        retry_period=row["retry_period"],
        on_lost=row["on_lost"],
        missed=row["missed"],
        missed_cap=row["missed_cap"],
        start_deadline=row["start_deadline"],
        overlap=row["overlap"],
        lock_group=row["lock_group"],
    )


def state_from_row(row: dict[str, Any]) -> State:
    """What stands in headrace.job_state."""
    return State(**{name: row[name] for name in State.__slots__})


def daily_schedule(at: str, zone: str) -> Schedule:
    """The schedule of a job that has none: once a day at `at` ("02:00") in `zone`."""
    hour, minute, *_seconds = at.split(":")
    return Schedule(cron=f"{int(minute)} {int(hour)} * * *", zone=zone)


def _schedule(row: dict[str, Any]) -> Schedule | None:
    common = {"fixed": row["fixed_schedule"], "zone": row["timezone"], "start": row["initial_start"]}
    if row["cron"] is not None:
        return Schedule(cron=row["cron"], **common)
    if row["run_at"] is not None:
        return Schedule(at=row["run_at"], **common)
    if row["interval_months"] is not None:
        parts = (row["interval_months"], row["interval_days"], row["interval_microseconds"])
        # A grid needs an origin that stays where it is.
        common["start"] = row["initial_start"] or (row["created_at"] if row["fixed_schedule"] else None)
        return Schedule(interval=Interval(*parts), **common)
    return None

"""Decisions about jobs: tables of what is due, skipped, retried and given up, for schedules of every kind."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.postprocessing.decisions import after, due, first_plan, following
from workers.postprocessing.jobs import Ended, Job, Plan, State
from workers.postprocessing.schedule import Interval, Schedule

NOON = datetime(2027, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
HOURLY = Schedule(interval=Interval(microseconds=3_600_000_000), start=NOON)
DRIFTING = replace(HOURLY, fixed=False)
JOB = Job(7, "headrace", None, True, HOURLY)


def at(minutes: float) -> datetime:
    """So many minutes after noon."""
    return NOON + timedelta(minutes=minutes)


def ended(state: str, minutes: float, *, slot: float = 0, sqlstate: str | None = None, attempt: int = 1) -> Ended:
    """A run for a slot that ended so many minutes after noon."""
    return Ended(state, at(slot), "schedule", attempt, at(minutes), sqlstate)


def waiting(minutes: float, **more: object) -> State:
    """A job that is due so many minutes after noon."""
    known: dict[str, object] = {"next_start": at(minutes), "slot": at(minutes), "planned_at": NOON}
    return State(**(known | more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("job", "state", "now", "expected"),
    [
        (JOB, State(), NOON, Plan(NOON, NOON)),
        (JOB, State(), at(-30), Plan(NOON, NOON)),
        (JOB, State(), at(150), Plan(at(120), at(120))),
        (JOB, State(planned_at=NOON, last_slot=NOON), at(30), Plan(at(60), at(60))),
        (replace(JOB, schedule=None), State(), NOON, Plan()),
        (replace(JOB, schedule=Schedule(at=at(5))), State(), NOON, Plan(at(5), at(5))),
        (replace(JOB, schedule=Schedule(at=at(5))), State(planned_at=NOON, last_slot=at(5)), at(9), Plan()),
        (replace(JOB, schedule=Schedule(at=at(50))), State(None, planned_at=NOON, last_slot=at(5)), at(9),
         Plan(at(50), at(50))),
        (replace(JOB, schedule=Schedule(cron="30 2 * * *")), State(), NOON, Plan(at(870), at(870))),
        (JOB, State(planned_at=NOON, last_slot=NOON, reason="retry", next_start=at(5), attempt=2, slot=NOON), at(1),
         Plan(at(5), NOON, "retry", 2)),
        (replace(JOB, run_window="20:00-22:00"), State(), NOON, Plan(at(480), NOON)),
    ],
)  # fmt: skip
def test_when_a_new_or_changed_job_is_due(job: Job, state: State, now: datetime, expected: Plan) -> None:
    """A new job takes its first slot, a changed one the next from now, a pending retry stays, a window delays."""
    assert first_plan(job, state, now) == expected


def test_a_job_that_is_on_time_runs_its_slot() -> None:
    """A second after its time a job runs that slot, and nothing is skipped."""
    found = due(JOB, waiting(60), at(60) + timedelta(seconds=1))
    assert (found.run, found.reason, found.skipped) == (at(60), "schedule", ())


@pytest.mark.parametrize(
    ("policy", "run", "skipped"),
    [
        ("once", 240, (60, 120, 180)),
        ("skip", None, (60, 120, 180, 240)),
        ("all", 60, ()),
    ],
)
def test_what_becomes_of_missed_slots(policy: str, run: float | None, skipped: tuple[float, ...]) -> None:
    """Four slots were missed: once runs the newest, skip none, all starts with the oldest."""
    found = due(replace(JOB, missed=policy), waiting(60), at(270))
    assert found.run == (None if run is None else at(run))
    assert found.skipped == tuple(at(minutes) for minutes in skipped)
    if policy == "skip":
        assert found.plan == Plan(at(300), at(300))


def test_all_runs_no_more_than_its_cap_and_then_the_grid() -> None:
    """With a cap of two, two of four missed slots run, one after the other, and then the regular slot."""
    job = replace(JOB, missed="all", missed_cap=2)
    first = due(job, waiting(60), at(270))
    assert (first.run, first.skipped, first.catch_up_until) == (at(180), (at(60), at(120)), at(270))
    state = waiting(180, last_slot=at(180), catch_up_until=at(270), live_run=1)
    second = after(job, state, ended("succeeded", 271, slot=180), jitter=0)
    assert second.plan == Plan(at(240), at(240), catch_up_until=at(270))
    last = after(job, replace(state, last_slot=at(240)), ended("succeeded", 272, slot=240), jitter=0)
    assert last.plan == Plan(at(300), at(300))


def test_skip_still_runs_a_slot_that_is_on_time() -> None:
    """With missed = skip the newest slot runs if it is not late itself."""
    found = due(replace(JOB, missed="skip"), waiting(60), at(180) + timedelta(seconds=5))
    assert (found.run, found.skipped) == (at(180), (at(60), at(120)))


def test_a_slot_beyond_its_deadline_is_skipped() -> None:
    """start_deadline drops what could not start in time, and the newest of the rest runs."""
    job = replace(JOB, start_deadline=timedelta(minutes=40))
    assert due(job, waiting(60), at(110)).skipped == (at(60),)
    found = due(job, waiting(60), at(130))
    assert (found.run, found.skipped) == (at(120), (at(60),))


def test_a_slot_that_was_held_back_is_on_time_until_its_deadline() -> None:
    """Waiting for a group or a pause is not missing the slot, whatever `missed` says; start_deadline is the limit."""
    held = waiting(60, waits_for="lock group g")
    found = due(replace(JOB, missed="skip"), held, at(90))
    assert (found.run, found.reason, found.skipped) == (at(60), "schedule", ())
    found = due(replace(JOB, start_deadline=timedelta(minutes=20)), held, at(90))
    assert (found.run, found.skipped) == (None, (at(60),))


def test_slots_that_a_window_shuts_out_are_one_when_it_opens() -> None:
    """Of the hourly slots of a day the newest one before the opening runs then; the others are on record."""
    job = replace(JOB, run_window="22:00-23:00")
    found = due(job, State(at(600), NOON, planned_at=NOON), at(600) + timedelta(seconds=1))
    assert found.run == at(600)
    assert found.skipped == tuple(at(60 * hour) for hour in range(10))
    assert found.late < MINUTE


def test_success_leads_to_the_next_slot_of_the_grid() -> None:
    """A run that starts late or takes long does not move the grid; slots it ran over are skipped."""
    found = after(JOB, waiting(0, last_slot=NOON), ended("succeeded", 10), jitter=0)
    assert (found.plan, found.skipped, found.consecutive_failures) == (Plan(at(60), at(60)), (), 0)
    found = after(JOB, waiting(0, last_slot=NOON), ended("succeeded", 130), jitter=0)
    assert (found.plan, found.skipped) == (Plan(at(180), at(180)), (at(60), at(120)))


def test_a_drifting_schedule_counts_from_the_end() -> None:
    """fixed_schedule = false: finish + interval."""
    found = after(replace(JOB, schedule=DRIFTING), waiting(0, last_slot=NOON), ended("succeeded", 25), jitter=0)
    assert found.plan == Plan(at(85), at(85))


def test_a_drifting_job_moves_on_from_a_slot_that_is_over() -> None:
    """A slot that was cancelled, or lies in a long pause, is not planned again, and is nothing missed."""
    job = replace(JOB, schedule=DRIFTING)
    state = waiting(60, last_slot=at(60), last_finish=NOON)
    assert following(job, state, at(61)) == Plan(at(121), at(121))
    resumed = first_plan(job, state, at(600))
    assert resumed == Plan(at(600), at(600))
    found = due(replace(job, missed="skip"), State(at(600), at(600), planned_at=NOON), at(600))
    assert (found.run, found.reason, found.late) == (at(600), "schedule", timedelta(0))


def test_overlap_queue_runs_the_slot_that_passed() -> None:
    """overlap = queue: the last slot that passed during the run starts at once, the others are skipped."""
    job = replace(JOB, overlap="queue")
    found = after(job, waiting(0, last_slot=NOON), ended("succeeded", 130), jitter=0)
    assert (found.plan.next_start, found.plan.slot, found.skipped) == (at(130), at(120), (at(60),))
    assert due(job, State(at(130), at(120), found.plan.reason, planned_at=NOON), at(131)).run == at(120)


@pytest.mark.parametrize(
    ("failures", "jitter", "minutes"), [(0, 0, 5), (1, 0, 10), (2, 0, 15), (0, 1, 5.625), (0, -1, 4.375), (30, 0, 100)]
)
def test_failures_wait_linearly(failures: int, jitter: float, minutes: float) -> None:
    """finish + retry_period x failures, 20 at most, 12.5 % more or less, on a schedule that is far away."""
    job = replace(JOB, schedule=Schedule(interval=Interval(days=30), start=NOON))
    state = waiting(0, last_slot=NOON, consecutive_failures=failures)
    found = after(job, state, ended("failed", 1), jitter=jitter)
    assert found.plan == Plan(at(1 + minutes), NOON, "retry", 2)
    assert found.consecutive_failures == failures + 1


def test_a_retry_never_outlives_the_next_regular_slot() -> None:
    """On a fixed schedule the regular slot comes first; a drifting one is capped at five intervals."""
    state = waiting(0, last_slot=NOON, consecutive_failures=15)
    assert after(JOB, state, ended("failed", 1), jitter=0).plan == Plan(at(60), at(60))
    minutely = Schedule(interval=Interval(microseconds=60_000_000), fixed=False)
    found = after(replace(JOB, schedule=minutely), state, ended("failed", 1), jitter=0)
    assert found.plan == Plan(at(6), NOON, "retry", 2)


@pytest.mark.parametrize(
    ("max_retries", "failures", "disabled"), [(2, 0, False), (2, 1, True), (0, 0, True), (1, 0, True), (-1, 99, False)]
)
def test_a_job_is_given_up_after_max_retries_failures(max_retries: int, failures: int, disabled: bool) -> None:
    """max_retries counts failures in a row; 0 means one run, -1 no limit."""
    state = waiting(0, last_slot=NOON, consecutive_failures=failures)
    found = after(replace(JOB, max_retries=max_retries), state, ended("failed", 1), jitter=0)
    assert found.disable is disabled


@pytest.mark.parametrize("code", ["40001", "40P01", "55P03", "08006", "57P01"])
def test_passing_trouble_is_retried_soon_and_does_not_disable(code: str) -> None:
    """A deadlock or a lost server is tried again after ten seconds, and counts for max_retries only in the long run."""
    job = replace(JOB, max_retries=1)
    found = after(job, waiting(0, last_slot=NOON), ended("failed", 1, sqlstate=code), jitter=0)
    assert (found.disable, found.plan.next_start) == (False, at(1) + timedelta(seconds=10))
    never = after(replace(JOB, max_retries=0), waiting(0, last_slot=NOON), ended("failed", 1, sqlstate=code), jitter=0)
    assert never.disable
    tired = waiting(0, last_slot=NOON, consecutive_failures=4)
    assert after(job, tired, ended("failed", 1, sqlstate=code), jitter=0).disable


def test_a_lost_run_is_rerun_or_skipped_as_the_job_says() -> None:
    """on_lost = rerun follows the retry rule, skip waits for the next slot; both count as a failure."""
    state = waiting(0, last_slot=NOON)
    assert after(JOB, state, ended("lost", 1), jitter=0).plan == Plan(at(6), NOON, "retry", 2)
    skipping = after(replace(JOB, on_lost="skip"), state, ended("lost", 1), jitter=0)
    assert (skipping.plan, skipping.consecutive_failures) == (Plan(at(60), at(60)), 1)


def test_a_cancelled_run_waits_for_its_next_slot() -> None:
    """What a person ended is not retried, and changes no failures in a row."""
    found = after(JOB, waiting(0, last_slot=NOON, consecutive_failures=3), ended("cancelled", 1), jitter=0)
    assert (found.plan, found.consecutive_failures) == (Plan(at(60), at(60)), 3)


def test_a_one_shot_is_over_after_its_success() -> None:
    """A single moment has no further slot, but its failure is retried."""
    job = replace(JOB, schedule=Schedule(at=NOON))
    assert after(job, waiting(0), ended("succeeded", 1), jitter=0).over
    assert after(job, waiting(0), ended("failed", 1), jitter=0).plan == Plan(at(6), NOON, "retry", 2)


@given(
    late=st.integers(0, 100_000),
    policy=st.sampled_from(["once", "skip", "all"]),
    cap=st.integers(1, 5),
    minutes=st.integers(1, 300),
)
def test_no_slot_is_lost_or_doubled(late: int, policy: str, cap: int, minutes: int) -> None:
    """Run by run, whatever was missed: slots run or skipped are all different, in order, and end in the future."""
    schedule = Schedule(interval=Interval(microseconds=minutes * 60_000_000), start=NOON)
    job = replace(JOB, schedule=schedule, missed=policy, missed_cap=cap)
    now = NOON + timedelta(seconds=late)
    state = waiting(0)
    seen: list[datetime] = []
    for number in range(cap + 3):
        if state.next_start is None or state.next_start > now:
            break
        found = due(job, state, now)
        assert found.reason in ("schedule", "catch-up")
        seen += [*found.skipped, *([found.run] if found.run else [])]
        if found.run is None:
            plan = found.plan
        else:
            live = replace(state, last_slot=found.run, catch_up_until=found.catch_up_until)
            end = Ended("succeeded", found.run, found.reason, 1, now + timedelta(seconds=number))
            plan = after(job, live, end, jitter=0).plan
        state = State(plan.next_start, plan.slot, plan.reason, plan.attempt, None, plan.catch_up_until, NOON, seen[-1])
    assert seen == sorted(set(seen))
    assert state.slot is not None and state.slot > now
    missed = int(late // (minutes * 60)) + 1
    assert len(seen) == min(missed, 101)  # of a long outage the newest hundred are on record


def test_a_slot_that_had_its_run_leads_to_the_next() -> None:
    """When the slot that is due has a run already, the next one follows."""
    assert following(JOB, waiting(60), at(61)) == Plan(at(120), at(120))

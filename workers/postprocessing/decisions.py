"""What is to be done about a job: when it is due first, what a due one runs, what comes after a run.

Pure: a definition, a state and a moment give a decision. TimescaleDB's rules where it has one (fixed and drifting
schedules, linear retry with jitter and caps); missed slots, overlap and lost runs are rules of our own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from workers import windows
from workers.postprocessing.jobs import ENDED_BADLY, Ended, Job, Plan, State
from workers.postprocessing.schedule import Schedule, first_slot, next_slot, slots_between

MOST_SKIPPED_ROWS = 100  # of one outage; the newest
LATE = timedelta(seconds=60)
MOST_BACKED_OFF = 20  # failures in a row beyond which the delay grows no more
JITTER = 0.125
TRANSIENT_DELAY = timedelta(seconds=10)
TRANSIENT_PATIENCE = 5  # failures in a row that a passing trouble may cause before max_retries counts
_TRANSIENT = ("40001", "40P01", "55P03", "08", "57P0")


@dataclass(frozen=True, slots=True)
class Due:
    """What a due job does now: the slot that runs (None: none), those that never will, and the plan without a run."""

    run: datetime | None
    reason: str = "schedule"
    attempt: int = 1
    skipped: tuple[datetime, ...] = ()
    why_skipped: str = ""
    catch_up_until: datetime | None = None
    plan: Plan = field(default_factory=Plan)
    late: timedelta = timedelta(0)
    made_up_for: int = 0  # slots that run one after the other, this one included


@dataclass(frozen=True, slots=True)
class After:
    """What a run's end changes: the plan, the failures in a row, and whether the job goes on at all."""

    plan: Plan
    consecutive_failures: int
    disable: bool = False
    over: bool = False  # a one-shot has had its run
    skipped: tuple[datetime, ...] = ()


def first_plan(job: Job, state: State, now: datetime) -> Plan:
    """When a new, changed or re-enabled job is due. Raises ScheduleError for a schedule that means nothing.

    A change of the schedule starts anew from `now` and makes up for nothing; a pending retry stays.
    """
    if job.schedule is None:
        return _kept(state) if state.reason in ("after", "retry") and state.next_start else Plan()
    if state.reason in ("retry", "catch-up") and state.next_start and job.schedule.at is not None:
        return _kept(state)
    if _still_due(job, state, now):
        return _plan(job, state.slot)
    if state.planned_at is None or (state.last_slot is None and job.schedule.interval is not None):
        slot = first_slot(job.schedule, now=now)
    elif job.schedule.at is not None:
        slot = job.schedule.at if state.last_slot is None or job.schedule.at > state.last_slot else None
    else:
        slot = next_slot(job.schedule, max(now, state.last_slot or now), last_finish=state.last_finish)
        if slot is not None and job.schedule.interval is not None and not job.schedule.fixed:
            slot = max(slot, now)  # counted from its last finish, which may be long ago, or lead to a slot that is over
    plan = _plan(job, slot)
    if state.reason == "retry" and state.next_start and (not plan.next_start or state.next_start < plan.next_start):
        return _kept(state)
    return plan


def due(job: Job, state: State, now: datetime) -> Due:
    """What a job does whose next_start has come: run a slot, skip some, or both."""
    if state.slot is None or state.next_start is None or job.schedule is None or state.reason != "schedule":
        slot = state.next_start if state.reason == "retry" else state.slot
        return Due(slot or state.next_start, state.reason, state.attempt, catch_up_until=state.catch_up_until)
    slots, dropped = _open_slots(job, state.slot, now)
    late = now - max(_opened(job, slots[0]), state.planned_at or slots[0])
    expired: tuple[datetime, ...] = ()
    if job.start_deadline is not None:
        expired = tuple(slot for slot in slots if now - _opened(job, slot) > job.start_deadline)
        slots = slots[len(expired) :]
    if not slots:
        skipped = (*dropped, *expired)
        return Due(None, skipped=skipped, why_skipped=_too_late(job), plan=_next(job, now, now), late=late)
    if state.waits_for is not None and job.missed != "all":
        # We held it back ourselves: that is not missing it.
        why = f"held back by {state.waits_for}; the run of {slots[-1]:%Y-%m-%d %H:%M:%S} UTC makes up for it"
        return Due(
            slots[-1], attempt=state.attempt, skipped=tuple(sorted((*dropped, *expired, *slots[:-1]))), why_skipped=why
        )
    found = _of_policy(job, state, slots, now, late)
    if not expired and not dropped:
        return found
    reasons = [_too_late(job)] * bool(expired) + ["outside its run_window"] * bool(dropped) + [found.why_skipped]
    gone = tuple(sorted((*dropped, *expired, *found.skipped)))
    return replace(found, skipped=gone, why_skipped="; or ".join(filter(None, reasons)))


def _open_slots(job: Job, first: datetime, now: datetime) -> tuple[list[datetime], tuple[datetime, ...]]:
    """The slots from `first` to now that could start, and those that a shut window leaves to a newer one."""
    assert job.schedule is not None
    drifting = job.schedule.interval is not None and not job.schedule.fixed
    if job.schedule.at is not None or drifting:
        return [first], ()
    most = max(MOST_SKIPPED_ROWS, job.missed_cap)
    slots = [first, *slots_between(job.schedule, first, now, most)]
    if not job.run_window:
        return slots, ()
    newest = {_opened(job, slot): slot for slot in slots}
    kept = sorted(newest.values())
    return kept, tuple(slot for slot in slots if slot not in kept)


def _of_policy(job: Job, state: State, slots: list[datetime], now: datetime, late: timedelta) -> Due:
    """One slot in time runs; of several, or a late one, what `missed` says."""
    first, later = slots[0], slots[1:]
    if not later and late <= _tolerance(job, first):
        return Due(first, attempt=state.attempt, catch_up_until=state.catch_up_until)
    if job.missed == "skip":
        if later and now - _opened(job, later[-1]) <= _tolerance(job, later[-1]):
            return Due(later[-1], skipped=tuple(slots[:-1]), why_skipped="missed while no scheduler ran", late=late)
        why = "missed while no scheduler ran"
        return Due(None, skipped=tuple(slots), why_skipped=why, plan=_next(job, now, now), late=late)
    if job.missed == "all":
        kept = slots[-job.missed_cap :]
        return Due(
            kept[0],
            "catch-up",
            skipped=tuple(slots[: -len(kept)]),
            why_skipped=f"missed, and more than missed_cap = {job.missed_cap} slots were",
            catch_up_until=now,
            late=late,
            made_up_for=len(kept),
        )
    why = f"missed; the run of {slots[-1]:%Y-%m-%d %H:%M:%S} UTC makes up for it"
    return Due(slots[-1], "catch-up", skipped=tuple(slots[:-1]), why_skipped=why, late=late)


def after(job: Job, state: State, ended: Ended, *, jitter: float) -> After:
    """What follows a run of the schedule. `jitter` is a random number between -1 and 1.

    Failures follow TimescaleDB's rule: finish + retry_period x failures (at most 20), capped at five intervals, 12.5 %
    more or less, and for a fixed schedule never beyond the next regular slot.
    """
    now = ended.finished_at
    if ended.state in ENDED_BADLY:
        failures = state.consecutive_failures + 1
        transient = job.max_retries != 0 and _is_transient(ended.sqlstate) and failures < TRANSIENT_PATIENCE
        if job.max_retries >= 0 and failures >= max(job.max_retries, 1) and not transient:
            return After(Plan(), failures, disable=True)
        if ended.state == "lost" and job.on_lost == "skip":
            return After(_next(job, now, now), failures, over=_is_over(job), skipped=_passed(job, state, ended))
        plan = _retry(job, state, ended, failures, transient, jitter)
        return After(plan, failures, skipped=() if plan.reason == "retry" else _passed(job, state, ended))
    failures = 0 if ended.state == "succeeded" else state.consecutive_failures
    if job.schedule is None or job.schedule.at is not None:
        return After(Plan(), failures, over=_is_over(job))
    last = state.last_slot or ended.slot  # of the schedule: a retry ran at a moment of its own
    if (missed := _still_missed(job, state, last, now)) is not None:
        return After(missed, failures)
    if job.schedule.interval is not None and not job.schedule.fixed:
        return After(_next(job, now, now), failures)
    passed = _passed(job, state, ended)
    if passed and job.overlap == "queue":
        return After(Plan(_opened(job, now), passed[-1], "catch-up"), failures, skipped=passed[:-1])
    return After(_next(job, now, now), failures, skipped=passed)


def _passed(job: Job, state: State, ended: Ended) -> tuple[datetime, ...]:
    """Slots that passed while a run was going."""
    if job.schedule is None or job.schedule.at is not None:
        return ()
    if job.schedule.interval is not None and not job.schedule.fixed:
        return ()
    return tuple(slots_between(job.schedule, state.last_slot or ended.slot, ended.finished_at, MOST_SKIPPED_ROWS))


def _still_due(job: Job, state: State, now: datetime) -> bool:
    """Whether a slot that waits already (for its group, its window) is one of the changed schedule, too."""
    if job.schedule is None or state.reason != "schedule" or not state.next_start or not state.slot or state.slot > now:
        return False
    if job.schedule.at is not None or (job.schedule.interval is not None and not job.schedule.fixed):
        return False
    return next_slot(job.schedule, state.slot - timedelta(microseconds=1)) == state.slot


def following(job: Job, state: State, now: datetime) -> Plan:
    """When a job is due again whose present slot has had its run already."""
    moment = max(now, state.slot or now)
    return _next(job, moment, moment)  # a drifting job counts from now: its last finish leads to the slot that is taken


def opening(job: Job, moment: datetime) -> datetime:
    """`moment`, or when the job's window opens next."""
    return _opened(job, moment)


def _retry(job: Job, state: State, ended: Ended, failures: int, transient: bool, jitter: float) -> Plan:
    period = min(job.retry_period, TRANSIENT_DELAY) if transient else job.retry_period
    delay = period * min(failures, MOST_BACKED_OFF)
    regular = _next(job, ended.finished_at, ended.finished_at)
    step = _step(job.schedule, ended.finished_at)
    if step is not None:
        delay = min(delay, 5 * step)
    at = _opened(job, ended.finished_at + delay * (1 + JITTER * jitter))
    fixed = job.schedule is not None and (job.schedule.cron is not None or job.schedule.fixed)
    if fixed and state.catch_up_until is None and regular.next_start is not None and regular.next_start <= at:
        return regular
    return Plan(at, state.last_slot or ended.slot, "retry", ended.attempt + 1, state.catch_up_until)


def _still_missed(job: Job, state: State, last: datetime, now: datetime) -> Plan | None:
    """The next of the missed slots that are being made up for one by one."""
    if state.catch_up_until is None or job.schedule is None:
        return None
    slot = next_slot(job.schedule, last, last_finish=now)
    if slot is None or slot > state.catch_up_until:
        return None
    return Plan(slot, slot, "schedule", catch_up_until=state.catch_up_until)


def _next(job: Job, moment: datetime, finish: datetime) -> Plan:
    if job.schedule is None or job.schedule.at is not None:
        return Plan()
    return _plan(job, next_slot(job.schedule, moment, last_finish=finish))


def _plan(job: Job, slot: datetime | None) -> Plan:
    if slot is None:
        return Plan()
    return Plan(_opened(job, slot), slot)


def _opened(job: Job, slot: datetime) -> datetime:
    """The slot itself, or the opening of its window when it falls outside."""
    return windows.opens_at(windows.parse(job.run_window), job.zone, slot) if job.run_window else slot


def _kept(state: State) -> Plan:
    return Plan(state.next_start, state.slot, state.reason, state.attempt, state.catch_up_until)


def _step(schedule: Schedule | None, moment: datetime) -> timedelta | None:
    """How far apart slots are about now."""
    if schedule is None or schedule.at is not None:
        return None
    if schedule.interval is not None:
        return schedule.interval.seconds()
    first = next_slot(schedule, moment)
    second = next_slot(schedule, first) if first is not None else None
    return second - first if first is not None and second is not None else None


def _tolerance(job: Job, slot: datetime) -> timedelta:
    """How late a slot may start and still count as on time."""
    step = _step(job.schedule, slot)
    return LATE if step is None else min(LATE, max(step / 4, timedelta(seconds=2)))


def _too_late(job: Job) -> str:
    return f"it could not start within its start_deadline of {job.start_deadline}"


def _is_transient(sqlstate: str | None) -> bool:
    return sqlstate is not None and sqlstate.startswith(_TRANSIENT)


def _is_over(job: Job) -> bool:
    return job.schedule is not None and job.schedule.at is not None

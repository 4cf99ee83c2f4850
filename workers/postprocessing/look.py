"""One look at a database: what is due is queued, what changed is planned, what is lost is marked.

One transaction under one lock: two looks at once never queue a slot twice, and a look that dies leaves nothing half
done. The messages go out after the commit; one that gets lost is sent again by a later look.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from workers import alerts, database, logs
from workers.database import Connection
from workers.errors import RetryLater
from workers.messages import DeliverAlerts, Message, RunJob
from workers.postprocessing import decisions, scope, settling, store
from workers.postprocessing.jobs import Plan
from workers.postprocessing.savepoints import alone
from workers.postprocessing.schedule import ScheduleError
from workers.postprocessing.scope import Scope
from workers.postprocessing.store import Listed, Live
from workers.settings import Settings
from workers.sql_files import queries
from workers.targets import Target

log = logs.get(__name__)
SQL = queries("postprocessing")

CANDIDATES = 1000  # due jobs weighed at once; priority counts among them
REPLANNED_AT_ONCE = 2000
RESEND = timedelta(seconds=30)  # and the queue is empty: a message that was doubled finds its run taken
HELD = timedelta(seconds=5)
GROUP_HELD = timedelta(milliseconds=500)  # less than from look to look: none of a group misses its turn
MISSED_ALERT = timedelta(seconds=10)
_MIRROR_SECONDS = (1.0, 4.0)  # least and most between two mirrors of postprocessing_jobs
_CHECK_SECONDS = 30.0

_mirror_due: dict[str, float] = {}
_check_due: dict[str, float] = {}


def look(settings: Settings, name: str, *, resend: bool = True) -> list[Message]:
    """Queue what is due in one database; the messages to send. Raises ServerUnavailable when it cannot be reached.

    With `resend` messages that were sent long ago count as lost: not while they merely wait in the queue.
    A database without our tables and without hdbpp's is left alone, and a read-only one waits.
    """
    if not _is_ours(settings, name):
        return []
    where = scope.of(settings, name)
    if where.facts.is_read_only:
        raise RetryLater(f"{name} is read-only (a standby?); its jobs wait", after=timedelta(seconds=30))
    with database.connection(where.target, purpose="postprocessing look") as conn:
        if not SQL["try_look"].value(conn, {"key": store.LOOK_KEY}):
            return []
        SQL["wait_little"].run(conn, {"milliseconds": "1000"})
        with alone(conn, where):
            _mirror(conn, where)
        settling.settle_silent_runs(conn, where)
        settling.end_unwanted(conn, where)
        SQL["free_ended"].run(conn)
        _replan(conn, where)
        _queue_due(conn, where, settings)
        messages: list[Message] = [
            RunJob(database=name, job=job, job_run=run)
            for run, job in store.unsent(conn, RESEND, settings.postprocessing.in_flight, resend=resend)
        ]
        if _is_time(_check_due, where.target, _CHECK_SECONDS):
            with alone(conn, where):
                _tell_of_late_jobs(conn, where)
        if alerts.waiting(conn):
            messages.append(DeliverAlerts(database=name))
        conn.commit()
    return messages


def _is_ours(settings: Settings, name: str) -> bool:
    """Whether there is anything to look after; our tables are made beside hdbpp's, and nowhere else unasked."""
    target = settings.target(name)
    if scope.is_known(target):
        return True
    facts = scope.read(settings, name)
    return facts.is_set_up or facts.has_hdbpp


def _mirror(conn: Connection, where: Scope) -> None:
    if not where.facts.has_hdbpp or time.monotonic() < _mirror_due.get(where.target.dsn, 0.0):
        return
    began = time.monotonic()
    store.mirror(conn)
    # A table of a hundred thousand jobs takes a noticeable time; at most a twentieth of it all goes there.
    took = time.monotonic() - began
    least, most = _MIRROR_SECONDS
    _mirror_due[where.target.dsn] = began + min(most, max(least, 20 * took)) - 0.1


def _replan(conn: Connection, where: Scope) -> None:
    ids = store.to_replan(conn, REPLANNED_AT_ONCE)
    if not ids:
        return
    now = store.now(conn)
    for item in store.listed(conn, ids, daily=where.daily):
        job, state = item.job, item.state
        if not job.scheduled:
            store.set_plan(conn, job.id, Plan())
            continue
        if state.live_run is not None:
            SQL["planned_by_its_end"].run(conn, {"job": job.id})
            continue
        with alone(conn, where, job.id, replanned=True):
            try:
                store.set_plan(conn, job.id, decisions.first_plan(job, state, now))
            except ScheduleError as problem:
                store.set_plan(conn, job.id, Plan(), problem=str(problem))
                alter = f"headrace postprocessing alter {job.id} --database {where.name}"
                message = f"its schedule means nothing, so it never runs: {problem}"
                store.alert(conn, where.name, "disabled", job.id, job.name, message=message, next=alter)


def _queue_due(conn: Connection, where: Scope, settings: Settings) -> None:
    ids = store.due_ids(conn, CANDIDATES)
    if not ids:
        return
    quiet = store.quiet(conn)
    if 0 in quiet or _is_too_busy(conn, settings):
        return
    now = store.now(conn)
    live = store.live(conn)
    most = min(where.max_running or settings.postprocessing.in_flight, settings.postprocessing.in_flight)
    room = max(0, most - live.total)
    # What is held back must not keep others from their turn: more are read than fit.
    taken = 0
    for start in range(0, len(ids), 200):
        if taken >= room:
            return
        by_id = {item.job.id: item for item in store.listed(conn, ids[start : start + 200], daily=where.daily)}
        # By the slot, not by when it was looked at last: whoever waits for a lock group keeps its place.
        for item in sorted(by_id.values(), key=lambda one: (-one.priority, one.state.slot or now, one.job.id)):
            if taken >= room:
                return
            if item.state.next_start is not None and item.state.next_start <= now:
                with alone(conn, where, item.job.id):
                    taken += _queue(conn, where, item, now, live, quiet)


def _queue(
    conn: Connection,
    where: Scope,
    item: Listed,
    now: datetime,
    live: Live,
    quiet: dict[int, tuple[datetime | None, str]],
) -> bool:
    """Queue one due job, or say what holds it back; whether a run was queued."""
    job = item.job
    if not job.scheduled or item.state.live_run is not None:
        store.set_plan(conn, job.id, Plan())
        return False
    if job.id in quiet:
        until, why = quiet[job.id]
        store.hold(conn, job.id, min(until or now + HELD, now + HELD), why)
        return False
    if live.group_is_full(job.lock_group):
        store.hold(conn, job.id, now + GROUP_HELD, f"lock group {job.lock_group}")
        return False
    opens = decisions.opening(job, now)
    if opens > now:
        store.hold(conn, job.id, opens, f"its window {job.run_window}")
        return False
    due = decisions.due(job, item.state, now)
    run = store.queue_slot(conn, item, due)
    # Said once per outage, not for each slot that is made up for, and not of a slot that has had its run.
    is_new = item.state.catch_up_until is None and (run is not None or due.run is None)
    is_late = due.late > (MISSED_ALERT if due.skipped else decisions.LATE)
    if is_new and is_late and (due.skipped or due.reason == "catch-up"):
        _tell_of_missed(conn, where, item, due)
    if run is None:
        # No run for this moment: the rest was skipped, or the slot has had its run.
        plan = due.plan if due.run is None else decisions.following(job, item.state, now)
        store.set_plan(conn, job.id, plan)
        if due.run is None and job.schedule is not None and job.schedule.at is not None:
            SQL["disable_job"].run(conn, {"job": job.id})  # a one-shot that was skipped is over
        return False
    live.count(job.lock_group)
    return True


def _tell_of_missed(conn: Connection, where: Scope, item: Listed, due: decisions.Due) -> None:
    count = len(due.skipped) + (due.run is not None)
    if due.catch_up_until is not None:
        count = len(due.skipped) + due.made_up_for
    then = f"it runs now, for {due.run:%Y-%m-%d %H:%M:%S} UTC" if due.run is not None else "none of them runs"
    if due.made_up_for > 1:
        then = f"{due.made_up_for} of them run now, one after the other"
    message = f"{count} slots were missed, the first {due.late.total_seconds():.0f} s ago; {then}"
    history = f"headrace postprocessing history {item.job.id} --database {where.name}"
    store.alert(conn, where.name, "missed", item.job.id, item.job.name, message=message, next=history)


def _tell_of_late_jobs(conn: Connection, where: Scope) -> None:
    for job, name, last, allowed in SQL["late_jobs"].rows(conn):
        since = f"since {last:%Y-%m-%d %H:%M:%S} UTC" if last else "ever"
        message = f"has not ended well {since}; alert_after is {allowed}"
        history = f"headrace postprocessing history {job} --database {where.name}"
        store.alert(conn, where.name, "late", job, name, message=message, next=history)


def _is_too_busy(conn: Connection, settings: Settings) -> bool:
    """The load guard: nothing starts while the server has too much to do or a standby lags too far behind."""
    room = settings.postprocessing
    if room.max_active_sessions is None and room.max_replay_lag_seconds is None:
        return False
    active, lag = SQL["load"].rows(conn)[0]
    busy = room.max_active_sessions is not None and active > room.max_active_sessions
    behind = room.max_replay_lag_seconds is not None and lag > room.max_replay_lag_seconds
    if busy or behind:
        log.info("look.too_busy", active_sessions=active, replay_lag_seconds=lag)
    return busy or behind


def _is_time(due: dict[str, float], target: Target, seconds: float) -> bool:
    now = time.monotonic()
    if now < due.get(target.dsn, 0.0):
        return False
    due[target.dsn] = now + seconds
    return True

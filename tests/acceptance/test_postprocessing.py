"""Jobs under a real beat and real workers: due, run, retried, stopped, edited, held back, and on record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

if TYPE_CHECKING:
    from tests.conftest import Site

PROCEDURES = (Path(__file__).parents[1] / "procedures.sql").read_text()
HDBPP = "HDB++ postprocessing"


class Live:
    """A site with a beat and a worker, and a database with procedures of every temper."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.ask = site.ask

    def add(self, procedure: str, interval: str | None = "1 hour", **arguments: Any) -> int:
        """A job by headrace.add_job; what that has no argument for is set by UPDATE."""
        known = ("config", "initial_start", "timezone", "cron", "run_at", "after_job", "fixed_schedule", "scheduled")
        given = {key: value for key, value in arguments.items() if key in known}
        rest = {key: value for key, value in arguments.items() if key not in known}
        words = "".join(f", {key} => %s" for key in given)
        # Not planned before the rest is set, as by a person's transaction.
        conn = psycopg2.connect(self.site.dsn)
        with conn, conn.cursor() as cursor:
            cursor.execute(f"SELECT headrace.add_job(%s, %s{words})", (procedure, interval, *given.values()))
            row = cursor.fetchone()
            assert row is not None
            for key, value in rest.items():
                cursor.execute(f"UPDATE headrace.job SET {key} = %s WHERE job_id = %s", (value, row[0]))
        conn.close()
        return int(row[0])

    def legacy(self, procedure: str, config: str = "{}") -> int:
        """A row of hdbpp's table, by plain SQL."""
        statement = (
            "INSERT INTO public.postprocessing_jobs (application_name, proc_name, config) VALUES (%s, %s, %s) "
            "RETURNING job_id"
        )
        return int(self.ask(statement, HDBPP, procedure, config)[0][0])

    def runs(self, job: int, columns: str = "state") -> list[tuple[Any, ...]]:
        """Runs of a job, in the order of their slots."""
        return self.ask(f"SELECT {columns} FROM headrace.job_run WHERE job_id = %s ORDER BY scheduled_for", job)

    def states(self, job: int) -> list[str]:
        """How the runs of a job stand."""
        return [row[0] for row in self.runs(job)]

    def tags(self, job: int) -> list[str]:
        """What a job's runs have witnessed."""
        return [row[0] for row in self.ask("SELECT tag FROM public.witness WHERE job = %s ORDER BY id", job)]

    def state(self, job: int, columns: str) -> Any:
        """Columns of a job's state."""
        return self.ask(
            f"SELECT {columns} FROM headrace.job_state JOIN headrace.job USING (job_id) WHERE job_id = %s", job
        )[0]

    def until_states(self, job: int, expected: list[str], seconds: float = 15) -> None:
        """Wait until the runs of a job stand so."""
        self.site.until(lambda: self.states(job) == expected, f"job {job}: {expected}", seconds)

    def alerts(self, job: int) -> list[str]:
        """The events that people are to hear of."""
        rows = self.ask("SELECT event FROM headrace.alert WHERE (facts ->> 'job_id')::int = %s ORDER BY id", job)
        return [row[0] for row in rows]


@pytest.fixture(scope="module")
def live(module_site: Site) -> Iterator[Live]:
    """One site for all tests of this module; each has jobs of its own."""
    conn = psycopg2.connect(module_site.dsn)
    conn.autocommit = True
    with conn.cursor() as cursor:
        cursor.execute(PROCEDURES)
        cursor.execute("CREATE TABLE public.told (event text, job bigint, title text)")
    conn.close()
    module_site.worker(
        HEADRACE_WORKER__CONCURRENCY="4",
        HEADRACE_POSTPROCESSING__GRACE_SECONDS="2",
        HEADRACE_ALERTS__SQL="INSERT INTO public.told VALUES (%(event)s, %(job_id)s, %(title)s)",
    )
    module_site.start("beat")
    yield Live(module_site)


def test_a_job_runs_at_once_and_then_on_its_grid(live: Live) -> None:
    """add_job runs a job at once, and next at its initial_start + 1 h exactly, as TimescaleDB does."""
    job = live.add("t_ok", "1 hour", config='{"a": 1}', timezone="Europe/Paris")
    live.until_states(job, ["succeeded"])
    start, next_start = live.state(job, "initial_start, next_start")
    assert next_start - start == timedelta(hours=1)
    stats = live.ask(
        "SELECT last_run_status, job_status, total_runs, total_successes FROM headrace.job_stats WHERE job_id = %s", job
    )
    assert stats == [("Success", "Scheduled", 1, 1)]
    assert live.ask("SELECT config FROM public.witness WHERE job = %s", job) == [('{"a": 1}',)]


def test_failures_are_retried_linearly_until_it_works(live: Live) -> None:
    """Two failures, then success: retries after about 2 s and 4 s, attempts counted, failures in a row back to none."""
    job = live.add("t_flaky", config='{"n": 3}', retry_period="2 s", max_retries=5)
    live.until_states(job, ["failed", "failed", "succeeded"], 25)
    rows = live.runs(job, "attempt, scheduled_for, finished_at, reason")
    assert [row[0] for row in rows] == [1, 2, 3] and [row[3] for row in rows] == ["schedule", "retry", "retry"]
    for number, expected in ((1, 2.0), (2, 4.0)):
        delay = (rows[number][1] - rows[number - 1][2]).total_seconds()
        assert expected * 0.87 <= delay <= expected * 1.13
    assert live.tags(job) == ["try", "try", "try", "flaky-ok"]
    assert live.state(job, "consecutive_failures, total_runs, total_successes, total_failures") == (0, 3, 1, 2)
    assert live.alerts(job) == ["failure", "recovery"]


@pytest.mark.parametrize(("max_retries", "runs"), [(2, 2), (0, 1)])
def test_a_job_that_fails_too_often_is_disabled_and_people_hear_of_it(live: Live, max_retries: int, runs: int) -> None:
    """After max_retries failures in a row (0: after the first) the job is scheduled no more, with an alert."""
    job = live.add("t_fail", retry_period="1 s", max_retries=max_retries)
    live.until_states(job, ["failed"] * runs)
    assert live.state(job, "scheduled, next_start") == (False, None)
    assert live.alerts(job)[-1] == "disabled"
    time.sleep(2.5)  # long enough for a retry that must not come
    assert live.states(job) == ["failed"] * runs


def test_people_are_told(live: Live) -> None:
    """A failure, then a success: both reach the site's own hook, once each, with words that name job and database."""
    job = live.add("t_flaky", config='{"n": 2}', retry_period="1 s")
    live.until_states(job, ["failed", "succeeded"])
    told = "SELECT event, title FROM public.told WHERE job = %s ORDER BY event"
    live.site.until(lambda: len(live.ask(told, job)) == 2, "both are told")
    assert live.ask(told, job) == [
        (event, f"[headrace] {event}: control: job {job} (User-Defined Action [{job}])")
        for event in ("failure", "recovery")
    ]


def test_a_run_that_takes_three_times_as_long_as_usual_is_told(live: Live) -> None:
    """After five short runs a long one raises an alert about the trend."""
    job = live.add("t_sleep_whole", "1 s", config='{"s": 0.4}')
    live.site.until(lambda: live.states(job).count("succeeded") >= 6, "six runs")
    live.ask("UPDATE headrace.job SET config = '{\"s\": 2.5}' WHERE job_id = %s", job)
    live.site.until(lambda: "slow" in live.alerts(job), "it is told")
    live.ask("SELECT headrace.delete_job(%s)", job)


def test_a_job_without_success_for_too_long_is_told(live: Live) -> None:
    """alert_after: the alarm that it has not run since comes by itself, once."""
    job = live.add("t_ok", initial_start="2040-01-01 00:00+00", alert_after="1 s")
    live.site.until(lambda: live.alerts(job) == ["late"], "it is told", 45)


def test_without_a_limit_it_goes_on(live: Live) -> None:
    """max_retries -1 retries for ever."""
    job = live.add("t_fail", retry_period="0.5 s")
    live.site.until(lambda: len(live.states(job)) >= 3, "three failures")
    assert live.state(job, "scheduled") == (True,)
    live.ask("SELECT headrace.delete_job(%s)", job)


def test_rows_changed_by_plain_sql_are_seen(live: Live) -> None:
    """A new row, its schedule, its config and its end take effect within seconds, with no restart and no message."""
    job = live.legacy("t_ok", '{"n": 1}')
    live.site.until(lambda: live.ask("SELECT 1 FROM headrace.job WHERE job_id = %s", job) != [], "the row is seen", 5)
    live.site.until(lambda: live.state(job, "next_start")[0] is not None, "it is planned", 5)
    due: datetime = live.state(job, "next_start")[0]
    assert (due.hour, due.minute) == (2, 0)  # daily, as hdbpp's cron file has it
    live.ask("UPDATE headrace.job SET cron = '* * * * * *' WHERE job_id = %s", job)
    live.site.until(lambda: "succeeded" in live.states(job), "the new schedule counts", 5)
    live.ask("UPDATE public.postprocessing_jobs SET config = '{\"n\": 2}' WHERE job_id = %s", job)
    changed = "SELECT 1 FROM public.witness WHERE job = %s AND config = '{\"n\": 2}'"
    live.site.until(lambda: live.ask(changed, job) != [], "the new config counts", 5)
    live.ask("DELETE FROM public.postprocessing_jobs_stats WHERE job_id = %s", job)
    live.ask("UPDATE public.postprocessing_jobs SET application_name = 'off' WHERE job_id = %s", job)
    columns = "gone_at IS NOT NULL, next_start, live_run"
    live.site.until(lambda: live.state(job, columns) == (True, None, None), "it ends", 6)
    assert live.state(job, "total_runs")[0] >= 2
    stats = "SELECT total_runs > 0 FROM public.postprocessing_jobs_stats WHERE job_id = %s"
    assert live.ask(stats, job) in ([], [(True,)])


def test_max_runtime_ends_a_run(live: Live) -> None:
    """A call that takes longer than max_runtime is cancelled: timeout, 57014, no backend left."""
    job = live.add("t_sleep", config='{"s": 60}', max_runtime="2 s", max_retries=0)
    live.until_states(job, ["timeout"])
    assert live.tags(job) == ["start"]
    assert live.runs(job, "sqlstate, finished_at - started_at < interval '10 s'") == [("57014", True)]
    assert (
        live.ask("SELECT 1 FROM pg_stat_activity WHERE application_name LIKE %s AND state = 'active'", f"%job={job} %")
        == []
    )


def test_inner_commits_do_not_extend_max_runtime(live: Live) -> None:
    """The limit is about the whole call, however often it commits."""
    job = live.add("t_sleep_commits", config='{"n": 100}', max_runtime="2 s", max_retries=0)
    live.until_states(job, ["timeout"])
    assert 3 <= len(live.tags(job)) <= 8
    assert live.runs(job, "inner_transactions >= 3") == [(True,)]


def test_a_procedure_that_swallows_the_cancellation_is_terminated(live: Live) -> None:
    """Cancel, grace, terminate: a stubborn procedure ends too, and never has two backends."""
    job = live.add("t_stubborn", config='{"s": 60}', max_runtime="1 s", max_retries=0)
    live.until_states(job, ["timeout"], 20)
    assert live.tags(job) == []
    assert "terminated" in live.runs(job, "message")[0][0]


def test_cancel_and_run_now_are_on_record_with_who(live: Live) -> None:
    """A person's run has the person's name, and so has its end; the schedule is untouched by both."""
    job = live.add("t_sleep", config='{"s": 60}', initial_start="2040-01-01 00:00+00")
    assert live.site.run("postprocessing", "run", str(job)).returncode == 0
    live.until_states(job, ["running"])
    done = live.site.run("postprocessing", "cancel", "--job", str(job))
    assert done.returncode == 0, done.stderr
    live.until_states(job, ["cancelled"])
    reason, asked, ended, message = live.runs(job, "reason, requested_by, cancel_requested_by, message")[0]
    assert reason == "request" and "@" in asked and asked == ended and message == f"cancelled by {ended}"
    live.site.until(lambda: live.state(job, "next_start")[0] is not None, "it is planned")
    assert live.state(job, "extract(year FROM next_start)") == (2040,)


def test_the_commands_cancel_of_the_run_log_works_too(live: Live) -> None:
    """`headrace cancel RUN` of the control database's run ends a job's call as well."""
    job = live.add("t_sleep", config='{"s": 60}', max_retries=0)
    live.until_states(job, ["running"])
    live.site.until(lambda: live.runs(job, "control_run")[0][0] is not None, "its run is known")
    run = live.runs(job, "control_run")[0][0]
    assert live.site.run("cancel", str(run)).returncode == 0
    live.until_states(job, ["cancelled"], 20)
    assert live.ask("SELECT state FROM headrace.run WHERE id = %s", run) == [("cancelled",)]


def test_a_job_deleted_while_it_runs_leaves_its_history(live: Live) -> None:
    """delete_job ends the running call; the run's row stays, and nothing breaks."""
    job = live.add("t_sleep", config='{"s": 60}')
    live.until_states(job, ["running"])
    live.site.until(lambda: live.tags(job) == ["start"], "it has begun")
    live.ask("SELECT headrace.delete_job(%s)", job)
    live.until_states(job, ["cancelled"])
    assert live.ask("SELECT count(*) FROM headrace.job_state WHERE job_id = %s", job) == [(0,)]


def test_jobs_follow_one_another_and_stop_on_failure(live: Live) -> None:
    """A follower runs after its parent's success; after a failure it is skipped on record, or runs if it says so."""
    parent = live.add("t_flaky", config='{"n": 2}', retry_period="2 s", initial_start="2040-01-01 00:00+00")
    child = live.add("t_ok", None, after_job=parent)
    anyway = live.add("t_ok", None, after_job=parent, after_failure="run")
    live.site.until(lambda: live.state(parent, "next_start")[0] is not None, "it is planned")
    live.ask("SELECT headrace.alter_job(%s, next_start => now())", parent)
    live.until_states(parent, ["failed", "succeeded"], 20)
    live.until_states(child, ["skipped", "succeeded"])
    live.until_states(anyway, ["succeeded", "succeeded"])
    assert "ended as failed" in live.runs(child, "message")[0][0]


def test_a_run_longer_than_its_interval_never_overlaps_or_stacks(live: Live) -> None:
    """A 2.6 s job on a 1 s grid: one at a time, on the grid, and the slots it ran over are on record as skipped."""
    job = live.add("t_sleep", "1 s", config='{"s": 2.6}')
    live.site.until(lambda: live.states(job).count("succeeded") >= 2, "two runs", 25)
    live.ask("SELECT headrace.alter_job(%s, scheduled => false)", job)
    rows = live.runs(job, "scheduled_for, state, started_at, finished_at, message")
    start = live.state(job, "initial_start")[0]
    assert all(((row[0] - start) / timedelta(seconds=1)).is_integer() for row in rows)
    ran = [row for row in rows if row[1] in ("succeeded", "running")]
    assert all(later[2] >= earlier[3] for earlier, later in pairwise(ran))
    skipped = [row for row in rows if row[1] == "skipped"]
    assert len(skipped) >= 2 and all("still going" in row[4] for row in skipped[:2])
    gaps = [later[0] - earlier[0] for earlier, later in pairwise(rows)]
    assert set(gaps) == {timedelta(seconds=1)}  # every slot is on record, once


def test_overlap_queue_makes_up_for_the_slot_that_passed(live: Live) -> None:
    """With overlap = queue the last slot that passed during a run starts at once afterwards."""
    job = live.add("t_sleep_whole", "3 s", config='{"s": 4}', overlap="queue")
    live.site.until(lambda: live.states(job).count("succeeded") >= 2, "two runs", 25)
    live.ask("SELECT headrace.alter_job(%s, scheduled => false)", job)
    first, second = [
        row for row in live.runs(job, "scheduled_for, started_at, finished_at, state") if row[3] == "succeeded"
    ][:2]
    assert second[0] - first[0] == timedelta(seconds=3)
    assert (second[1] - first[2]).total_seconds() < 5


def test_a_one_shot_runs_once(live: Live) -> None:
    """A job with run_at runs then, once, and is over."""
    job = live.add("t_ok", None, run_at="now")
    live.until_states(job, ["succeeded"])
    assert live.state(job, "scheduled, next_start") == (False, None)


def test_a_lock_group_runs_one_at_a_time(live: Live) -> None:
    """Jobs of one lock group never run together, whatever starts them."""
    jobs = [live.add("t_sleep", config='{"s": 1}', lock_group="archive") for _ in range(3)]
    live.site.until(lambda: [live.states(job) for job in jobs] == [["succeeded"]] * 3, "all three", 25)
    spans = sorted(row for job in jobs for row in live.runs(job, "started_at, finished_at"))
    assert all(later[0] >= earlier[1] for earlier, later in pairwise(spans))


def test_a_paused_job_waits_and_its_slot_stays(live: Live) -> None:
    """Nothing starts in a quiet period; afterwards the slot runs."""
    job = live.add("t_ok", scheduled=False)
    assert live.site.run("postprocessing", "pause", "--job", str(job), "--reason", "observing").returncode == 0
    live.ask("SELECT headrace.alter_job(%s, scheduled => true)", job)
    live.site.until(lambda: live.state(job, "waits_for") == ("observing",), "it waits")
    assert live.states(job) == []
    assert live.site.run("postprocessing", "resume", "--job", str(job)).returncode == 0
    live.until_states(job, ["succeeded"])


def test_a_job_with_a_window_waits_for_it(live: Live) -> None:
    """Outside its window a due job is planned for the opening."""
    now: datetime = live.ask("SELECT now()")[0][0]
    opens = (now + timedelta(hours=3)).replace(minute=0, second=0, microsecond=0)
    window = f"{opens:%H:%M}-{opens + timedelta(hours=1):%H:%M}"
    job = live.add("t_ok", run_window=window)
    live.site.until(lambda: live.state(job, "next_start")[0] is not None, "it is planned")
    assert live.state(job, "next_start") == (opens,)


def test_an_atomic_job_commits_with_its_mark(live: Live) -> None:
    """With atomic the effect and the mark are one transaction; a routine that commits fails with the reason."""
    good = live.add("t_ok", atomic=True)
    bad = live.add("t_commit_ok", atomic=True, max_retries=0)
    live.until_states(good, ["succeeded"])
    live.until_states(bad, ["failed"])
    same = live.ask(
        "SELECT w.xmin = r.xmin FROM public.witness w, headrace.job_run r WHERE w.job = %s AND r.job_id = w.job", good
    )
    assert same == [(True,)]
    assert live.runs(bad, "sqlstate") == [("2D000",)]
    assert live.tags(bad) == []


def test_a_schedule_that_means_nothing_is_told(live: Live) -> None:
    """A wrong cron written by plain SQL disables only that job, with its problem on the list and an alert."""
    job = live.add("t_ok", initial_start="2040-01-01 00:00+00")
    live.ask("UPDATE headrace.job SET schedule_interval = NULL, cron = '61 * * * *' WHERE job_id = %s", job)
    live.site.until(lambda: live.state(job, "problem")[0] is not None, "the problem is known")
    assert "61" in live.state(job, "problem")[0]
    assert live.alerts(job) == ["disabled"]


def test_sql_asks_for_a_run(live: Live) -> None:
    """headrace.start_job has a worker run a job now."""
    job = live.add("t_ok", initial_start="2040-01-01 00:00+00")
    live.ask("SELECT headrace.start_job(%s)", job)
    live.until_states(job, ["succeeded"])
    assert live.runs(job, "reason") == [("request",)]


def test_a_queued_run_cancelled_in_sql_frees_its_job(live: Live) -> None:
    """A slot whose queued run is cancelled by SQL does not keep its job from the next one."""
    blocker = live.add("t_sleep", config='{"s": 4}', lock_group="one")
    live.until_states(blocker, ["running"])
    job = live.add("t_ok", "1 s", initial_start="2040-01-01 00:00+00")
    live.ask(
        "WITH run AS (INSERT INTO headrace.job_run (job_id, scheduled_for, reason, lock_group, sent_at) "
        "VALUES (%s, now(), 'schedule', 'one', now()) RETURNING run_id) "
        "UPDATE headrace.job_state SET live_run = (SELECT run_id FROM run), next_start = NULL, replan = false "
        "WHERE job_id = %s",
        job, job,
    )  # fmt: skip
    live.ask("SELECT headrace.cancel_run(run_id) FROM headrace.job_run WHERE job_id = %s", job)
    live.site.until(lambda: live.state(job, "live_run, next_start IS NOT NULL") == (None, True), "it is planned again")

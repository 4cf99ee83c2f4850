"""The protocol of a run where it is interrupted: held rows, killed commands, pauses in mid-run, missing rights."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from workers import database, execution
from workers.messages import RunJob
from workers.postprocessing import api
from workers.settings import Settings

if TYPE_CHECKING:
    from tests.integration.postprocessing.conftest import Acc


@contextmanager
def open_psql(dsn: str, statement: str, *parameters: Any) -> Iterator[None]:
    """Somebody's transaction that is open for as long as the block lasts."""
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        cursor.execute(statement, parameters)
        yield
        conn.commit()


@pytest.fixture
def here(acc: Acc, conf: Settings) -> Settings:
    """Settings of this process, for the database `acc`."""
    assert conf.target().dsn == acc.dsn
    return conf


def add(acc: Acc, procedure: str, config: str = "{}", **columns: Any) -> int:
    """A job that is due at once."""
    with closing(psycopg2.connect(acc.dsn)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("SELECT headrace.add_job(%s, '1 hour', config => %s)", (procedure, config))
        row = cursor.fetchone()
        assert row is not None
        for name, value in columns.items():
            cursor.execute(f"UPDATE headrace.job SET {name} = %s WHERE job_id = %s", (value, row[0]))
    return int(row[0])


def look(conf: Settings) -> list[RunJob]:
    """The messages of one look."""
    return [message for message in api.look(conf, "control") if isinstance(message, RunJob)]


def in_the_background(conf: Settings, messages: list[RunJob], seconds: float = 60) -> threading.Thread:
    """Run messages in a thread of this process."""

    def work() -> None:
        execution.run_here(messages, conf, timeout=timedelta(seconds=seconds))
        database.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_message_that_comes_twice_runs_once(acc: Acc, here: Settings) -> None:
    """The second copy of a message finds the run over, or taken, and does nothing."""
    job = add(acc, "t_ok")
    messages = look(here)
    assert [message.job for message in messages] == [job]
    assert execution.run_here([*messages, *messages, *messages], here, timeout=timedelta(seconds=5)) == []
    assert acc.tags() == ["ok"]
    assert look(here) == []


def test_a_row_that_somebody_holds_delays_the_mark_and_doubles_nothing(acc: Acc, here: Settings) -> None:
    """A person's open transaction on the job: the run waits with its result, the look goes on with the other jobs."""
    job = add(acc, "t_ok")
    messages = look(here)
    with open_psql(acc.dsn, "UPDATE headrace.job SET priority = 1 WHERE job_id = %s", job):
        run = in_the_background(here, messages)
        acc.site.until(lambda: acc.tags() == ["ok"], "it has run")
        other = add(acc, "t_func")
        acc.site.until(lambda: other in [message.job for message in look(here)], "another one is due", 15)
        assert [row[1] for row in acc.history() if row[0] == job] == ["running"]
        assert run.is_alive()
    run.join()
    assert [row[1] for row in acc.history() if row[0] == job] == ["succeeded"]
    assert acc.tags() == ["ok"]


def test_a_run_whose_mark_cannot_be_written_is_never_queued_again(acc: Acc, here: Settings) -> None:
    """Once the call was made, a mark that fails for good leaves the run to be lost; its message repeats nothing."""
    job = add(acc, "t_ok", retry_period="1 hour")
    messages = look(here)
    acc.ask(
        "CREATE FUNCTION public.no_mark() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'no mark' USING ERRCODE = '53100'; END $$"
    )
    acc.ask(
        "CREATE TRIGGER no_mark BEFORE UPDATE ON headrace.job_run FOR EACH ROW "
        "WHEN (NEW.state = 'succeeded') EXECUTE FUNCTION public.no_mark()"
    )
    from workers.postprocessing import runner

    kept, runner.MARK_FOR = runner.MARK_FOR, timedelta(seconds=1)
    try:
        problems = execution.run_here(messages, here, timeout=timedelta(seconds=6))
    finally:
        runner.MARK_FOR = kept
    assert acc.tags() == ["ok"]
    assert problems == []  # the second look at its message found the run taken
    acc.ask("UPDATE headrace.job_run SET heartbeat = now() - interval '1 minute'")
    look(here)
    assert acc.history("job_id, state, reason") == [(job, "lost", "schedule")]


def test_a_job_paused_while_it_runs_stays_paused(acc: Acc, here: Settings) -> None:
    """What is paused in mid-run is not due again when it ends, and comes back when it is scheduled again."""
    job = add(acc, "t_sleep_whole", '{"s": 1.5}')
    run = in_the_background(here, look(here))
    acc.site.until(lambda: [row[1] for row in acc.history()] == ["running"], "it runs")
    acc.ask("SELECT headrace.alter_job(%s, scheduled => false)", job)
    look(here)
    run.join()
    state = "SELECT next_start, live_run FROM headrace.job_state WHERE job_id = %s"
    assert acc.ask(state, job) == [(None, None)]
    look(here)
    assert acc.ask(state, job) == [(None, None)]
    acc.ask("SELECT headrace.alter_job(%s, scheduled => true)", job)
    look(here)
    assert acc.ask("SELECT next_start > now() FROM headrace.job_state WHERE job_id = %s", job) == [(True,)]


def test_a_schedule_changed_while_it_runs_counts_afterwards(acc: Acc, here: Settings) -> None:
    """A new schedule given in mid-run is what plans the next start."""
    job = add(acc, "t_sleep_whole", '{"s": 1.5}')
    run = in_the_background(here, look(here))
    acc.site.until(lambda: [row[1] for row in acc.history()] == ["running"], "it runs")
    acc.ask("SELECT headrace.alter_job(%s, cron => '0 3 * * *')", job)
    look(here)
    run.join()
    look(here)
    assert acc.ask("SELECT extract(hour FROM next_start AT TIME ZONE 'UTC') FROM headrace.job_state") == [(3,)]


def test_a_killed_drop_in_does_not_keep_its_job_from_the_next_one(acc: Acc) -> None:
    """kill -9 of the command in mid-run: the next call settles the lost run, and runs the job."""
    job = acc.job("t_sleep", '{"s": 60}')
    killed = acc.site.start("headrace", "postprocessing", "run", "--here", "--legacy-config", str(acc.legacy))
    acc.site.until(lambda: acc.tags() == ["start"], "it has begun")
    killed.kill()
    killed.wait()
    acc.site.until(lambda: acc.backends("t_sleep") == 0, "its backend is gone", 20)
    acc.ask("UPDATE public.postprocessing_jobs SET config = '{\"s\": 0}'")
    acc.ask("UPDATE headrace.job_run SET heartbeat = now() - interval '1 minute'")
    done = acc.run_once()
    assert (done.returncode, done.stdout) == (0, "1 succeeded\n"), done.stderr
    assert acc.history("state, reason") == [("lost", "drop-in"), ("succeeded", "drop-in")]
    assert acc.stats()[job][2:] == (2, 1, 1)


def test_counters_that_cannot_be_written_do_not_keep_a_run_from_its_end(acc: Acc) -> None:
    """Without rights on hdbpp's stats the run ends as it should; only those counters stay."""
    acc.job("t_ok")
    acc.ask("REVOKE ALL ON public.postprocessing_jobs_stats FROM CURRENT_USER")
    assert acc.run_once().returncode == 0
    assert [row[1] for row in acc.history()] == ["succeeded"]


def test_a_next_start_is_refused_where_it_would_be_lost(acc: Acc) -> None:
    """--next-start of a paused job is an error, and starts nothing."""
    job = acc.json("add", "t_ok", "--cron", "@daily", "--no-scheduled")["job_id"]
    done = acc.command("alter", str(job), "--next-start", "2020-01-01")
    assert done.returncode == 1 and "paused" in done.stderr
    assert acc.command("run", "--here").stdout == "nothing to do\n"


def test_a_retry_survives_another_schedule_and_a_follower_keeps_its_own(acc: Acc, here: Settings) -> None:
    """A failed follower is tried again although its definition was touched meanwhile."""
    parent = add(acc, "t_ok")
    child = add(acc, "t_flaky", '{"n": 2}', schedule_interval=None, after_job=parent, retry_period="0")
    for _ in range(2):
        execution.run_here(look(here), here, timeout=timedelta(seconds=5))
    assert acc.history("job_id, state")[-1] == (child, "failed")
    acc.ask("UPDATE headrace.job SET priority = 3 WHERE job_id = %s", child)
    for _ in range(2):
        execution.run_here(look(here), here, timeout=timedelta(seconds=5))
    assert acc.history("job_id, state, reason")[-1] == (child, "succeeded", "retry")


def test_an_interrupted_look_leaves_nothing_half_done(acc: Acc, here: Settings) -> None:
    """A look that dies before its commit has queued nothing, and the next one queues the slot once."""
    job = add(acc, "t_ok")
    with open_psql(acc.dsn, "LOCK TABLE headrace.job_run IN ACCESS EXCLUSIVE MODE"), pytest.raises(Exception):  # noqa: B017
        look(here)
    assert [message.job for message in look(here)] == [job]
    assert acc.history() == [(job, "queued", None)]

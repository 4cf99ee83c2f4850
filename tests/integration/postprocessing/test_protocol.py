"""The protocol of a run where it is interrupted: held rows, killed commands, pauses in mid-run, missing rights."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from workers import database, execution
from workers.errors import RetryLater
from workers.messages import RunJob
from workers.postprocessing import api, scope
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


def test_the_sites_defaults_for_people_do_not_reach_our_questions(acc: Acc) -> None:
    """German dates, ISO intervals and a statement_timeout as defaults of the database: jobs run, and see them."""
    name = acc.ask("SELECT current_database()")[0][0]
    for setting in (
        "DateStyle = 'German'",
        "IntervalStyle = 'iso_8601'",
        "statement_timeout = '30s'",
        "lock_timeout = '9s'",
    ):
        acc.ask(f'ALTER DATABASE "{name}" SET {setting}')
    acc.ask(
        "CREATE PROCEDURE p(i integer, c jsonb) LANGUAGE sql AS $$ INSERT INTO public.witness (tag) VALUES "
        "(current_setting('DateStyle') || ' ' || current_setting('IntervalStyle') || ' ' "
        "|| current_setting('lock_timeout')) $$"
    )
    acc.job("p")
    acc.json("add", "p", "--every", "1 hour", "--atomic")
    assert acc.run_once().returncode == 0
    assert acc.command("run", "--here").returncode == 0
    assert acc.tags() == ["German, DMY iso_8601 9s"] * 2


def test_an_operator_of_somebody_elses_is_never_ours(acc: Acc, here: Settings) -> None:
    """Whoever may create in schema public cannot have the scheduler run his operators and functions."""
    acc.ask("CREATE TABLE public.caught (who text)")
    acc.ask(
        "CREATE FUNCTION public.trap(numeric, bigint) RETURNS numeric LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO public.caught VALUES (current_user); RETURN 0; END $$"
    )
    acc.ask("CREATE OPERATOR public.* (FUNCTION = public.trap, LEFTARG = numeric, RIGHTARG = bigint)")
    acc.ask(
        "CREATE FUNCTION public.convert_to(text, text) RETURNS bytea LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO public.caught VALUES (current_user); RETURN ''; END $$"
    )
    add(acc, "t_ok", lock_group="g")
    assert execution.run_here(look(here), here, timeout=timedelta(seconds=5)) == []
    assert acc.tags() == ["ok"]
    assert acc.ask("SELECT * FROM public.caught") == []


def test_passing_trouble_of_the_server_costs_no_job_its_schedule(acc: Acc, here: Settings) -> None:
    """A full disk in mid-look: nothing is written, and the next look queues the job."""
    job = add(acc, "t_ok")
    acc.ask(
        "CREATE FUNCTION public.full() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'disk full' USING ERRCODE = '53100'; END $$"
    )
    acc.ask("CREATE TRIGGER full_disk BEFORE INSERT ON headrace.job_run FOR EACH ROW EXECUTE FUNCTION public.full()")
    assert look(here) == []
    acc.ask("DROP TRIGGER full_disk ON headrace.job_run")
    assert [message.job for message in look(here)] == [job]


def test_a_priority_changed_while_it_waits_keeps_the_slot(acc: Acc, here: Settings) -> None:
    """A slot that waits for its lock group is not lost when somebody turns its priority up."""
    first, second = (add(acc, "t_sleep_whole", '{"s": 1.5}', lock_group="g") for _ in range(2))
    run = in_the_background(here, look(here))
    acc.site.until(lambda: acc.history("state") == [("running",)], "the first one runs")
    look(here)
    slot = "SELECT slot FROM headrace.job_state WHERE job_id = %s"
    before = acc.ask(slot, second)
    acc.ask("UPDATE headrace.job SET priority = 9 WHERE job_id = %s", second)
    look(here)
    assert acc.ask(slot, second) == before
    run.join()
    acc.site.until(lambda: second in [message.job for message in look(here)], "its turn comes")
    assert acc.ask("SELECT scheduled_for FROM headrace.job_run WHERE job_id = %s", second) == before
    assert acc.history("job_id, state")[0] == (first, "succeeded")


def test_a_run_queued_before_its_job_was_paused_does_not_start(acc: Acc, here: Settings) -> None:
    """A message that waited in the queue finds its job paused: the run is skipped, and nothing has happened."""
    job = add(acc, "t_ok")
    messages = look(here)
    acc.ask("SELECT headrace.alter_job(%s, scheduled => false)", job)
    execution.run_here(messages, here, timeout=timedelta(seconds=5))
    assert acc.history("state") == [("skipped",)]
    assert acc.tags() == []


def test_a_back_fill_keeps_nothing_else_waiting(acc: Acc, here: Settings) -> None:
    """Of a thousand past slots one is on its way at a time; what is due by schedule is queued all the same."""
    past = acc.json("add", "t_ok", "--cron", "* * * * *")["job_id"]
    acc.json("back-fill", str(past), "--from", "2027-01-01", "--until", "2027-01-01 16:40")
    job = add(acc, "t_func")
    jobs = [message.job for message in look(here)]
    assert job in jobs and jobs.count(past) <= 2


def test_jobs_cannot_follow_each_other_in_a_ring(acc: Acc) -> None:
    """A follows B, B follows A is refused where it is written."""
    first = str(acc.json("add", "t_ok", "--every", "1 hour")["job_id"])
    second = str(acc.json("add", "t_ok", "--after", first)["job_id"])
    done = acc.command("alter", first, "--after", second)
    assert done.returncode == 1 and "follow itself" in done.stderr


def test_a_backend_is_ended_only_after_long_silence_that_was_watched(acc: Acc, here: Settings) -> None:
    """After a standstill every run looks silent: the first look ends none; a backend without a watch is ended later."""
    from workers.postprocessing import settling as module

    job = add(acc, "t_sleep", '{"s": 60}')
    messages = look(here)
    with closing(psycopg2.connect(acc.dsn)) as conn, conn.cursor() as cursor:
        # A worker's session that lives on while nobody watches it.
        conn.autocommit = True
        run = messages[0].job_run
        cursor.execute(
            "UPDATE headrace.job_run SET state = 'running', started_at = now(), heartbeat = now() - interval '1 hour', "
            "backend_pid = pg_backend_pid(), backend_start = (SELECT backend_start FROM pg_stat_activity "
            "WHERE pid = pg_backend_pid()) WHERE run_id = %s",
            (run,),
        )
        kept, module.PATIENCE_SECONDS = module.PATIENCE_SECONDS, 0.5
        try:
            look(here)
            cursor.execute("SELECT 1")  # still there
            acc.site.until(lambda: look(here) is not None and acc.history("state") == [("lost",)], "it is settled", 15)
        finally:
            module.PATIENCE_SECONDS = kept
        with pytest.raises(psycopg2.Error):
            cursor.execute("SELECT 1")
    assert [row[0] for row in acc.history()] == [job]


def test_no_more_runs_at_once_than_are_allowed_in_all(acc: Acc, here: Settings) -> None:
    """max_running_total holds across databases and processes: the second run waits for the first one's end."""
    few = here.model_copy(
        update={"postprocessing": here.postprocessing.model_copy(update={"max_running_total": 1, "max_running": 2})}
    )
    for _ in range(3):
        add(acc, "t_sleep_whole", '{"s": 0.8}')
    messages = look(few)
    assert len(messages) == 2  # max_running: no more than this at once from this database
    threads = [in_the_background(few, [message]) for message in messages]
    for thread in threads:
        thread.join()
    spans = acc.ask(
        "SELECT started_at, finished_at FROM headrace.job_run WHERE state = 'succeeded' ORDER BY started_at"
    )
    assert len(spans) == 2 and spans[1][0] >= spans[0][1]


def test_nothing_starts_while_the_server_has_too_much_to_do(acc: Acc, here: Settings) -> None:
    """The load guard: above max_active_sessions what is due waits, and starts when the others have finished."""
    guarded = here.model_copy(
        update={"postprocessing": here.postprocessing.model_copy(update={"max_active_sessions": 1})}
    )
    job = add(acc, "t_ok")
    busy = [psycopg2.connect(acc.dsn) for _ in range(2)]
    threads = [threading.Thread(target=lambda c=conn: c.cursor().execute("SELECT pg_sleep(2)")) for conn in busy]
    for thread in threads:
        thread.start()
    active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(2)%' AND state = 'active'"
    acc.site.until(lambda: acc.ask(active) == [(2,)], "both are busy")
    assert look(guarded) == []
    for thread in threads:
        thread.join()
    for conn in busy:
        conn.close()
    assert [message.job for message in look(guarded)] == [job]


def test_a_database_that_becomes_writable_goes_on_by_itself(acc: Acc, here: Settings) -> None:
    """Read-only, a database is told and left alone; writable again, its jobs are due."""
    name = acc.ask("SELECT current_database()")[0][0]
    job = add(acc, "t_ok")
    acc.ask(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    database.close_all()
    scope._known.clear()
    with pytest.raises(RetryLater, match="read-only"):
        look(here)
    with closing(psycopg2.connect(acc.dsn, options="-c default_transaction_read_only=off")) as conn:
        conn.autocommit = True
        conn.cursor().execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
    database.close_all()
    time.sleep(1.1)  # what is known of a read-only database lasts a second
    assert [message.job for message in look(here)] == [job]


def test_a_login_with_create_on_the_database_can_do_all_of_it(acc: Acc, empty_dsn: str) -> None:
    """No superuser, no ownership, no right on schema public: CREATE on the database is enough for setup and runs."""
    role = f"plain_{acc.ask('SELECT pg_backend_pid()')[0][0]}"
    with closing(psycopg2.connect(empty_dsn)) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        cursor.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'plain'")
        cursor.execute(f"GRANT {role} TO current_user")
        cursor.execute(f'GRANT CREATE ON DATABASE "{conn.info.dbname}" TO {role}')
        words = parse_dsn(empty_dsn) | {"user": role, "password": "plain"}
        there = {"HEADRACE_CONTROL__DSN": make_dsn(**words)}
        refused = acc.command("setup", **there)
        assert refused.returncode == 3 and "--no-hdbpp" in refused.stderr
        assert acc.command("setup", "--no-hdbpp", **there).returncode == 0
        with closing(psycopg2.connect(there["HEADRACE_CONTROL__DSN"])) as plain, plain, plain.cursor() as own:
            own.execute("CREATE SCHEMA mine CREATE TABLE done (job integer)")
            own.execute(
                "CREATE PROCEDURE mine.work(i integer, c jsonb) LANGUAGE sql AS 'INSERT INTO mine.done VALUES (i)'"
            )
        assert acc.command("add", "mine.work", "--every", "1 hour", **there).returncode == 0
        done = acc.command("run", "--here", **there)
        assert (done.returncode, done.stdout) == (0, "1 succeeded\n"), done.stderr
        cursor.execute("SELECT count(*) FROM mine.done")
        assert cursor.fetchone() == (1,)
        cursor.execute(f"DROP OWNED BY {role} CASCADE")
        cursor.execute(f"DROP ROLE {role}")


def test_a_schedule_made_wrong_while_it_runs_is_told(acc: Acc, here: Settings) -> None:
    """A run ends well although its schedule means nothing by then; the next look names the problem."""
    job = add(acc, "t_sleep_whole", '{"s": 1}')
    run = in_the_background(here, look(here))
    acc.site.until(lambda: acc.history("state") == [("running",)], "it runs")
    acc.ask("UPDATE headrace.job SET schedule_interval = NULL, cron = '99 * * * *' WHERE job_id = %s", job)
    look(here)
    run.join()
    look(here)
    assert acc.history("state") == [("succeeded",)]
    assert acc.ask("SELECT problem IS NOT NULL, next_start FROM headrace.job_state") == [(True, None)]


def test_a_run_that_waits_too_long_for_a_lock_is_stopped(acc: Acc, here: Settings) -> None:
    """No progress: a call that waits for one lock beyond blocked_minutes ends as timeout, naming who holds it."""
    impatient = here.model_copy(
        update={"postprocessing": here.postprocessing.model_copy(update={"blocked_minutes": 0.01})}
    )
    add(acc, "t_ok")
    messages = look(here)
    with closing(psycopg2.connect(acc.dsn)) as conn, conn.cursor() as cursor:
        cursor.execute("LOCK TABLE public.witness")
        run = in_the_background(impatient, messages)
        run.join(60)
        state, message = acc.history("state, message")[0]
        assert state == "timeout"
        assert f"lock held by backend {conn.info.backend_pid}" in message


def test_a_slot_cancelled_in_sql_ends_like_any_other(acc: Acc, here: Settings) -> None:
    """A queued slot cancelled in SQL: slots that passed are on record, followers know, the next slot is planned."""
    parent = add(acc, "t_ok")
    child = add(acc, "t_func", schedule_interval=None, after_job=parent)
    look(here)
    run = acc.ask("SELECT run_id FROM headrace.job_run WHERE job_id = %s", parent)[0][0]
    acc.ask("SELECT headrace.cancel_run(%s)", run)
    look(here)
    assert acc.history("job_id, state, reason") == [(parent, "cancelled", "schedule"), (child, "skipped", "after")]
    assert acc.ask("SELECT live_run, next_start > now() FROM headrace.job_state WHERE job_id = %s", parent) == [
        (None, True)
    ]


def test_a_held_row_does_not_hold_a_worker(acc: Acc, here: Settings) -> None:
    """A message whose run must not start, while somebody holds its job's row: it goes back, and settles it later."""
    job = add(acc, "t_ok")
    messages = look(here)
    acc.ask("UPDATE headrace.job SET scheduled = false WHERE job_id = %s", job)
    with open_psql(acc.dsn, "UPDATE headrace.job SET priority = 1 WHERE job_id = %s", job):
        began = time.monotonic()
        problems = execution.run_here(messages, here, timeout=timedelta(seconds=1))
        assert time.monotonic() - began < 15
        assert len(problems) == 1 and "lock" in problems[0]
    execution.run_here(messages, here, timeout=timedelta(seconds=5))
    assert acc.history("state") == [("skipped",)]


def test_a_busy_job_does_not_starve_its_lock_group(acc: Acc, here: Settings) -> None:
    """Of two jobs of one group the one whose slot is older has its turn, however often the other is due."""
    busy = add(acc, "t_ok", lock_group="g", schedule_interval="0.1 s", overlap="queue")
    patient = add(acc, "t_func", lock_group="g")
    for _ in range(4):
        execution.run_here(look(here), here, timeout=timedelta(seconds=5))
        time.sleep(0.6)  # as long as a job is held for its group
    jobs = [row[0] for row in acc.history("job_id") if row[0] == patient]
    assert jobs == [patient]
    assert [row[0] for row in acc.history("job_id")].count(busy) >= 2


def test_a_role_that_setup_grants_to_manages_jobs_of_its_own(acc: Acc) -> None:
    """`setup --grant` prints what it runs; afterwards the role adds a job, and it runs with that role's rights."""
    role = f"guest_{acc.ask('SELECT pg_backend_pid()')[0][0]}"
    acc.ask(f"CREATE ROLE {role} LOGIN PASSWORD 'guest'")
    printed = acc.command("setup", "--grant", role, "--print").stdout
    assert f'GRANT USAGE ON SCHEMA headrace TO "{role}"' in printed and f'GRANT "{role}" TO CURRENT_USER' in printed
    assert acc.command("setup", "--grant", role).returncode == 0
    acc.ask(f"GRANT INSERT ON public.witness TO {role}")
    guest = make_dsn(**(parse_dsn(acc.dsn) | {"user": role, "password": "guest"}))
    with closing(psycopg2.connect(guest)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("SELECT headrace.add_job('public.t_ok', '1 hour')")
        cursor.execute("SELECT count(*) FROM headrace.jobs")
    assert acc.command("run", "--here").stdout == "1 succeeded\n"
    assert acc.ask("SELECT role FROM public.witness") == [(role,)]
    acc.ask(f"DELETE FROM headrace.job; DROP OWNED BY {role}; DROP ROLE {role}")

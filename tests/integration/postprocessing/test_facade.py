"""TimescaleDB 2's job API in SQL: what it accepts, refuses, stores and shows, and whose rights count."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest
from psycopg2 import errors
from psycopg2.extensions import connection, make_dsn, parse_dsn

from workers import migrations

Ask = Callable[..., list[tuple[Any, ...]]]

ROUTINES = """
CREATE TABLE witness (at timestamptz DEFAULT clock_timestamp(), tag text, job_id bigint, config jsonb, who name);
CREATE PROCEDURE t_ok(job_id integer, config jsonb) LANGUAGE sql AS
    'INSERT INTO public.witness (tag, job_id, config, who) VALUES (''ok'', job_id, config, current_user)';
CREATE FUNCTION t_func(job_id bigint, config json) RETURNS integer LANGUAGE sql AS
    'INSERT INTO public.witness (tag, job_id, config, who) VALUES (''func'', job_id, config, current_user) RETURNING 7';
CREATE PROCEDURE t_commit(INOUT job_id integer, config jsonb, INOUT twice text DEFAULT 'c' || 2) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.witness (tag, config) VALUES ('c1', config);
    COMMIT;
    INSERT INTO public.witness (tag) VALUES (twice);
    ROLLBACK;
    INSERT INTO public.witness (tag) VALUES ('c3');
END $$;
CREATE PROCEDURE t_one(job_id integer) LANGUAGE sql AS '';
CREATE PROCEDURE t_three(job_id integer, config jsonb, more text) LANGUAGE sql AS '';
CREATE FUNCTION has_a(config jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF config->'a' IS NULL THEN RAISE EXCEPTION '% wants an a', current_user; END IF;
END $$;
CREATE FUNCTION wrong_check(config text) RETURNS void LANGUAGE sql AS '';
"""


@pytest.fixture
def ask(dsn: str, sql: Ask) -> Ask:
    """Ask a database with the functions and with some routines to run."""
    with closing(psycopg2.connect(dsn)) as conn:
        migrations.migrate(conn, "facade")
    sql(ROUTINES)
    return sql


@pytest.fixture
def job(ask: Ask) -> int:
    """A job in the time zone of Paris, with a config and a check."""
    return int(ask("SELECT headrace.add_job('t_ok', '1h', '{\"a\": 1}', timezone => 'Europe/Paris',"
                   " check_config => 'has_a')")[0][0])  # fmt: skip


class Guest:
    """A login of its own, which may use the functions but owns none of the tables."""

    def __init__(self, conn: connection, name: str) -> None:
        self.conn, self.name = conn, name

    def __call__(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.conn.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []


@contextmanager
def login(dsn: str, ask: Ask) -> Iterator[Guest]:
    """A new role with a connection to this database; roles are the whole server's, so it ends with the test."""
    name, password = f"guest_{secrets.token_hex(6)}", secrets.token_hex(16)
    ask(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
    try:
        with closing(psycopg2.connect(make_dsn(dsn, user=name, password=password))) as conn:
            conn.autocommit = True
            yield Guest(conn, name)
    finally:
        # Only a member of a role may drop what it owns.
        ask(f"GRANT {name} TO current_user; DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


@pytest.fixture
def stranger(dsn: str, ask: Ask) -> Iterator[Guest]:
    """A login without any right here."""
    with login(dsn, ask) as guest:
        yield guest


@pytest.fixture
def guest(ask: Ask, stranger: Guest) -> Guest:
    """A login that may define jobs, as the head of the migration tells, and has routines of its own."""
    ask(f"""
        GRANT USAGE ON SCHEMA headrace TO {stranger.name};
        GRANT SELECT, INSERT ON headrace.job_order TO {stranger.name};
        GRANT EXECUTE ON FUNCTION headrace.add_job, headrace.alter_job, headrace.delete_job, headrace.start_job,
            headrace.cancel_run TO {stranger.name};
        GRANT EXECUTE ON PROCEDURE headrace.run_job TO {stranger.name};
        GRANT {stranger.name} TO current_user;
        CREATE SCHEMA own AUTHORIZATION {stranger.name};
    """)
    stranger("""
        CREATE TABLE own.seen (who name);
        CREATE PROCEDURE own.work(job_id integer, config jsonb) LANGUAGE sql AS
            'INSERT INTO own.seen VALUES (current_user)';
        CREATE FUNCTION own.note(config jsonb) RETURNS void LANGUAGE sql AS
            'INSERT INTO own.seen VALUES (current_user)';
    """)
    return stranger


def state_of(ask: Ask, job_id: int, *columns: str) -> tuple[Any, ...]:
    """Columns of a job's state."""
    return ask(f"SELECT {', '.join(columns)} FROM headrace.job_state WHERE job_id = %s", job_id)[0]


def test_a_new_job_has_timescales_defaults_and_waits_for_the_scheduler(ask: Ask) -> None:
    """add_job() returns an integer, and the view shows what TimescaleDB's would."""
    start = datetime(2027, 3, 1, 9, tzinfo=UTC)
    [(job_id, kind)] = ask(
        "SELECT id, pg_typeof(id)::text FROM headrace.add_job('t_ok', '1h', config => '{\"a\": 1.10}',"
        " initial_start => %s, timezone => 'Europe/Paris', job_name => 'Hourly') AS id",
        start,
    )
    assert kind == "integer" and job_id >= 1_000_000
    assert ask("SELECT application_name, schedule_interval, max_runtime, max_retries, retry_period, proc_schema,"
               " proc_name, owner, scheduled, fixed_schedule, config::text, next_start, initial_start, check_schema,"
               " check_name, timezone, cron, run_at, after_job, problem FROM headrace.jobs WHERE job_id = %s",
               job_id) == [
        (f"Hourly [{job_id}]", timedelta(hours=1), timedelta(0), -1, timedelta(minutes=5), "public",
         "t_ok", "headrace", True, True, '{"a": 1.10}', None, start, None,
         None, "Europe/Paris", None, None, None, None),
    ]  # fmt: skip
    assert state_of(ask, job_id, "replan", "next_start", "live_run") == (True, None, None)
    assert ask("SELECT run_as FROM headrace.job WHERE job_id = %s", job_id) == [(None,)]


COLUMNS = {
    "jobs": "job_id application_name schedule_interval max_runtime max_retries retry_period proc_schema proc_name owner"
            " scheduled fixed_schedule config next_start initial_start hypertable_schema hypertable_name check_schema"
            " check_name timezone cron run_at after_job problem waits_for",
    "job_stats": "hypertable_schema hypertable_name job_id last_run_started_at last_successful_finish last_run_status"
                 " job_status last_run_duration next_start total_runs total_successes total_failures",
    "job_errors": "job_id proc_schema proc_name pid start_time finish_time sqlerrcode err_message",
    "job_history": "id job_id succeeded proc_schema proc_name pid start_time finish_time config sqlerrcode err_message"
                   " state scheduled_for attempt reason notices",
    "alter_job(1, if_exists => true)":
        "job_id schedule_interval max_runtime max_retries retry_period scheduled config next_start check_config"
        " fixed_schedule initial_start timezone application_name",
}  # fmt: skip


def test_columns_stand_in_timescales_order(ask: Ask, dsn: str) -> None:
    """Each view, and what alter_job() returns, has TimescaleDB's columns first, then ours."""
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        for source, columns in COLUMNS.items():
            cursor.execute(f"SELECT * FROM headrace.{source}")
            assert [column.name for column in cursor.description or ()] == columns.split(), source


def test_other_schedules_take_the_place_of_the_interval(ask: Ask, job: int) -> None:
    """Cron, one moment, or another job to follow; only a fixed interval begins with a run at once."""
    ids = ask("SELECT headrace.add_job('t_ok', NULL, cron => '30 2 * * *'),"
              " headrace.add_job('t_func', NULL, run_at => 'tomorrow'),"
              " headrace.add_job('t_commit', NULL, after_job => %s),"
              " headrace.add_job('t_ok', '1 month 1 day', fixed_schedule => false)", job)[0]  # fmt: skip
    found = ask("SELECT cron, run_at > now(), after_job, initial_start FROM headrace.jobs"
                " WHERE job_id = ANY (%s) ORDER BY job_id", list(ids))  # fmt: skip
    assert found == [("30 2 * * *", None, None, None), (None, True, None, None), (None, None, job, None), (None,) * 4]
    assert ask("SELECT initial_start > now() - interval '1 minute' FROM headrace.jobs WHERE job_id = %s", job) == [
        (True,)
    ]


ADD_REFUSED = [
    ("NULL, '1h'", "22023", "function or procedure cannot be NULL"),
    ("'t_ok', NULL", "22023", "schedule interval cannot be NULL"),
    ("'t_ok', '0'", "22023", "longer than zero"),
    ("'t_ok', '-1h'", "22023", "longer than zero"),
    ("'t_ok', '1 month 1 day'", "22023", "month intervals cannot have day or time component"),
    ("'t_ok', '1h', cron => '* * * * *'", "22023", "only one of"),
    ("'t_ok', NULL, cron => ' '", "22023", "cron cannot be empty"),
    ("'t_ok', NULL, run_at => 'infinity'", "22023", "run_at must be a finite time"),
    ("'t_ok', '1h', initial_start => '-infinity'", "22023", "initial_start must be a finite time"),
    ("'t_ok', '1h', timezone => 'EuRoPe/AmEriCa'", "22023", "such as Europe/Paris"),
    ("'t_ok', '1h', timezone => 'europe/paris'", "22023", "It is spelled Europe/Paris"),
    ("'t_ok', '1h', timezone => 'X+3'", "22023", 'time zone "X+3" is not recognized'),
    ("'nope', '1h'", "42883", '"nope" does not exist'),
    ("99999999, '1h'", "42883", "does not exist"),
    ("'t_one', '1h'", "42883", "public.t_one(integer, jsonb)"),
    ("'t_three', '1h'", "42883", "further arguments need defaults"),
    ("'t_ok', NULL, after_job => 9999", "42704", "job 9999 not found"),
    (f"'t_ok', '1h', job_name => '{'é' * 30}'", "42622", "application name too long"),
    ("'t_ok', '1h', check_config => 'wrong_check'", "42883", "signature must be (config jsonb)"),
    ("'t_ok', '1h', '{}', check_config => 'has_a'", "P0001", "headrace wants an a"),
    ("'t_ok', '1h', check_config => 99999999", "42883", "signature must be (config jsonb)"),
]


def test_add_job_refuses_what_could_not_run(ask: Ask) -> None:
    """Each refusal has its SQLSTATE and says what to do; nothing is stored."""
    refused = [refusal(ask, f"SELECT headrace.add_job({arguments})", text) for arguments, _, text in ADD_REFUSED]
    assert refused == [(sqlstate, True) for _, sqlstate, _ in ADD_REFUSED]
    assert ask("SELECT count(*) FROM headrace.job") == [(0,)]


def refusal(ask: Ask, statement: str, text: str) -> tuple[str | None, bool]:
    """(the SQLSTATE of a statement's error, whether it has the text); said aloud, for when it is another one."""
    with pytest.raises(psycopg2.Error) as refused:
        ask(statement)
    print(statement, refused.value.pgcode, refused.value)  # noqa: T201 - pytest shows it with a failure
    return refused.value.pgcode, text in str(refused.value)


def test_altering_keeps_what_is_not_given(ask: Ask, job: int) -> None:
    """Only the given values change; the time zone stays, where TimescaleDB would lose it."""
    [before] = ask("SELECT * FROM headrace.job")
    [(start,)] = ask("SELECT initial_start FROM headrace.job")
    ask("UPDATE headrace.job_state SET replan = false")
    assert ask("SELECT max_runtime, max_retries, scheduled, config, check_config, timezone, application_name,"
               " initial_start FROM headrace.alter_job(%s, max_runtime => '5 min', max_retries => 3)", job) == [
        (timedelta(minutes=5), 3, True, {"a": 1}, "public.has_a", "Europe/Paris", f"User-Defined Action [{job}]", start)
    ]  # fmt: skip
    [after] = ask("SELECT * FROM headrace.job")
    assert [new for old, new in zip(before, after, strict=True) if old != new] == [timedelta(minutes=5), 3]
    assert state_of(ask, job, "replan") == (False,)
    ask("SELECT headrace.alter_job(%s, timezone => 'UTC', job_name => 'x', run_window => 'Mon 01:00-02:00',"
        " atomic => true, on_lost => 'skip', missed => 'all', overlap => 'queue', lock_group => 'g', priority => 4)",
        job)  # fmt: skip
    ours = "SELECT timezone, name, run_window, atomic, on_lost, missed, overlap, lock_group, priority FROM headrace.job"
    assert ask(ours) == [("UTC", f"x [{job}]", "Mon 01:00-02:00", True, "skip", "all", "queue", "g", 4)]
    assert state_of(ask, job, "replan", "priority") == (True, 4)
    ask("SELECT headrace.alter_job(%s, timezone => '', run_window => '', lock_group => '')", job)
    assert ask("SELECT timezone, run_window, lock_group FROM headrace.job") == [(None, None, None)]


def test_a_new_schedule_takes_the_place_of_the_old(ask: Ask, job: int) -> None:
    """Setting one of the four kinds clears the others; jobs cannot follow each other in a ring."""
    kinds = "SELECT schedule_interval, cron, run_at IS NOT NULL, after_job FROM headrace.job WHERE job_id = %s"
    ask("SELECT headrace.alter_job(%s, cron => '@daily')", job)
    assert ask(kinds, job) == [(None, "@daily", False, None)]
    ask("SELECT headrace.alter_job(%s, run_at => 'tomorrow')", job)
    assert ask(kinds, job) == [(None, None, True, None)]
    ask("SELECT headrace.alter_job(%s, schedule_interval => '2h')", job)
    assert ask(kinds, job) == [(timedelta(hours=2), None, False, None)]
    follower = ask("SELECT headrace.add_job('t_ok', NULL, after_job => %s)", job)[0][0]
    with pytest.raises(errors.InvalidParameterValue, match="would run after itself"):
        ask("SELECT headrace.alter_job(%s, after_job => %s)", job, follower)


def test_a_given_next_start_wins_over_the_plan(ask: Ask, job: int) -> None:
    """alter_job(next_start) settles when it runs next, also together with a new schedule, and never doubles a slot."""
    soon = datetime(2027, 1, 1, tzinfo=UTC)
    ask(
        "INSERT INTO headrace.job_run (job_id, scheduled_for, reason, state) VALUES (%s, %s, 'schedule', 'succeeded')",
        job,
        soon,
    )
    found = ask("SELECT next_start FROM headrace.alter_job(%s, schedule_interval => '2h', next_start => %s)", job, soon)
    assert found == [(soon,)]
    assert state_of(ask, job, "next_start", "slot", "reason", "replan") == (
        soon, soon + timedelta(microseconds=1), "schedule", False,
    )  # fmt: skip
    assert ask("SELECT next_start FROM headrace.job_stats") == [(soon,)]


def test_a_next_start_in_the_past_means_now(ask: Ask, job: int) -> None:
    """It is due at once and its slot is the present, so that nothing counts as missed."""
    ask("SELECT headrace.alter_job(%s, next_start => '2020-01-01')", job)
    [(slot, next_start)] = ask("SELECT now() - slot < interval '1 min', next_start FROM headrace.job_state")
    assert (slot, next_start) == (True, datetime(2020, 1, 1, tzinfo=UTC))


def test_a_live_job_is_not_made_due_a_second_time(ask: Ask, dsn: str, job: int) -> None:
    """While a run is queued or running, next_start is left to its end, with a warning."""
    ask("UPDATE headrace.job_state SET live_run = 1, replan = false")
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT next_start FROM headrace.alter_job(%s, next_start => now())", (job,))
        assert cursor.fetchall() == [(None,)]
        assert "queued or running" in conn.notices[-1]


@pytest.mark.parametrize("pausing", ["scheduled => false", "next_start => 'infinity'"])
def test_a_paused_job_has_no_next_start(ask: Ask, job: int, pausing: str) -> None:
    """Paused either way, it is Paused in job_stats until it is scheduled again."""
    ask("SELECT headrace.alter_job(%s, next_start => now())", job)
    ask(f"SELECT headrace.alter_job(%s, {pausing})", job)
    assert ask("SELECT job_status, next_start FROM headrace.job_stats") == [("Paused", None)]
    assert state_of(ask, job, "next_start") == (None,)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="is paused"):
        ask("SELECT headrace.alter_job(%s, next_start => now())", job)
    ask("SELECT headrace.alter_job(%s, scheduled => true, next_start => now())", job)
    assert ask("SELECT job_status, next_start IS NOT NULL FROM headrace.job_stats") == [("Scheduled", True)]


ALTER_REFUSED = [
    ("config => '{}', config_merge => '{}'", "22023", "cannot both be given"),
    ("config => '{}'", "P0001", "headrace wants an a"),
    ("config_merge => '{\"a\": null, \"b\": 2}', check_config => 'wrong_check'", "42883", "signature"),
    ("config_merge => '[1]'", "22023", "here are object and array"),
    ("next_start => '-infinity'", "22023", "infinity pauses it"),
    ("timezone => 'Mars'", "22023", "not recognized"),
    ("schedule_interval => '1 month 1 day'", "22023", "month intervals"),
    ("schedule_interval => '1h', cron => '* * * * *'", "22023", "only one of"),
    ("max_retries => -2", "23514", "max_retries >= '-1'"),
    ("missed => 'never'", "23514", "missed = ANY"),
    ("job_name => 'sixty-three bytes are not enough for this name and for its number'", "42622", "too long"),
]


def test_alter_job_refuses_nonsense(ask: Ask, job: int) -> None:
    """A refused change leaves the job as it was."""
    before = ask("SELECT * FROM headrace.job")
    refused = [refusal(ask, f"SELECT headrace.alter_job({job}, {given})", text) for given, _, text in ALTER_REFUSED]
    assert refused == [(sqlstate, True) for _, sqlstate, _ in ALTER_REFUSED]
    assert ask("SELECT * FROM headrace.job") == before


def test_config_merge_changes_the_given_keys(ask: Ask, job: int) -> None:
    """Keys are added and replaced in the stored config; a check can be taken off with the routine number 0."""
    merged = ask("SELECT config FROM headrace.alter_job(%s, config_merge => '{\"b\": [2]}')", job)
    assert merged == [({"a": 1, "b": [2]},)]
    assert ask("SELECT config, check_config FROM headrace.alter_job(%s, config => '{}', check_config => 0)", job) == [
        ({}, None)
    ]


def test_an_unknown_job_is_an_error_everywhere(ask: Ask, dsn: str) -> None:
    """Every function says so; only alter_job(if_exists) is content with a notice."""
    for call in ("SELECT headrace.alter_job(9999)", "SELECT headrace.delete_job(9999)",
                 "SELECT headrace.delete_job(NULL)", "CALL headrace.run_job(9999)",
                 "SELECT headrace.start_job(9999)"):  # fmt: skip
        with pytest.raises(errors.UndefinedObject, match=r"job (9999|<NULL>) not found"):
            ask(call)
    with pytest.raises(errors.UndefinedObject, match="run 5 not found"):
        ask("SELECT headrace.cancel_run(5)")
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT * FROM headrace.alter_job(9999, if_exists => true)")
        assert cursor.fetchall() == []
        assert conn.notices == ["NOTICE:  job 9999 not found, skipping\n"]


def test_rows_of_postprocessing_jobs_keep_their_definition_there(ask: Ask) -> None:
    """Their schedule is altered here; their config, name and end are not, and the error says where."""
    ask("INSERT INTO headrace.job (job_id, origin, name) VALUES (3, 'hdbpp', 'HDB++ postprocessing')")
    for call in ("SELECT headrace.alter_job(3, config => '{}')", "SELECT headrace.alter_job(3, job_name => 'x')",
                 "SELECT headrace.delete_job(3)"):  # fmt: skip
        with pytest.raises(
            errors.ObjectNotInPrerequisiteState, match=r"(UPDATE|DELETE FROM) public.postprocessing_jobs"
        ):
            ask(call)
    with pytest.raises(errors.FeatureNotSupported, match="start_job"):
        ask("CALL headrace.run_job(3)")
    ask("SELECT headrace.alter_job(3, max_retries => 2)")
    assert ask("SELECT initial_start, max_retries FROM headrace.job") == [(None, 2)]
    ask("SELECT headrace.alter_job(3, schedule_interval => '1 day')")
    ask("INSERT INTO headrace.job_run (job_id, scheduled_for, reason, proc_schema, proc_name, config)"
        " VALUES (3, now(), 'request', 'public', 't_ok', '{}')")  # fmt: skip
    assert ask("SELECT application_name, proc_schema, proc_name, config, initial_start = now() FROM headrace.jobs") == [
        ("HDB++ postprocessing", "public", "t_ok", {}, False)
    ]
    ask("UPDATE headrace.job SET gone_at = now()")
    assert ask("SELECT count(*) FROM headrace.jobs") == [(0,)]
    ask("SELECT headrace.delete_job(3)")


def running(ask: Ask, conn: connection, job_id: int) -> int:
    """A run of a job that is running in this connection's backend; its number."""
    ask("INSERT INTO headrace.job_run (job_id, scheduled_for, reason, state, started_at, backend_pid, backend_start)"
        " SELECT %s, now(), 'schedule', 'running', now(), pid, backend_start FROM pg_stat_activity WHERE pid = %s",
        job_id, conn.info.backend_pid)  # fmt: skip
    return int(ask("SELECT max(run_id) FROM headrace.job_run")[0][0])


@contextmanager
def asleep(dsn: str) -> Iterator[connection]:
    """A connection whose statement sleeps until it is cancelled; at the end it has been."""
    with closing(psycopg2.connect(dsn)) as conn, ThreadPoolExecutor(1) as thread, conn.cursor() as cursor:
        sleep = thread.submit(cursor.execute, "SELECT pg_sleep(100)")
        with closing(psycopg2.connect(dsn)) as watcher, watcher.cursor() as watching:
            watcher.autocommit = True
            for _ in range(600):  # a cancellation that comes before the statement has begun is lost
                watching.execute(
                    "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s", (conn.info.backend_pid,)
                )
                if watching.fetchone() == (True,):
                    break
                time.sleep(0.05)
        yield conn
        with pytest.raises(errors.QueryCanceled):
            sleep.result(timeout=60)


def test_deleting_a_job_ends_its_runs_and_keeps_its_history(ask: Ask, dsn: str, job: int) -> None:
    """A queued run is cancelled, a running one is told and signalled, and what followed it is named."""
    follower = ask("SELECT headrace.add_job('t_ok', NULL, after_job => %s)", job)[0][0]
    queued = ask("SELECT headrace.start_job(%s)", job)[0][0]
    with asleep(dsn) as sleeper, closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        run = running(ask, sleeper, job)
        cursor.execute("SELECT headrace.delete_job(%s)", (job,))
        conn.commit()
        assert f"will not run any more: job {follower}" in conn.notices[-1]
    assert ask("SELECT run_id, state, cancel_requested_by, cancel_requested_at IS NOT NULL FROM headrace.job_run"
               " ORDER BY run_id") == [
        (queued, "cancelled", "headrace", True),
        (run, "running", "headrace", True),
    ]  # fmt: skip
    assert ask("SELECT id, succeeded, err_message FROM headrace.job_history") == [
        (queued, False, "cancelled by headrace before it started")
    ]
    assert ask("SELECT job_id FROM headrace.jobs") == [(follower,)]


def test_a_run_is_requested_and_cancelled(ask: Ask, dsn: str, job: int) -> None:
    """start_job() queues a run for the workers; cancel_run() tells the state that it had."""
    run = ask("SELECT headrace.start_job(%s)", job)[0][0]
    assert ask("SELECT run_id, state, reason, requested_by, sent_at, job_name, scheduled_for <= clock_timestamp()"
               " FROM headrace.job_run") == [
        (run, "queued", "request", "headrace", None, f"User-Defined Action [{job}]", True)
    ]  # fmt: skip
    assert ask("SELECT headrace.cancel_run(%s)", run) == [("queued",)]
    assert ask("SELECT headrace.cancel_run(%s)", run) == [("cancelled",)]
    with asleep(dsn) as sleeper:
        run = running(ask, sleeper, job)
        assert ask("SELECT job_status FROM headrace.job_stats") == [("Running",)]
        assert ask("SELECT headrace.cancel_run(%s)", run) == [("running",)]
    assert ask("SELECT state, cancel_requested_by FROM headrace.job_run WHERE run_id = %s", run) == [
        ("running", "headrace")
    ]


def test_a_cancelled_slot_of_the_schedule_is_left_to_the_look(ask: Ask, job: int) -> None:
    """Of a queued run of the schedule itself the wish is noted; the look ends it, as it ends every other run."""
    ask("INSERT INTO headrace.job_run (job_id, scheduled_for, reason) VALUES (%s, 'tomorrow', 'schedule')", job)
    ask("UPDATE headrace.job_state SET live_run = (SELECT run_id FROM headrace.job_run), replan = false")
    assert ask("SELECT headrace.cancel_run(run_id) FROM headrace.job_run") == [("queued",)]
    assert ask("SELECT state, cancel_requested_by FROM headrace.job_run") == [("queued", "headrace")]


def test_a_backend_that_only_has_the_number_is_left_alone(ask: Ask, dsn: str, job: int) -> None:
    """The signal goes to the backend that began when the run's did, not to a later one with its number."""
    with closing(psycopg2.connect(dsn)) as other:
        run = running(ask, other, job)
        ask("UPDATE headrace.job_run SET backend_start = backend_start - interval '1 s'")
        with other.cursor() as cursor:
            cursor.execute("SELECT headrace.cancel_run(%s)", (run,))  # its own number: it would cancel itself
            assert cursor.fetchall() == [("running",)]


def test_run_job_runs_functions_and_procedures_here(ask: Ask, job: int) -> None:
    """They run in the caller's session with the stored config, SQL null for null, and leave no trace in the history."""
    function = ask("SELECT headrace.add_job('t_func', '1h')")[0][0]
    ask("CALL headrace.run_job(%s)", job)
    ask("CALL headrace.run_job(%s)", function)
    assert ask("SELECT tag, job_id, config, config IS NULL, who FROM witness ORDER BY at") == [
        ("ok", job, {"a": 1}, False, "headrace"),
        ("func", function, None, True, "headrace"),
    ]
    assert ask("SELECT total_runs FROM headrace.job_stats") == [(0,), (0,)]
    assert ask("SELECT count(*) FROM headrace.job_run") == [(0,)]


def test_run_job_lets_a_procedure_commit(ask: Ask, dsn: str) -> None:
    """Called by itself, a procedure that ends transactions works, twice; inside a transaction block it cannot."""
    committing = ask("SELECT headrace.add_job('t_commit', '1h', '{\"quote\": \"it''s\"}')")[0][0]
    ask("CALL headrace.run_job(%s)", committing)
    ask("CALL headrace.run_job(%s)", committing)
    assert ask("SELECT tag, config FROM witness ORDER BY at") == [("c1", {"quote": "it's"}), ("c3", None)] * 2
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        with pytest.raises(errors.InvalidTransactionTermination):
            cursor.execute("CALL headrace.run_job(%s)", (committing,))
        conn.rollback()


def test_a_routine_that_went_away_is_named(ask: Ask, job: int) -> None:
    """run_job() looks the routine up when it runs."""
    ask("DROP PROCEDURE t_ok")
    with pytest.raises(errors.UndefinedFunction, match=r"public.t_ok\(integer, jsonb\)"):
        ask("CALL headrace.run_job(%s)", job)
    ask("SELECT headrace.alter_job(%s, scheduled => false)", job)


def test_views_tell_what_became_of_runs(ask: Ask, job: int) -> None:
    """Successes and failures have TimescaleDB's words, and errors carry message, detail and hint."""
    ask("UPDATE headrace.job_state SET last_run_success = true, total_runs = 1, total_successes = 1")
    assert ask("SELECT last_run_status, job_status, total_runs, total_failures FROM headrace.job_stats") == [
        ("Success", "Scheduled", 1, 0)
    ]
    ask("UPDATE headrace.job_state SET last_run_success = false")
    assert ask("SELECT last_run_status FROM headrace.job_stats") == [("Failed",)]
    states = ("succeeded", "failed", "timeout", "lost", "skipped", "cancelled")
    for second, state in enumerate((*states, "queued")):
        error = ["P7001", "boom", "some detail.", "some hint"] if state == "failed" else []
        ask("INSERT INTO headrace.job_run (job_id, scheduled_for, reason, state, proc_schema, proc_name,"
            " sqlstate, message, detail, hint)"
            " SELECT %s, to_timestamp(%s), 'schedule', %s, 'public', 't_x', e[1], e[2], e[3], e[4]"
            " FROM (SELECT %s::text[]) AS error (e)", job, second, state, error)  # fmt: skip
    assert ask("SELECT succeeded, state, proc_name FROM headrace.job_history ORDER BY id") == [
        (state == "succeeded", state, "t_x") for state in states
    ]
    assert ask("SELECT sqlerrcode, err_message FROM headrace.job_errors ORDER BY finish_time, err_message") == [
        ("P7001", "boom. some detail. some hint"),
        (None, "the run was lost: its worker or its backend is gone"),
        (None, None),
    ]


def test_a_stranger_can_do_nothing(ask: Ask, stranger: Guest, job: int) -> None:
    """Without grants neither functions nor tables nor views can be used, not even with USAGE of the schema."""
    ask(f"GRANT USAGE ON SCHEMA headrace TO {stranger.name}")
    for statement in ("SELECT headrace.add_job('t_ok', '1h')", f"SELECT headrace.alter_job({job})",
                      f"SELECT headrace.delete_job({job})", f"SELECT headrace.start_job({job})",
                      "SELECT headrace.cancel_run(1)", f"CALL headrace.run_job({job})",
                      "SELECT * FROM headrace.job", "SELECT * FROM headrace.jobs", "SELECT * FROM headrace.job_errors",
                      "INSERT INTO headrace.job_order (action) VALUES ('add')"):  # fmt: skip
        with pytest.raises(errors.InsufficientPrivilege, match="permission denied"):
            stranger(statement)


def test_a_guest_defines_jobs_that_run_as_itself(ask: Ask, guest: Guest) -> None:
    """After the grants its job belongs to it and runs as it, its check runs as it, and it may change and delete it."""
    job_id = guest("SELECT headrace.add_job('own.work', '1h', check_config => 'own.note')")[0][0]
    assert ask("SELECT owner, run_as FROM headrace.job") == [(guest.name, guest.name)]
    assert guest("SELECT who FROM own.seen") == [(guest.name,)]
    guest("SELECT headrace.alter_job(%s, config => '{}')", job_id)
    guest("CALL headrace.run_job(%s)", job_id)
    assert guest("SELECT who FROM own.seen") == [(guest.name,)] * 3
    run = guest("SELECT headrace.start_job(%s)", job_id)[0][0]
    assert ask("SELECT requested_by FROM headrace.job_run") == [(guest.name,)]
    assert guest("SELECT headrace.cancel_run(%s)", run) == [("queued",)]
    ask("SELECT headrace.alter_job(%s, scheduled => false)", job_id)
    guest("SELECT headrace.delete_job(%s)", job_id)
    assert ask("SELECT count(*) FROM headrace.job") == [(0,)]


def test_a_guest_cannot_touch_the_jobs_of_others(ask: Ask, guest: Guest, job: int) -> None:
    """To alter, delete, start, run or cancel somebody else's is refused, and the tables stay shut."""
    run = ask("SELECT headrace.start_job(%s)", job)[0][0]
    before = ask("SELECT * FROM headrace.job")
    for statement in (f"SELECT headrace.alter_job({job}, scheduled => false)", f"SELECT headrace.delete_job({job})",
                      f"SELECT headrace.start_job({job})", f"CALL headrace.run_job({job})"):  # fmt: skip
        with pytest.raises(errors.InsufficientPrivilege, match=f"must be owner of job {job}"):
            guest(statement)
    with pytest.raises(errors.InsufficientPrivilege, match=f"must be owner of the job of run {run}"):
        guest("SELECT headrace.cancel_run(%s)", run)
    for table in ("job", "job_state", "job_run", "jobs", "job_stats"):
        with pytest.raises(errors.InsufficientPrivilege, match="permission denied"):
            guest(f"SELECT * FROM headrace.{table}")
    assert ask("SELECT * FROM headrace.job") == before
    ask("SELECT headrace.delete_job(%s)", job)
    with pytest.raises(errors.InsufficientPrivilege, match="must be owner"):
        guest("SELECT headrace.cancel_run(%s)", run)


def test_a_guest_needs_execute_and_the_login_its_membership(ask: Ask, guest: Guest) -> None:
    """A routine that it may not execute is refused, and so is a role that the workers cannot take on."""
    ask("REVOKE EXECUTE ON PROCEDURE t_ok FROM PUBLIC")
    with pytest.raises(errors.InsufficientPrivilege, match=r"permission denied for function .*t_ok"):
        guest("SELECT headrace.add_job('t_ok', '1h')")
    ask(f"REVOKE {guest.name} FROM current_user")
    with pytest.raises(errors.InsufficientPrivilege, match=f"GRANT {guest.name} TO headrace"):
        guest("SELECT headrace.add_job('own.work', '1h')")


def test_a_guest_cannot_pose_as_somebody_else(ask: Ask, guest: Guest) -> None:
    """A caller written into an order counts for nothing, nor do the private functions, even when granted."""
    guest("INSERT INTO headrace.job_order (caller, action, proc, schedule_interval)"
          " VALUES ('headrace', 'add', 'own.work', '1h')")  # fmt: skip
    assert ask("SELECT owner, run_as FROM headrace.job") == [(guest.name, guest.name)]
    with pytest.raises(errors.CaseNotFound):
        guest("INSERT INTO headrace.job_order (action) VALUES ('drop')")
    write = ("SELECT headrace.write_job(jsonb_populate_record(NULL::headrace.job_order, jsonb_build_object("
             "'caller', current_user, 'proc', 'own.work', 'schedule_interval', '1h')))")  # fmt: skip
    with pytest.raises(errors.InsufficientPrivilege, match="permission denied for function write_job"):
        guest(write)
    ask(f"GRANT EXECUTE ON ALL ROUTINES IN SCHEMA headrace TO {guest.name}")
    with pytest.raises(errors.InsufficientPrivilege, match="permission denied for sequence job_number"):
        guest(write)
    guest("CREATE VIEW own.orders AS SELECT * FROM headrace.job_order;"
          " CREATE TRIGGER obey INSTEAD OF INSERT ON own.orders"
          " FOR EACH ROW EXECUTE FUNCTION headrace.obey_order()")  # fmt: skip
    with pytest.raises(errors.InsufficientPrivilege, match=r"belongs on headrace.job_order alone"):
        guest("INSERT INTO own.orders (caller, action, proc, schedule_interval)"
              " VALUES ('headrace', 'add', 'own.work', '1h')")  # fmt: skip


def test_a_definer_function_of_a_guest_acts_for_the_guest(ask: Ask, guest: Guest) -> None:
    """Whoever calls it, and were it from an index while the login maintains the table, the job is the guest's."""
    guest("""
        CREATE FUNCTION own.trap() RETURNS integer LANGUAGE sql SECURITY DEFINER AS
            $$SELECT headrace.add_job('own.work', '1h')$$;
        CREATE FUNCTION own.key(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN own.trap(); END';
        CREATE TABLE own.bait AS SELECT 1 AS n;
        CREATE INDEX ON own.bait (own.key(n));
    """)
    ask("SELECT own.trap()")
    ask("REINDEX TABLE own.bait")
    ask(f"SET ROLE {guest.name}; SELECT headrace.add_job('own.work', '1h'); RESET ROLE")
    assert ask("SELECT DISTINCT owner, run_as FROM headrace.job") == [(guest.name, guest.name)]
    assert ask("SELECT count(*) FROM headrace.job")[0][0] >= 4


def test_an_administrator_is_not_made_to_run_a_strangers_check(ask: Ask, guest: Guest) -> None:
    """The login may pause a guest's job, but not have the guest's check function run with its own rights."""
    job_id = guest("SELECT headrace.add_job('own.work', '1h', check_config => 'own.note')")[0][0]
    with pytest.raises(errors.InsufficientPrivilege, match="would run with the rights of headrace"):
        ask("SELECT headrace.alter_job(%s, config => '{}')", job_id)
    ask("SELECT headrace.alter_job(%s, config => '{\"a\": 2}', check_config => 'has_a', scheduled => false)", job_id)
    assert ask("SELECT config, owner, run_as FROM headrace.job") == [({"a": 2}, guest.name, guest.name)]


def test_a_role_with_few_rights_can_install_and_use_it(empty_dsn: str) -> None:
    """CREATE on the database is enough: no superuser, no extension, no other role."""
    with closing(psycopg2.connect(empty_dsn)) as admin:
        admin.autocommit = True
        owner = Guest(admin, "headrace")
        with login(empty_dsn, owner) as plain:
            database = parse_dsn(empty_dsn)["dbname"]
            owner(f"GRANT CREATE ON DATABASE {database} TO {plain.name}")
            plain.conn.autocommit = False
            assert migrations.migrate(plain.conn, "postprocessing")
            assert migrations.migrate(plain.conn, "facade") == ["0005_facade.sql"]
            plain.conn.autocommit = True
            plain("CREATE SCHEMA own; CREATE PROCEDURE own.work(bigint, json) LANGUAGE sql AS 'SELECT 1'")
            job_id = plain("SELECT headrace.add_job('own.work', '1h')")[0][0]
            assert plain("SELECT owner, run_as FROM headrace.job") == [(plain.name, None)]
            plain("CALL headrace.run_job(%s)", job_id)
            plain("SELECT headrace.delete_job(%s)", job_id)


def test_everything_that_people_use_says_what_it_is(ask: Ask) -> None:
    """Each function and each view of the API has its comment, and nothing of it is open to all."""
    views = ask("SELECT relname, obj_description(oid, 'pg_class') IS NOT NULL, relacl IS NULL FROM pg_class"
                " WHERE relnamespace = 'headrace'::regnamespace AND relkind = 'v'")  # fmt: skip
    assert sorted(views) == [
        (name, True, True) for name in ("job_errors", "job_history", "job_order", "job_stats", "jobs")
    ]
    called = ask("SELECT proname FROM pg_proc WHERE pronamespace = 'headrace'::regnamespace"
                 " AND obj_description(oid, 'pg_proc') IS NOT NULL")  # fmt: skip
    assert {"add_job", "alter_job", "delete_job", "run_job", "start_job", "cancel_run"} <= {name for (name,) in called}
    assert ask("SELECT proname FROM pg_proc WHERE pronamespace = 'headrace'::regnamespace"
               " AND has_function_privilege('public', oid, 'EXECUTE')") == []  # fmt: skip

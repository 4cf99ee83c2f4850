"""The procedures that replace hdbpp-ttl and hdbpp-reorder-chunks: what they delete, commit, report and refuse."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection  # noqa: N812

PROCEDURES = Path(__file__).parents[3] / "sql" / "procedures"
# A zone where it is noon now: no test crosses midnight. The sign of Etc/GMT is that of the old POSIX rule.
NOON = f"Etc/GMT{datetime.now(UTC).hour - 12:+d}"

# Attribute 1 (plain table, 2 days), 2 (the same table, 25 hours = 2 days), 3 (partitioned, 10 days); 4 and 5 keep all.
ARCHIVE = """
CREATE TABLE att_conf (att_conf_id serial PRIMARY KEY, att_name text NOT NULL, table_name text NOT NULL, ttl integer);
CREATE TABLE att_scalar_devdouble (att_conf_id integer NOT NULL, data_time timestamptz NOT NULL, value_r float8);
CREATE INDEX ON att_scalar_devdouble (att_conf_id, data_time);
CREATE TABLE att_scalar_devlong (att_conf_id integer NOT NULL, data_time timestamptz NOT NULL, value_r bigint)
    PARTITION BY RANGE (data_time);
CREATE INDEX ON att_scalar_devlong (att_conf_id, data_time);
DO $$
BEGIN
    FOR n IN 0..40 LOOP
        EXECUTE format('CREATE TABLE att_scalar_devlong_%s PARTITION OF att_scalar_devlong'
            ' FOR VALUES FROM (%L) TO (%L)', n, CURRENT_DATE - 35 + n, CURRENT_DATE - 34 + n);
    END LOOP;
END
$$;
INSERT INTO att_conf VALUES
    (1, 'sys/a/1/plain', 'att_scalar_devdouble', 48),
    (2, 'sys/a/1/odd', 'att_scalar_devdouble', 25),
    (3, 'sys/a/1/parts', 'public.att_scalar_devlong', 240),
    (4, 'sys/a/1/null', 'att_scalar_devdouble', NULL),
    (5, 'sys/a/1/zero', 'att_scalar_devlong', 0);
-- One row at each noon of the last 30 days, today's included.
INSERT INTO att_scalar_devdouble
SELECT id, CURRENT_DATE - n + time '12:00', n FROM generate_series(0, 29) AS n, unnest('{1,2,4}'::integer[]) AS id;
INSERT INTO att_scalar_devlong
SELECT id, CURRENT_DATE - n + time '12:00', n FROM generate_series(0, 29) AS n, unnest('{3,5}'::integer[]) AS id;
"""
# The old script's report tables.
REPORT = """
CREATE TABLE ttl_jobs (ttl_job_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, start_time timestamptz NOT NULL,
    duration interval, error_desc text);
CREATE TABLE ttl_stats (ttl_job_id bigint REFERENCES ttl_jobs, att_conf_id integer, deleted_rows bigint NOT NULL,
    duration interval, error_desc text, PRIMARY KEY (att_conf_id, ttl_job_id));
"""
EVERYTHING_KEPT = {1: 30, 2: 30, 3: 30, 4: 30, 5: 30}
EXPIRED_GONE = {1: 3, 2: 3, 3: 11, 4: 30, 5: 30}

Ask = Callable[..., list[tuple[Any, ...]]]


@contextmanager
def session(dsn: str) -> Iterator[Connection]:
    """A connection in autocommit whose clock stands at noon and which keeps every notice."""
    conn = psycopg2.connect(dsn, options=f"-c timezone={NOON}")
    conn.autocommit = True
    conn.notices = []
    with closing(conn):
        yield conn


def install(conn: Connection, name: str) -> None:
    """Run one procedure's file as the installer does: its text at once, inside a transaction."""
    conn.autocommit = False
    with conn, conn.cursor() as cursor:
        cursor.execute((PROCEDURES / f"{name}.sql").read_text())
    conn.autocommit = True


@pytest.fixture
def hdb(dsn: str) -> Iterator[Connection]:
    """A session in an archive with old rows and the procedure installed."""
    with session(dsn) as conn:
        with conn.cursor() as cursor:
            cursor.execute(ARCHIVE)
        install(conn, "hdbpp_ttl")
        yield conn


@pytest.fixture
def ask(dsn: str) -> Iterator[Ask]:
    """Ask the archive in a session of its own."""
    with session(dsn) as conn, conn.cursor() as cursor:

        def rows(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

        yield rows


def run(conn: Connection, config: str | None = "{}") -> list[str]:
    """Call the procedure as a job does; what it said."""
    del conn.notices[:]
    with conn.cursor() as cursor:
        cursor.execute("CALL headrace.hdbpp_ttl(7, %s::jsonb)", (config,))
    return list(conn.notices)


def run_in_vain(conn: Connection, config: str | None = "{}") -> psycopg2.Error:
    """Call the procedure, which must fail; its error."""
    with pytest.raises(psycopg2.Error) as caught:
        run(conn, config)
    return caught.value


def kept(ask: Ask) -> dict[int, int]:
    """Rows per attribute that are still in the archive."""
    return dict(
        ask(
            "SELECT att_conf_id, count(*) FROM (SELECT att_conf_id FROM att_scalar_devdouble"
            " UNION ALL SELECT att_conf_id FROM att_scalar_devlong) AS every GROUP BY 1 ORDER BY 1"
        )
    )


def fill(ask: Ask, count: int) -> None:
    """Give attribute 1 so many rows of three days ago, a second apart, in place of what it had."""
    ask("DELETE FROM att_scalar_devdouble WHERE att_conf_id = 1")
    ask(
        "INSERT INTO att_scalar_devdouble"
        " SELECT 1, CURRENT_DATE - 3 + n * interval '1 s', n FROM generate_series(1, %s) AS n",
        count,
    )


def rows_of_one(ask: Ask) -> int:
    """How many rows attribute 1 has."""
    return int(ask("SELECT count(*) FROM att_scalar_devdouble WHERE att_conf_id = 1")[0][0])


def watch(ask: Ask, table: str, attribute: int) -> None:
    """Note in the table `seen` which transaction deletes each row of an attribute."""
    ask("CREATE TABLE seen (xid bigint)")
    ask(
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO public.seen VALUES (txid_current()); RETURN OLD; END'"
    )
    ask(
        f"CREATE TRIGGER see BEFORE DELETE ON {table} FOR EACH ROW WHEN (OLD.att_conf_id = {attribute})"
        " EXECUTE FUNCTION see()"
    )


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something in the server that nothing announces."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.parametrize("config", ["{}", None, "null", '{"dry_run": null, "batch_rows": 4}'])
def test_rows_older_than_their_ttl_go_and_no_others(hdb: Connection, ask: Ask, config: str | None) -> None:
    """Hours become whole days, rounded up; today and N days before it stay; ttl 0 or null keeps everything."""
    notices = run(hdb, config)
    assert kept(ask) == EXPIRED_GONE
    assert ask("SELECT max(value_r) FROM att_scalar_devdouble WHERE att_conf_id = 2") == [(2.0,)]
    assert [line for line in notices if "WARNING" in line] == []
    assert "sys/a/1/parts: 19 rows from before" in notices[2]
    assert "73 rows of 3 attributes deleted; 3 attributes looked at, 0 failures" in notices[-1]
    assert len(run(hdb, config)) == 1  # nothing more to delete: the total alone


def test_each_batch_is_a_transaction_of_its_own(hdb: Connection, ask: Ask) -> None:
    """1050 rows in batches of 100 are deleted by eleven transactions, none of which deletes more than 100."""
    fill(ask, 1050)
    watch(ask, "att_scalar_devdouble", 1)
    run(hdb, '{"batch_rows": 100}')
    assert ask("SELECT count(*) FROM seen GROUP BY xid ORDER BY 1") == [(50,)] + [(100,)] * 10
    assert rows_of_one(ask) == 0


@pytest.mark.parametrize("table", ["att_scalar_devdouble", "att_scalar_devlong"])
def test_rows_of_one_moment_are_still_deleted_in_batches(hdb: Connection, ask: Ask, table: str) -> None:
    """Many rows with the same time, in one partition or many, neither stop the batches nor widen them."""
    ask(f"INSERT INTO {table} SELECT 3, CURRENT_DATE - 11 - n % 3 + time '12:00', n FROM generate_series(1, 900) AS n")
    ask("UPDATE att_conf SET table_name = %s WHERE att_conf_id = 3", table)
    watch(ask, table, 3)
    run(hdb, '{"batch_rows": 70}')
    assert ask("SELECT max(rows) FROM (SELECT count(*) AS rows FROM seen GROUP BY xid) AS each") == [(70,)]
    assert ask(f"SELECT count(*) FROM {table} WHERE att_conf_id = 3 AND data_time < CURRENT_DATE - 10") == [(0,)]


def test_max_rows_bounds_a_run_and_the_next_goes_on(hdb: Connection, ask: Ask) -> None:
    """A run deletes exactly max_rows; so many runs as it takes end where one without the bound ends."""
    notices = run(hdb, '{"max_rows": 40, "batch_rows": 15}')
    assert sum(EVERYTHING_KEPT.values()) - sum(kept(ask).values()) == 40
    assert any("max_rows is reached" in line for line in notices)
    run(hdb, '{"max_rows": 40, "batch_rows": 15}')
    assert kept(ask) == EXPIRED_GONE


def test_a_dry_run_counts_and_deletes_nothing(hdb: Connection, ask: Ask) -> None:
    """Each attribute that would lose rows has a NOTICE with their number; archive and report stay as they are."""
    ask(REPORT)
    notices = run(hdb, '{"dry_run": true, "db_report": true, "max_rows": 5}')
    assert kept(ask) == EVERYTHING_KEPT
    assert ask("SELECT count(*) FROM ttl_jobs") == [(0,)]
    assert [line.split(": ", 2)[2].split(" from")[0] for line in notices[:3]] == [
        "sys/a/1/plain: 27 rows", "sys/a/1/odd: 27 rows", "sys/a/1/parts: 19 rows",
    ]  # fmt: skip
    assert all("would be deleted" in line for line in notices)
    assert len(notices) == 4


def test_compressed_days_are_left_alone(hdb: Connection, ask: Ask) -> None:
    """What is older than compress_threshold_days stays, and so does everything when no day lies between the bounds."""
    run(hdb, '{"compress_threshold_days": 2}')
    assert kept(ask) == EVERYTHING_KEPT
    run(hdb, '{"compress_threshold_days": 20}')
    assert kept(ask) == {1: 12, 2: 12, 3: 20, 4: 30, 5: 30}
    assert ask("SELECT min(value_r), max(value_r) FROM att_scalar_devlong WHERE att_conf_id = 3 AND value_r > 10") == [
        (21, 29)
    ]


def test_a_day_begins_at_midnight_of_the_configured_zone(hdb: Connection, ask: Ask) -> None:
    """The zone in config decides which day a row belongs to; without one the session's does."""
    ask("DELETE FROM att_scalar_devdouble")
    ask("INSERT INTO att_scalar_devdouble SELECT 1, (CURRENT_DATE - 2)::timestamptz + n * interval '1 s', n"
        " FROM unnest('{-1,0}'::integer[]) AS n")  # fmt: skip
    west = f"Etc/GMT{min(datetime.now(UTC).hour - 6, 12):+d}"  # the same date, but its midnight comes later
    assert ask("SELECT (now() AT TIME ZONE %s)::date = CURRENT_DATE, (now() AT TIME ZONE %s)::time < time '12:00'",
               west, west) == [(True, True)]  # fmt: skip
    run(hdb, f'{{"timezone": "{NOON}"}}')
    assert ask("SELECT value_r FROM att_scalar_devdouble") == [(0.0,)]
    run(hdb, f'{{"timezone": "{west}"}}')
    assert rows_of_one(ask) == 0


def test_an_attribute_that_fails_stops_no_other(hdb: Connection, ask: Ask) -> None:
    """Missing and hostile tables each give a warning; the others are done; then the job fails with their names."""
    ask("CREATE TABLE y (att_conf_id integer, data_time timestamptz)")
    ask("CREATE TABLE no_time (att_conf_id integer, data_tim timestamptz)")
    ask("CREATE TABLE no_zone (att_conf_id integer, data_time timestamp)")
    ask("CREATE VIEW looks_like_one AS SELECT * FROM att_scalar_devdouble")
    bad = {
        "missing": "att_scalar_devnone", "hostile": "x; DROP TABLE y", "quoted": 'y"; DROP TABLE y; --', "empty": "",
        "dots": "a.b.c.d", "no time": "no_time", "no zone": "no_zone", "view": "looks_like_one", "number": "1259",
        "tail": "y WHERE true; --", "percent": "%s %1$I",
    }  # fmt: skip
    for name, table in bad.items():
        ask("INSERT INTO att_conf VALUES (-nextval('att_conf_att_conf_id_seq'), %s, %s, 24)", name, table)  # fmt: skip
    ask("INSERT INTO att_conf VALUES (99, 'negative', 'att_scalar_devdouble', -48)")
    ask("INSERT INTO y SELECT id, '2001-01-01' FROM unnest('{1,-1,-2,-3,-4,-10}'::integer[]) AS id")

    error = run_in_vain(hdb)
    assert kept(ask) == EXPIRED_GONE
    assert ask("SELECT count(*) FROM y") == [(6,)]
    assert error.pgcode == "P0001"
    assert "12 failures in 15 attributes" in str(error)
    warnings = [line for line in hdb.notices if line.startswith("WARNING")]
    assert len(warnings) == 12
    for name in [*bad, "negative"]:
        assert f"{name} (" in str(error.diag.message_detail)
        assert any(f"hdbpp_ttl: {name}: " in line for line in warnings)
    assert "missing (there is no table att_scalar_devnone)" in str(error)
    assert "no time (table public.no_time lacks the column att_conf_id or data_time)" in str(error.diag.message_detail)
    assert "timestamp without time zone, not a timestamp with time zone" in str(error.diag.message_detail)
    assert "its ttl is negative" in str(error.diag.message_detail)


def test_rows_that_something_keeps_are_a_failure_and_no_endless_loop(hdb: Connection, ask: Ask) -> None:
    """A trigger that refuses each deletion fails its attributes; those of other tables are done."""
    ask("CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    ask("CREATE TRIGGER keep BEFORE DELETE ON att_scalar_devdouble FOR EACH ROW EXECUTE FUNCTION keep()")
    error = run_in_vain(hdb, '{"batch_rows": 5}')
    assert "sys/a/1/plain (a trigger, a policy or another session keeps its rows" in str(error)
    assert kept(ask) == EVERYTHING_KEPT | {3: 11}


def test_names_may_be_mixed_and_qualified(hdb: Connection, ask: Ask) -> None:
    """A table is found as written, with or without its schema or quotes, or folded; an exact name comes first."""
    ask('CREATE SCHEMA "My Sch"')
    ask("CREATE SCHEMA elsewhere")
    tables = {
        "Mixed": '"My Sch"."Mixed"', "My Sch.Whole": '"My Sch"."Whole"', '"My Sch"."Quoted"': '"My Sch"."Quoted"',
        "elsewhere.plain": "elsewhere.plain", "ELSEWHERE.Folded": "elsewhere.folded", "on_path": "public.on_path",
        "a.dot": '"My Sch"."a.dot"', "Twice": '"My Sch"."Twice"',
    }  # fmt: skip
    ask('CREATE TABLE "My Sch".att_conf (LIKE public.att_conf)')
    ask('CREATE TABLE "My Sch".twice (att_conf_id integer, data_time timestamptz)')
    ask("INSERT INTO \"My Sch\".twice VALUES (1, '2001-01-01'), (8, '2001-01-01')")
    for number, (written, table) in enumerate(tables.items(), 1):
        ask(f"CREATE TABLE {table} (att_conf_id bigint, data_time timestamptz)")
        ask(f"INSERT INTO {table} VALUES (%s, '2001-01-01'), (%s, now()), (0, '2001-01-01')", number, number)
        ask('INSERT INTO "My Sch".att_conf VALUES (%s, %s, %s, 1)', number, written, written)
    run(hdb, '{"schema": "My Sch"}')
    assert {table: ask(f"SELECT count(*) FROM {table}") for table in tables.values()} == {
        table: [(2,)] for table in tables.values()
    }
    assert ask('SELECT count(*) FROM "My Sch".twice') == [(2,)]
    assert kept(ask) == EVERYTHING_KEPT


def test_hundreds_of_attributes_outlive_the_commits(hdb: Connection, ask: Ask) -> None:
    """The list of attributes is read to its end although every batch commits."""
    ask("INSERT INTO att_conf SELECT n, 'many/' || n, 'att_scalar_devdouble', 24 FROM generate_series(100, 399) AS n")
    ask("INSERT INTO att_scalar_devdouble SELECT n, CURRENT_DATE - 5, n FROM generate_series(100, 399) AS n")
    assert "373 rows of 303 attributes" in run(hdb)[-1]
    assert kept(ask) == EXPIRED_GONE


def test_a_killed_run_loses_nothing_and_the_next_finishes(hdb: Connection, dsn: str, ask: Ask) -> None:
    """While it runs others see the batches it finished; they stay when its backend is terminated."""
    fill(ask, 1050)
    pid = hdb.info.backend_pid
    errors: list[psycopg2.Error] = []

    def victim() -> None:
        try:
            run(hdb, '{"batch_rows": 100}')
        except psycopg2.Error as error:
            errors.append(error)

    with session(dsn) as holder:
        holder.autocommit = False
        holder.cursor().execute(
            "SELECT 1 FROM att_scalar_devdouble WHERE att_conf_id = 1 AND value_r = 350 FOR UPDATE"
        )  # in the fourth batch
        thread = threading.Thread(target=victim)
        thread.start()
        waits = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        until(lambda: ask(waits, pid), "the run meets the locked row")
        assert rows_of_one(ask) == 750
        ask("SELECT pg_terminate_backend(%s)", pid)
        thread.join(30)
        assert not thread.is_alive()
    assert [isinstance(error, psycopg2.OperationalError) for error in errors] == [True]
    assert rows_of_one(ask) == 750
    assert kept(ask) == EVERYTHING_KEPT | {1: 750}
    with session(dsn) as again:
        run(again, '{"batch_rows": 100}')
    assert rows_of_one(ask) == 0
    assert kept(ask) == {who: rows for who, rows in EXPIRED_GONE.items() if who != 1}


def test_the_report_is_that_of_the_old_script(hdb: Connection, ask: Ask) -> None:
    """One row of ttl_jobs per run and one of ttl_stats per attribute, those without deletions and failures included."""
    ask(REPORT)
    ask("DELETE FROM att_scalar_devdouble WHERE att_conf_id = 2")
    run(hdb, '{"db_report": true}')
    assert ask("SELECT att_conf_id, deleted_rows, duration > interval '0', error_desc FROM ttl_stats ORDER BY 1") == [
        (1, 27, True, None), (2, 0, True, None), (3, 19, True, None),
    ]  # fmt: skip
    assert ask("SELECT now() - start_time < interval '1 min', duration > interval '0', error_desc FROM ttl_jobs") == [
        (True, True, None)
    ]
    ask("UPDATE att_conf SET table_name = 'gone' WHERE att_conf_id = 2")
    run_in_vain(hdb, '{"db_report": true}')
    assert ask("SELECT att_conf_id, error_desc FROM ttl_stats WHERE ttl_job_id = 2 AND error_desc IS NOT NULL") == [
        (2, "there is no table gone")
    ]
    assert "sys/a/1/odd (there is no table gone)" in ask("SELECT error_desc FROM ttl_jobs WHERE ttl_job_id = 2")[0][0]


def test_a_report_that_cannot_be_written_fails_the_job_but_not_the_deletions(hdb: Connection, ask: Ask) -> None:
    """Without the report's tables the old rows go all the same, and the run says that there is no report."""
    error = run_in_vain(hdb, '{"db_report": true}')
    assert "db_report (relation" in str(error)
    assert kept(ask) == EXPIRED_GONE


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ('{"dryrun": true}', "hdbpp_ttl knows no dryrun"),
        ('{"batch_rows": 0}', "batch_rows must be a whole number from 1"),
        ('{"batch_rows": "100; DROP TABLE att_conf"}', "batch_rows must be a whole number from 1"),
        ('{"max_rows": 1.5}', "max_rows must be a whole number from 1"),
        ('{"dry_run": 1}', "dry_run must be true or false"),
        ('{"db_report": {"enable": true}}', "db_report must be true or false"),
        ('{"timezone": "EuRoPe/AmEriCa"}', 'time zone "EuRoPe/AmEriCa" not recognized'),
        ('{"schema": "nowhere"}', "schema nowhere has no table att_conf"),
        ("[]", "the config of job 7 is not a JSON object"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(hdb: Connection, ask: Ask, config: str, complaint: str) -> None:
    """A wrong key or value fails with its name before anything is deleted."""
    assert complaint in str(run_in_vain(hdb, config))
    assert kept(ask) == EVERYTHING_KEPT


def test_nothing_is_deleted_inside_a_transaction(hdb: Connection, ask: Ask) -> None:
    """A caller that would hold the locks of the whole run is refused at once, with PostgreSQL's own error."""
    hdb.autocommit = False
    assert run_in_vain(hdb).pgcode == "2D000"
    hdb.rollback()
    assert kept(ask) == EVERYTHING_KEPT


def test_an_ordinary_role_installs_and_runs_it(hdb: Connection, dsn: str, ask: Ask) -> None:
    """The owner of schema headrace needs nothing else; a table it may not delete from fails alone."""
    role = f"ttl_{os.getpid()}"  # roles belong to the server, not to this test's database
    ask("DROP PROCEDURE headrace.hdbpp_ttl")
    ask(f"CREATE ROLE {role}")
    ask(f"GRANT {role} TO CURRENT_USER")
    try:
        ask(f"ALTER SCHEMA headrace OWNER TO {role}")
        ask(f"GRANT SELECT ON att_conf, att_scalar_devdouble, att_scalar_devlong TO {role}")
        ask(f"GRANT DELETE ON att_scalar_devlong TO {role}")
        with hdb.cursor() as cursor:
            cursor.execute(f"SET ROLE {role}")
        for name in ("hdbpp_ttl", "hdbpp_ttl", "hdbpp_reorder_chunks", "hdbpp_reorder_chunks"):
            install(hdb, name)
        error = run_in_vain(hdb)
        assert "sys/a/1/plain (permission denied for table att_scalar_devdouble)" in str(error)
        assert kept(ask) == EVERYTHING_KEPT | {3: 11}
    finally:
        hdb.close()
        ask("ALTER SCHEMA headrace OWNER TO CURRENT_USER")
        ask(f"DROP OWNED BY {role}")
        ask(f"DROP ROLE {role}")


@pytest.mark.parametrize("config", ["{}", None, '{"tables": ["att_scalar_devdouble"], "older_than": "7 days"}'])
def test_reordering_without_timescaledb_is_refused(dsn: str, config: str | None) -> None:
    """The job says what is missing and what to do; its table for the chunks done is there, and stays empty."""
    with session(dsn) as conn, conn.cursor() as cursor:
        install(conn, "hdbpp_reorder_chunks")
        with pytest.raises(psycopg2.errors.FeatureNotSupported) as caught:
            cursor.execute("CALL headrace.hdbpp_reorder_chunks(7, %s::jsonb)", (config,))
        assert caught.value.pgcode == "0A000"
        assert caught.value.diag.message_primary == (
            "TimescaleDB is not installed in this database; hdbpp_reorder_chunks has nothing to reorder"
        )
        assert caught.value.diag.message_hint == "Remove job 7, or install the extension timescaledb."
        cursor.execute("SELECT count(*) FROM headrace.reordered_chunk")
        assert cursor.fetchone() == (0,)

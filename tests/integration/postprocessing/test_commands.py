"""The commands about jobs: adding, listing, next runs, checking, setting up; and looks at odd rows."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest

from workers.messages import RunJob
from workers.postprocessing import api
from workers.settings import Settings
from workers.sql_files import queries

if TYPE_CHECKING:
    from tests.integration.postprocessing.conftest import Acc, Ask

PARIS = [
    ("2027-03-26 12:00+00", ["2027-03-27 01:30", "2027-03-28 01:30", "2027-03-29 00:30"]),
    ("2027-10-29 12:00+00", ["2027-10-30 00:30", "2027-10-31 00:30", "2027-11-01 01:30"]),
]


@pytest.mark.parametrize(("start", "expected"), PARIS)
def test_a_fixed_hour_runs_once_a_local_day(acc: Acc, start: str, expected: list[str]) -> None:
    """'30 2 * * *' in Paris: shifted forward in spring, the first of the two in autumn; printed in UTC."""
    done = acc.command("next-runs", "--cron", "30 2 * * *", "--tz", "Europe/Paris", "--from", start, "--count", "3")
    assert done.stdout.splitlines() == [f"{moment}:00+00:00" for moment in expected]


@pytest.mark.parametrize(("start", "count"), [("2027-03-27 22:59:59+00", 46), ("2027-10-30 21:59:59+00", 50)])
def test_wildcard_hours_follow_real_time(acc: Acc, start: str, count: int) -> None:
    """'*/30 * * * *' runs 46 times in the short local day and 50 times in the long one, every 30 real minutes."""
    words = ("next-runs", "--cron", "*/30 * * * *", "--tz", "Europe/Paris", "--from", start, "--count", str(count + 1))
    starts = acc.json(*words)["starts"]
    day = 46 / 2 if count == 46 else 50 / 2
    first, last, after = starts[0], starts[count - 1], starts[count]
    moments = [datetime.fromisoformat(text) for text in (first, last, after)]
    assert moments[2] - moments[0] == timedelta(hours=day)
    assert moments[1] - moments[0] == timedelta(hours=day) - timedelta(minutes=30)


@pytest.mark.parametrize(
    "words", [("--cron", "30 2 * * *", "--tz", "EuRoPe/AmEriCa"), ("--cron", "61 * * * *"), ("99",)]
)
def test_what_has_no_next_run_is_refused(acc: Acc, words: tuple[str, ...]) -> None:
    """An unknown zone, a wrong expression and an unknown job end with exit 1 and one line."""
    done = acc.command("next-runs", *words)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr


def test_the_next_runs_of_a_daily_job_write_nothing(acc: Acc) -> None:
    """A row of hdbpp's table runs daily at 02:00 UTC, or as its site says; asking leaves no trace of a run."""
    job = acc.job("t_ok")
    found = acc.json("next-runs", str(job), "--from", "2027-01-01", "--count", "2")["starts"]
    assert found == ["2027-01-01 02:00:00+00:00", "2027-01-02 02:00:00+00:00"]
    more = {"HEADRACE_POSTPROCESSING__DAILY_AT": "22:00", "HEADRACE_POSTPROCESSING__TIMEZONE": "Europe/Paris"}
    found = acc.json("next-runs", str(job), "--from", "2027-01-01", "--count", "1", **more)["starts"]
    assert found == ["2027-01-01 21:00:00+00:00"]
    assert acc.history() == []


def test_a_job_lives_through_the_command_line(acc: Acc) -> None:
    """add, list, alter, run --here, history, delete."""
    added = acc.json(
        "add", "t_ok", "--cron", "@daily", "--tz", "Europe/Paris", "--config", '{"x": 1.10}', "--name", "my job"
    )
    job = str(added["job_id"])
    listed = acc.json("list")["jobs"]
    assert [(row["job_id"], row["cron"], row["timezone"], row["name"]) for row in listed] == [
        (added["job_id"], "@daily", "Europe/Paris", "my job")
    ]
    assert acc.command("alter", job, "--every", "1 hour").returncode == 0
    row = acc.json("list")["jobs"][0]
    assert (row["schedule_interval"], row["cron"], row["timezone"]) == ("01:00:00", None, "Europe/Paris")
    assert acc.command("run", job, "--here").returncode == 0
    assert acc.ask("SELECT config FROM public.witness") == [('{"x": 1.10}',)]
    run = acc.json("history", job)["runs"][0]
    assert (run["state"], run["reason"], run["proc_name"]) == ("succeeded", "request", "t_ok")
    assert "body_hash" in acc.command("history", "--run", str(run["run_id"])).stdout
    assert acc.command("delete", job).returncode == 0
    assert acc.json("list")["jobs"] == []
    assert len(acc.json("history", job)["runs"]) == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("add", "nope", "--cron", "@daily"), "there is no procedure"),
        (("add", "t_ok", "--cron", "nonsense"), "nonsense"),
        (("add", "t_ok", "--cron", "@daily", "--tz", "europe/paris"), "europe/paris"),
        (("add", "t_ok", "--every", "1 hour", "--window", "25:00-26:00"), "25:00"),
        (("alter", "77", "--priority", "1"), "no job 77"),
        (("delete", "77"), "no job 77"),
        (("run", "77", "--here"), "no job 77"),
        (("cancel", "77"), "nothing of run 77"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(acc: Acc, words: tuple[str, ...], reason: str) -> None:
    """A refusal names what and which, leaves nothing behind, and exits 1."""
    done = acc.command(*words)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and reason in done.stderr
    assert acc.ask("SELECT count(*) FROM headrace.job") == [(0,)]


def test_what_is_due_runs_here_without_redis_or_worker(acc: Acc) -> None:
    """`run --here` runs what is due, children included, and nothing else."""
    parent = acc.json("add", "t_ok", "--every", "1 hour")["job_id"]
    child = acc.json("add", "t_ok", "--after", str(parent))["job_id"]
    acc.json("add", "t_ok", "--every", "1 hour", "--initial-start", "2040-01-01")
    done = acc.command("run", "--here", HEADRACE_BROKER__URL="redis://127.0.0.1:9/0")
    assert done.returncode == 0, done.stderr
    assert [row[0] for row in acc.ask("SELECT job FROM public.witness ORDER BY id")] == [parent, child]


def test_back_filled_slots_run_once_each(acc: Acc) -> None:
    """Past slots that never had a run are queued; those that had one are not."""
    job = acc.json("add", "t_ok", "--cron", "0 * * * *")["job_id"]
    words = ("back-fill", str(job), "--from", "2027-01-01 00:00", "--until", "2027-01-01 05:00")
    assert acc.json(*words)["queued"] == 5
    assert acc.json(*words)["queued"] == 0
    assert acc.command("run", "--here").returncode == 0
    slots = acc.ask("SELECT scheduled_for::text FROM headrace.job_run WHERE reason = 'back-fill' ORDER BY 1")
    assert [row[0][:16] for row in slots] == [f"2027-01-01 0{hour}:00" for hour in range(1, 6)]
    assert acc.tags() == ["ok"] * 5


def test_validate_names_every_job_that_would_fail(acc: Acc) -> None:
    """`headrace validate` finds missing procedures, rights and wrong schedules before the night does."""
    acc.job("nope")
    good = acc.job("t_ok")
    bad = acc.json("add", "t_func", "--cron", "@daily")["job_id"]
    acc.ask("UPDATE headrace.job SET cron = '99 * * * *' WHERE job_id = %s", bad)
    acc.json("list")
    done = acc.site.run("validate")
    assert done.returncode == 2
    assert "job 1: there is no procedure or function nope" in done.stderr
    assert f"job {bad}: " in done.stderr and "99" in done.stderr
    assert f"job {good}" not in done.stderr


def test_status_tells_what_needs_somebody(acc: Acc) -> None:
    """A failing job is named with its reason and the command that shows more; exit 1."""
    job = acc.json("add", "t_fail", "--every", "1 hour")["job_id"]
    assert acc.command("run", "--here").returncode == 1
    for words in (("postprocessing", "status"), ("status",)):
        done = acc.site.run(*words)
        assert done.returncode == 1
        assert f"job {job} (public.t_fail) is failing: boom" in done.stdout
    document = json.loads(acc.site.run("status", "--json").stdout)
    assert document["postprocessing"][0]["troubles"][0]["consecutive_failures"] == 1


def test_setup_prints_runs_and_repeats(acc: Acc, empty_dsn: str) -> None:
    """`setup --print` changes nothing; `setup` makes tables, façade and procedures; twice is harmless."""
    there = {"HEADRACE_CONTROL__DSN": empty_dsn}
    printed = acc.command("setup", "--print", **there).stdout
    assert (
        "CREATE TABLE headrace.job (" in printed
        and "CREATE TABLE IF NOT EXISTS public.postprocessing_jobs (" in printed
    )
    with psycopg2.connect(empty_dsn) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT to_regclass('headrace.job'), to_regclass('public.postprocessing_jobs')")
        assert cursor.fetchone() == (None, None)
    conn.close()
    assert acc.command("setup", "--with", "hdbpp_ttl", "--with", "hdbpp_reorder_chunks", **there).returncode == 0
    again = acc.command("setup", **there)
    assert (again.returncode, again.stdout) == (0, "control: all there\n")


def test_the_due_jobs_are_read_from_the_index_alone(dsn: str) -> None:
    """With 100,000 jobs the scheduler's question is an index-only scan, also when all of them are due."""
    conn = psycopg2.connect(dsn)
    conn.autocommit = True
    with conn.cursor() as cursor:
        cursor.execute("ALTER TABLE headrace.job DISABLE TRIGGER USER")
        cursor.execute(
            "INSERT INTO headrace.job (job_id, proc_schema, proc_name, schedule_interval) "
            "SELECT i, 'public', 't', '1 day' FROM generate_series(1, 100000) i"
        )
        cursor.execute(
            "INSERT INTO headrace.job_state (job_id, replan, next_start, slot) "
            "SELECT i, false, now() + (i - 50) * interval '1 h', now() FROM generate_series(1, 100000) i"
        )
        cursor.execute("VACUUM ANALYZE headrace.job_state")
        for due in (50, 1000):
            text = queries("postprocessing")["due_jobs"].text
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", {"limit": 1000})
            row = cursor.fetchone()
            assert row is not None
            node = row[0][0]["Plan"]["Plans"][0]
            assert (node["Node Type"], node["Index Name"]) == ("Index Only Scan", "job_due")
            assert (node["Actual Rows"], node["Heap Fetches"]) == (due, 0)
            cursor.execute("UPDATE headrace.job_state SET next_start = now() - interval '1 h'")
            cursor.execute("VACUUM ANALYZE headrace.job_state")
    conn.close()


def test_the_import_command_lists_and_takes(acc: Acc, tmp_path: Path) -> None:
    """`import hdbpp` lists, `--apply` takes over and switches the source off; a file becomes our settings."""
    acc.job("t_ok", '{"x": 1.10}')
    assert "nothing was changed" in acc.command("import", "hdbpp").stderr
    taken = acc.json("import", "hdbpp", "--apply")["jobs"]
    assert taken[0]["job_id"] >= 1_000_000 and taken[0]["problems"] == []
    assert acc.run_once().stdout == "nothing to do\n"
    statement = acc.command("export").stdout
    assert "headrace.add_job('public.t_ok'" in statement and '{"x": 1.10}' in statement
    settings = acc.command("import", str(acc.legacy)).stdout
    assert "databases:" in settings and "acc:" in settings


def test_the_old_file_in_its_old_place_names_the_databases(acc: Acc) -> None:
    """With `legacy_config` every command, worker and beat sees the databases of hdbpp-postprocessing's own file."""
    job = acc.job("t_ok")
    there = {"HEADRACE_POSTPROCESSING__LEGACY_CONFIG": str(acc.legacy)}
    listed = acc.json("list", "--database", "acc", **there)["jobs"]
    assert [(row["database"], row["job_id"], row["procedure"]) for row in listed] == [("acc", job, "t_ok")]
    assert acc.json("next-runs", str(job), "--database", "acc", "--from", "2027-01-01", "--count", "1", **there) == {
        "starts": ["2027-01-01 02:00:00+00:00"]
    }
    nowhere = {"HEADRACE_POSTPROCESSING__LEGACY_CONFIG": "/nowhere/hdbpp_postprocessing.conf"}
    assert acc.command("list", **nowhere).returncode == 0


def test_a_look_at_a_database_without_jobs_leaves_it_alone(empty_dsn: str, dsn: str, tmp_path: Path) -> None:
    """A database of the settings that was never set up gets no schema of ours."""
    conf = Settings(control={"dsn": dsn}, databases={"bare": {"connection": _connection(empty_dsn)}}, data_dir=tmp_path)
    assert api.look(conf, "bare") == []
    with psycopg2.connect(empty_dsn) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT to_regnamespace('headrace')")
        assert cursor.fetchone() == (None,)
    conn.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("initial_start", "infinity"),
        ("initial_start", "-infinity"),
        ("initial_start", "294276-12-31 00:00+00"),
        ("initial_start", "4713-01-01 00:00:00 BC"),
        ("run_at", "infinity"),
        ("schedule_interval", "170000000 years"),
        ("schedule_interval", "-1 hour"),
        ("retry_period", "-1 s"),
        ("max_runtime", "100000 years"),
        ("max_retries", "-2"),
    ],
)
def test_values_that_no_schedule_can_have_are_refused(sql: Ask, column: str, value: str) -> None:
    """Plain SQL cannot store what would trip the scheduler later."""
    with pytest.raises(psycopg2.errors.CheckViolation):
        sql(f"INSERT INTO headrace.job (proc_schema, proc_name, {column}) VALUES ('public', 'p', %s)", value)


@pytest.mark.parametrize(
    ("column", "value"), [("run_window", "nonsense"), ("timezone", "Nowhere"), ("cron", "a b c d e")]
)
def test_one_jobs_trouble_costs_no_other_its_look(conf: Settings, sql: Ask, column: str, value: str) -> None:
    """A row that means nothing is told as a problem and an alert; the others are due all the same."""
    insert = "INSERT INTO headrace.job (job_id, proc_schema, proc_name, {}) VALUES (%s, 'public', 'p', %s)"
    sql(insert.format(column), 1, value)
    if column != "cron":
        sql("UPDATE headrace.job SET cron = '@hourly' WHERE job_id = 1")
    sql(insert.format("run_at"), 99, "2020-01-01 00:00+00")
    messages = api.look(conf, "control")
    assert [getattr(message, "job", None) for message in messages if isinstance(message, RunJob)] == [99]
    assert sql("SELECT problem IS NOT NULL, next_start FROM headrace.job_state WHERE job_id = 1") == [(True, None)]
    assert sql("SELECT event FROM headrace.alert WHERE facts ->> 'job_id' = '1'") == [("disabled",)]


def _connection(dsn: str) -> dict[str, object]:
    from tests.integration.postprocessing.conftest import connection_of

    return connection_of(dsn)


def test_db_status_shows_what_a_database_with_jobs_has(acc: Acc, empty_dsn: str) -> None:
    """`headrace db status` lists tables and façade of the databases that were set up, and leaves others alone."""
    found = {
        row["name"]: row["state"] for row in json.loads(acc.site.run("db", "status", "--json").stdout)["migrations"]
    }
    assert found["0003_postprocessing.sql"] == found["0004_alerts.sql"] == found["0005_facade.sql"] == "applied"
    there = {"HEADRACE_CONTROL__DSN": empty_dsn}
    assert acc.site.run("db", "migrate", timeout=60, **there).returncode == 0
    names = [
        row["name"]
        for row in json.loads(acc.site.run("db", "status", "--json", timeout=60, **there).stdout)["migrations"]
    ]
    assert names == ["0001_foundation.sql", "0002_telemetry.sql", "0004_alerts.sql", "0008_products.sql"]

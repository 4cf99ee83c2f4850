"""Scheduled jobs on Headrace's page and in its metrics: what is due, runs, is late or has failed, per database."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg2.extensions import parse_dsn

from workers import database, execution
from workers import settings as settings_module
from workers.monitor.board import Board
from workers.monitor.jobs import schedule, sections
from workers.postprocessing import api
from workers.services.ports import choose_port
from workers.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import Servers, Site

PROCEDURES = (Path(__file__).parents[2] / "procedures.sql").read_text()
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECRET = "s3cret-of-the-dead"  # the login of the database that is down: on no page
SCRIPT = "<script>document.title='owned'</script>"
MANY = 600  # jobs of the archive: more than the page and the metrics have room for


class Tables(HTMLParser):
    """The texts of a page's cells, row by row, by the id of their table."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: dict[str, list[list[str]]] = {}
        self._table = self._cell = ""
        self._is_in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._table = dict(attrs).get("id") or ""
        elif tag == "tr":
            self.rows.setdefault(self._table, []).append([])
        elif tag == "td":
            self._cell, self._is_in_cell = "", True

    def handle_data(self, data: str) -> None:
        self._cell += data if self._is_in_cell else ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self.rows[self._table][-1].append(" ".join(self._cell.split()))
            self._is_in_cell = False

    def by_number(self, table: str) -> dict[int, list[str]]:
        """The rows of a table by the number in their first cell, in the order of the page."""
        return {int(row[0].replace(",", "")): row for row in self.rows.get(table, []) if row}


@dataclass(frozen=True)
class Monitored:
    """A Flower that looks at four databases, and the numbers of the jobs in the first one."""

    site: Site
    port: int
    password: str
    jobs: dict[str, int]
    archive: str

    def get(self, path: str) -> str:
        login = base64.b64encode(f"headrace:{self.password}".encode()).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", headers={"Authorization": f"Basic {login}"}
        )
        with urllib.request.urlopen(request, timeout=15) as answer:
            return str(answer.read().decode())

    def tables(self) -> Tables:
        return Tables(self.get("/headrace"))

    def metrics(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """(labels, value) of every sample by name."""
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(self.get("/metrics")):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found

    def of_job(self, job: str) -> dict[str, float]:
        """Every metric of one job of the first database, with the result of its runs behind the name."""
        return {
            f"{name}{labels.get('result', '')}": value
            for name, samples in self.metrics().items()
            for labels, value in samples
            if labels.get("database") == "control" and labels.get("job") == str(self.jobs[job])
        }


def ask(dsn: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(dsn, options="-c timezone=UTC")) as conn:
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []


def add(dsn: str, procedure: str, name: str, words: str, *, change: str = "priority = 0") -> int:
    """A job by headrace.add_job, changed before anybody looks at it; its number."""
    with closing(psycopg2.connect(dsn)) as conn, conn, conn.cursor() as cursor:
        cursor.execute(f"SELECT headrace.add_job(%s, job_name => %s, {words})", (procedure, name))
        number = (cursor.fetchone() or (0,))[0]
        cursor.execute(f"UPDATE headrace.job SET {change} WHERE job_id = %s", (number,))
    return int(number)


def connection_of(dsn: str, **more: Any) -> dict[str, Any]:
    words = parse_dsn(dsn)
    named = {"user": words["user"], "password": words.get("password"), "host": words["host"]}
    named |= {"port": int(words.get("port", 5432)), "database": words["dbname"]}
    return {"connection": {key: value for key, value in {**named, **more}.items() if value is not None}}


@pytest.fixture(scope="module")
def jobs(module_site: Site) -> dict[str, int]:
    """Jobs of every state by what they are, after a look at them and their runs."""
    dsn = module_site.dsn
    ask(dsn, PROCEDURES)
    never = "initial_start => '2040-01-01 00:00+00'"
    numbers = {
        "healthy": add(dsn, "t_ok", "compress", "schedule_interval => '90 minutes'"),
        "failing": add(dsn, "t_fail", "rollup", "schedule_interval => '1 day'", change="retry_period = '1 day'"),
        "disabled": add(dsn, "t_fail", "purge", "schedule_interval => '1 day'", change="max_retries = 0"),
        "wrong": add(dsn, "t_ok", "typo", "schedule_interval => NULL, cron => '61 * * * *'"),
        "script": add(dsn, "t_ok", SCRIPT, f"schedule_interval => '1 month', scheduled => false, {never}"),
        "late": add(dsn, "t_ok", "silent", f"schedule_interval => '1 day', {never}", change="alert_after = '1 ms'"),
        "due": add(
            dsn, "t_ok", "waiting", "schedule_interval => NULL, cron => '0 2 * * *', timezone => 'Europe/Paris'"
        ),
        "running": add(dsn, "t_ok", "long", f"schedule_interval => '1 day', {never}"),
        "held": add(dsn, "t_ok", "held", "schedule_interval => '1 day'", change="run_window = '00:00-24:00'"),
    }
    numbers["child"] = add(dsn, "t_ok", "after it", f"schedule_interval => NULL, after_job => {numbers['failing']}")
    ask(dsn, "INSERT INTO headrace.quiet_period (job_id, reason) VALUES (%s, 'observing')", numbers["held"])
    conf = Settings(host="here", control={"dsn": dsn}, data_dir=module_site.folder / "state")
    settings_module.use(conf)
    assert execution.run_here(api.look(conf, "control"), conf, timeout=timedelta(seconds=20)) == []
    settings_module._current = None
    database.close_all()
    # As a scheduler that stopped, and a worker in the midst of a call, leave them.
    ask(dsn, "UPDATE headrace.job_state SET next_start = now() - interval '5 min' WHERE job_id = %s", numbers["due"])
    # The look that found it paused looks again in five seconds; nobody will here.
    ask(dsn, "UPDATE headrace.job_state SET next_start = now() + interval '1 h' WHERE job_id = %s", numbers["held"])
    ask(
        dsn,
        """INSERT INTO headrace.job_run (job_id, scheduled_for, reason, state, started_at, heartbeat)
           VALUES (%s, now(), 'request', 'running', now() - interval '2 min', now())""",
        numbers["running"],
    )
    return numbers


@pytest.fixture(scope="module")
def archive(servers: Servers, template: str) -> Iterator[str]:
    """A read-only database with more jobs than have room, all due for long, one of the last ones failing."""
    admin = servers.postgres.dsn("headrace")
    ask(admin, f"CREATE DATABASE many TEMPLATE {template}")
    dsn = servers.postgres.dsn("many")
    ask(
        dsn,
        "INSERT INTO headrace.job (name, proc_name, cron) SELECT 'n' || n, 't', '@daily' FROM generate_series(1, %s) n",
        MANY,
    )
    ask(dsn, "UPDATE headrace.job_state SET next_start = now() - interval '1 day'")
    ask(
        dsn,
        "UPDATE headrace.job_state SET consecutive_failures = 3 "
        "WHERE job_id = (SELECT max(job_id) - 1 FROM headrace.job)",
    )
    ask(admin, "ALTER DATABASE many SET default_transaction_read_only = on")
    yield dsn
    ask(admin, "DROP DATABASE many WITH (FORCE)")


@pytest.fixture(scope="module")
def monitored(module_site: Site, servers: Servers, jobs: dict[str, int], archive: str) -> Iterator[Monitored]:
    """Flower over the jobs, an archive, a database that is down and one without our tables."""
    databases = {
        "dead": connection_of(module_site.dsn, port=1, password=SECRET),
        "bare": connection_of(servers.postgres.dsn("postgres")),
        "archive": connection_of(archive),
    }
    port = choose_port(None)
    flower = module_site.start("flower", f"--port={port}", HEADRACE_DATABASES=json.dumps(databases))

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=5) as answer:
                return bool(answer.read() == b"OK")
        except OSError:
            return False

    module_site.until(answers, "Flower answers")
    credentials = json.loads((module_site.folder / "state" / "credentials.json").read_text())
    found = Monitored(module_site, port, credentials["flower_password"], jobs, archive)
    yield found
    assert SECRET not in module_site.log(flower)


def test_the_page_tells_the_state_of_each_job(monitored: Monitored) -> None:
    """Each job has its schedule, state and message in words; those in trouble come first, then what runs."""
    rows = monitored.tables().by_number("jobs-control")
    jobs = monitored.jobs
    states = {name: rows[number][4] for name, number in jobs.items()}
    running = states.pop("running")
    due = states.pop("due")
    assert states == {
        "healthy": "ok",
        "failing": "failing (1)",
        "disabled": "disabled after 1 failure",
        "wrong": "misconfigured",
        "script": "paused",
        "late": "late: no success yet",
        "held": "paused: observing",
        "child": "has not run yet",
    }
    assert running.startswith("running for ") and due.startswith("late: due for ")
    order = list(rows)
    troubled = {jobs[name] for name in ("failing", "disabled", "wrong", "late", "due")}
    assert set(order[:5]) == troubled and order[5] == jobs["running"]
    assert [rows[jobs[name]][3] for name in ("healthy", "script", "wrong", "due", "child")] == [
        "every 1 h 30 min", "every 1 mon", "61 * * * *", "0 2 * * * Europe/Paris", f"after job {jobs['failing']}",
    ]  # fmt: skip
    assert rows[jobs["script"]][1] == f"{SCRIPT} [{jobs['script']}]"
    assert rows[jobs["healthy"]][1:3] == [f"compress [{jobs['healthy']}]", "public.t_ok"]
    assert rows[jobs["healthy"]][8] == "1/1" and rows[jobs["failing"]][8] == "0/1"
    assert "boom" in rows[jobs["failing"]][9] and "61" in rows[jobs["wrong"]][9]


def test_the_page_lists_runs_that_failed(monitored: Monitored) -> None:
    """The newest runs that did not end well are there with code and reason, and no other run."""
    rows = monitored.tables().by_number("job-failures-control").values()
    jobs = monitored.jobs
    assert {row[1].split()[0] for row in rows} == {str(jobs["failing"]), str(jobs["disabled"])}
    assert all(row[2] == "failed" and row[6].startswith("P7001: ") and "boom" in row[6] for row in rows)


def test_the_summary_is_what_the_database_says(monitored: Monitored) -> None:
    """One line per database says how many jobs it has, and what they do."""
    text = " ".join(monitored.get("/headrace").split())
    assert "Jobs of control:</strong> 10 jobs, 8 scheduled, 1 running, 0 queued, 1 overdue, 2 failing" in text
    assert "1 job due for over a minute: are beat and a worker up?" in text
    assert f"Job {monitored.jobs['held']} is paused" in text


def test_a_database_that_is_down_hides_no_other(monitored: Monitored) -> None:
    """It is one line with the reason and without its password, and 0 in the metrics; the others are all there."""
    page = monitored.get("/headrace")
    line = next(line for line in page.splitlines() if "The jobs of dead cannot be seen" in line)
    assert "cannot be reached" in line and "password=•••" in line
    assert SECRET not in page + monitored.get("/metrics")
    assert {"jobs-control", "jobs-archive"} <= set(Tables(page).rows)
    assert "jobs-dead" not in page and "jobs-bare" not in page
    up = {labels["database"]: value for labels, value in monitored.metrics()["headrace_database_up"]}
    assert up == {"control": 1, "dead": 0, "bare": 1, "archive": 1}


def test_metrics_count_the_jobs_by_state(monitored: Monitored) -> None:
    """Every state has its number per database; one that is down or without jobs has none."""
    found: dict[str, dict[str, float]] = {}
    for labels, value in monitored.metrics()["headrace_jobs"]:
        found.setdefault(labels["database"], {})[labels["state"]] = value
    assert set(found) == {"control", "archive"}
    assert found["control"] == {
        "scheduled": 8, "paused": 2, "running": 1, "queued": 0, "overdue": 1, "failing": 2, "disabled": 1,
        "misconfigured": 1, "late": 1,
    }  # fmt: skip
    assert found["archive"]["scheduled"] == MANY and found["archive"]["failing"] == 1


def test_metrics_of_a_job_are_those_of_its_row(monitored: Monitored) -> None:
    """Successes, failures, duration and times of a job are what its database keeps of it."""
    columns = "last_successful_finish, extract(epoch FROM last_run_duration)::float8, next_start"
    statement = f"SELECT {columns} FROM headrace.job_state WHERE job_id = %s"
    success, seconds, next_start = ask(monitored.site.dsn, statement, monitored.jobs["healthy"])[0]
    assert monitored.of_job("healthy") == {
        "headrace_job_last_success_timestamp_seconds": pytest.approx(success.timestamp(), abs=1e-5),
        "headrace_job_last_run_seconds": pytest.approx(seconds),
        "headrace_job_consecutive_failures": 0,
        "headrace_job_next_start_timestamp_seconds": pytest.approx(next_start.timestamp(), abs=1e-5),
        "headrace_job_runs_totalsucceeded": 1,
        "headrace_job_runs_totalfailed": 0,
    }
    disabled = monitored.of_job("disabled")
    assert disabled.pop("headrace_job_last_run_seconds") >= 0
    assert disabled == {
        "headrace_job_consecutive_failures": 1,
        "headrace_job_runs_totalsucceeded": 0,
        "headrace_job_runs_totalfailed": 1,
    }


def test_metrics_name_the_job_and_say_what_they_are(monitored: Monitored) -> None:
    """The name is a label, odd characters included; the runs are a counter; the help tells of the limit."""
    text = monitored.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    runs = families["headrace_job_runs"]
    assert runs.type == "counter" and "at most 500 jobs" in runs.documentation
    samples = monitored.metrics()["headrace_job_consecutive_failures"]
    names = {labels["job"]: labels["name"] for labels, _ in samples if labels["database"] == "control"}
    number = monitored.jobs["script"]
    assert names[str(number)] == f"{SCRIPT} [{number}]"


def test_many_jobs_are_cut_to_those_that_matter(monitored: Monitored) -> None:
    """Of 600 jobs the page has 100, the failing one first, the metrics 500; the page says so and how to see all."""
    last = ask(monitored.archive, "SELECT max(job_id) - 1 FROM headrace.job")[0][0]
    page = monitored.get("/headrace")
    rows = Tables(page).by_number("jobs-archive")
    assert len(rows) == 100 and next(iter(rows)) == last and rows[last][4] == "failing (3)"
    text = " ".join(page.split())
    assert "500 more jobs are not shown: <code>headrace postprocessing list --database archive</code>" in text
    for samples in (monitored.metrics()[f"headrace_job_{name}"] for name in ("consecutive_failures", "runs_total")):
        measured = {labels["job"] for labels, _ in samples if labels["database"] == "archive"}
        assert len(measured) == 500 and str(last) in measured


def test_where_nothing_may_start_nothing_is_late(monitored: Monitored) -> None:
    """A read-only database says so, and its due jobs are no trouble of theirs."""
    page = monitored.get("/headrace")
    assert "The database is read-only (a standby?), so nothing starts here." in page
    states = {row[4] for row in Tables(page).by_number("jobs-archive").values()}
    assert states == {"failing (3)", "has not run yet"}


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_a_browser_shows_jobs_and_runs_no_name(monitored: Monitored, tmp_path: Path) -> None:
    """In a real browser the failing and the healthy job are readable, and a script for a name stays a name."""
    assert BROWSER is not None
    address = f"http://headrace:{monitored.password}@127.0.0.1:{monitored.port}/headrace"
    argv = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--dump-dom",
        address,
    ]
    dom = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    rows = Tables(dom).by_number("jobs-control")
    jobs = monitored.jobs
    assert rows[jobs["failing"]][4] == "failing (1)" and "boom" in rows[jobs["failing"]][9]
    assert rows[jobs["healthy"]][4] == "ok"
    assert rows[jobs["script"]][1] == f"{SCRIPT} [{jobs['script']}]"
    assert "<title>Headrace" in dom and SCRIPT not in dom


def test_a_database_that_hangs_delays_nothing(jobs: dict[str, int], module_site: Site, tmp_path: Path) -> None:
    """One that accepts connections and never answers costs the three seconds of patience, and no other answer."""
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        hanging = connection_of(module_site.dsn, host="127.0.0.1", port=silent.getsockname()[1], sslmode="disable")
        conf = Settings(
            host="here", control={"dsn": module_site.dsn}, data_dir=tmp_path, databases={"hanging": hanging}
        )
        began = time.monotonic()
        answers = asyncio.run(Board(conf).look()).postprocessing
        assert time.monotonic() - began < 8  # it gives up connecting after ten
        assert "no answer within 3 s" in (answers["hanging"].error or "")
        assert (answers["control"].value or {})["jobs"] == len(jobs)


def test_a_site_without_jobs_has_no_section(dsn: str, tmp_path: Path) -> None:
    """Where nothing is scheduled, there is nothing to see of jobs."""
    conf = Settings(host="here", control={"dsn": dsn}, data_dir=tmp_path)
    answers = asyncio.run(Board(conf).look()).postprocessing
    assert (answers["control"].value or {})["jobs"] == 0
    assert list(sections(answers)) == []


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"cron": "@daily"}, "@daily"),
        ({"schedule_interval": "1 day 02:00:30.5", "timezone": "Asia/Tokyo"}, "every 1 day 2 h 30.5 s Asia/Tokyo"),
        ({"schedule_interval": "00:00:05", "fixed_schedule": False}, "every 5 s after the last end"),
        ({"run_at": datetime(2026, 3, 1, 22, 30, tzinfo=UTC)}, "once at 2026-03-01 22:30:00 UTC"),
        ({"after_job": 7}, "after job 7"),
        ({"origin": "hdbpp", "timezone": "Europe/Paris"}, "daily Europe/Paris"),
        ({}, "on request"),
    ],
)
def test_a_schedule_reads_like_a_sentence(columns: dict[str, Any], words: str) -> None:
    """Every kind of schedule is said in words."""
    nothing = dict.fromkeys(("cron", "schedule_interval", "run_at", "after_job", "timezone"))
    assert schedule({**nothing, "origin": "headrace", "fixed_schedule": True, **columns}) == words

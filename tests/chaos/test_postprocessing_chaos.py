"""Chaos: workers, beats and servers are killed; no slot starts twice, none is lost, no job has two backends."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
import redis

from workers import database, migrations
from workers.postprocessing import api
from workers.services.postgres import PostgresServer
from workers.services.valkey import ValkeyServer
from workers.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import Site

Process = subprocess.Popen[bytes]
PROCEDURES = (Path(__file__).parents[1] / "procedures.sql").read_text()
IN_THE_CALL = """
    SELECT count(*) FROM pg_stat_activity
     WHERE datname = current_database() AND state = 'active' AND query LIKE 'CALL %%' AND application_name LIKE %s
"""


class Storm:
    """Servers of this test's own, workers and beats to kill, and a watch on who is in which job."""

    def __init__(self, site: Site, postgres: PostgresServer, valkey: ValkeyServer) -> None:
        self.site, self.postgres, self.valkey = site, postgres, valkey
        self.worst = 0
        self._watched = threading.Event()

    def ask(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Ask the database."""
        return self.site.ask(statement, *parameters)

    def worker(self, **more: str) -> Process:
        """A worker with three processes."""
        facts = {"HEADRACE_WORKER__CONCURRENCY": "3", "HEADRACE_POSTPROCESSING__GRACE_SECONDS": "2"}
        return self.site.worker(app="rehearsal", **facts, **more)

    def beat(self) -> Process:
        """One more beat, with the timetable as it is."""
        return self.site.start("beat")

    def add(self, procedure: str, interval: str, config: str = "{}", **columns: Any) -> int:
        """A job, with further columns of headrace.job."""
        with closing(psycopg2.connect(self.site.dsn)) as conn, conn, conn.cursor() as cursor:
            cursor.execute("SELECT headrace.add_job(%s, %s, config => %s)", (procedure, interval, config))
            row = cursor.fetchone()
            assert row is not None
            for name, value in columns.items():
                cursor.execute(f"UPDATE headrace.job SET {name} = %s WHERE job_id = %s", (value, row[0]))
        return int(row[0])

    def runs(self, job: int, columns: str) -> list[tuple[Any, ...]]:
        """Runs of a job in the order of their slots."""
        return self.ask(f"SELECT {columns} FROM headrace.job_run WHERE job_id = %s ORDER BY scheduled_for, run_id", job)

    def tags(self, job: int) -> list[str]:
        """What a job's runs have witnessed."""
        return [row[0] for row in self.ask("SELECT tag FROM public.witness WHERE job = %s ORDER BY id", job)]

    def until(self, job: int, states: list[str], seconds: float = 30) -> None:
        """Wait until the runs of a job stand so."""
        self.site.until(lambda: [row[0] for row in self.runs(job, "state")] == states, f"{job}: {states}", seconds)

    def watch(self, job: int) -> None:
        """Count, five times a second, the backends that are in a job's call."""

        def look() -> None:
            while not self._watched.wait(0.2):
                try:
                    count = self.ask(IN_THE_CALL, f"%job={job} %")[0][0]
                except psycopg2.Error:
                    continue
                self.worst = max(self.worst, int(count))

        threading.Thread(target=look, daemon=True).start()

    def over(self) -> None:
        """Stop watching."""
        self._watched.set()


@pytest.fixture
def storm(site: Site, tmp_path: Path) -> Iterator[Storm]:
    """A deployment that may be broken at will."""
    postgres, valkey = PostgresServer(tmp_path / "postgres"), ValkeyServer(tmp_path / "valkey")
    for server in (postgres, valkey):
        (tmp_path / server.name).mkdir(exist_ok=True)
        server.start()
    conf = Settings(control={"dsn": postgres.dsn()})
    with database.connection(conf.target(), purpose="tests") as conn:
        migrations.migrate(conn, migrations.FOUNDATION)
    api.set_up(conf, "control")
    database.close_all()
    with closing(psycopg2.connect(postgres.dsn())) as conn, conn, conn.cursor() as cursor:
        cursor.execute(PROCEDURES)
    site.dsn, site.broker_url = postgres.dsn(), valkey.url()
    made = Storm(site, postgres, valkey)
    yield made
    made.over()
    site.stop()
    valkey.stop()
    postgres.stop()


def test_a_killed_worker_leaves_no_second_backend_and_no_lost_slot(storm: Storm) -> None:
    """kill -9 in mid-run: the orphan is ended, the run is `lost`, and it runs again by the retry rule, alone."""
    worker = storm.worker()
    storm.beat()
    job = storm.add("t_sleep", "1 hour", '{"s": 6}', retry_period="1 s")
    storm.watch(job)
    storm.until(job, ["running"])
    storm.site.until(lambda: storm.tags(job) == ["start"], "it has begun")
    worker.kill()
    worker.wait()
    killed = time.monotonic()
    storm.worker()
    storm.site.until(lambda: storm.runs(job, "state")[0] == ("lost",), "it is lost", 60)
    assert time.monotonic() - killed < 60
    storm.until(job, ["lost", "succeeded"], 40)
    assert storm.worst == 1
    assert storm.tags(job) == ["start", "start", "end"]
    assert storm.runs(job, "attempt, reason") == [(1, "schedule"), (2, "retry")]
    assert storm.ask("SELECT event FROM headrace.alert ORDER BY id") == [("failure",), ("recovery",)]


def test_an_atomic_run_of_a_killed_worker_leaves_nothing(storm: Storm) -> None:
    """kill -9 in an atomic run: its effect is rolled back with it, so the second run is the only one."""
    worker = storm.worker()
    storm.beat()
    job = storm.add("t_sleep_whole", "1 hour", '{"s": 5}', retry_period="1 s", atomic=True)
    storm.until(job, ["running"])
    worker.kill()
    worker.wait()
    storm.worker()
    storm.until(job, ["lost", "succeeded"], 70)
    assert storm.tags(job) == ["whole"]


def test_two_beats_doubled_messages_and_a_flushed_broker_double_nothing(storm: Storm) -> None:
    """Two beats, two workers, three copies of every message, FLUSHALL, the leader killed: each slot once, none lost."""
    leader = storm.beat()
    storm.site.until(lambda: "beat.leading" in storm.site.log(leader), "the first beat leads")
    storm.beat()
    for _ in range(2):
        storm.worker(COPIES="3")
    jobs = [storm.add("t_ok", "2 s") for _ in range(10)]
    storm.site.until(lambda: len(storm.ask("SELECT 1 FROM public.witness")) > 40, "they run", 40)
    redis.Redis.from_url(storm.valkey.url()).flushall()
    time.sleep(3)
    leader.kill()
    leader.wait()
    killed = storm.ask("SELECT clock_timestamp()")[0][0]
    later = "SELECT count(*) FROM public.witness WHERE at > %s + interval '1 second'"
    storm.site.until(lambda: storm.ask(later, killed)[0][0] >= 30, "they run on under the other beat", 30)
    storm.ask("UPDATE headrace.job SET scheduled = false")
    live = "SELECT count(*) FROM headrace.job_run WHERE state IN ('queued', 'running')"
    storm.site.until(lambda: storm.ask(live) == [(0,)], "all runs are over", 90)
    doubled = storm.ask("SELECT job, app FROM public.witness GROUP BY job, app HAVING count(*) > 1")
    assert doubled == []  # the application name has the run's number
    assert storm.ask("SELECT count(*) FROM public.witness") == storm.ask(
        "SELECT count(*) FROM headrace.job_run WHERE state = 'succeeded'"
    )
    for job in jobs:
        slots = [row[0] for row in storm.runs(job, "scheduled_for")]
        assert {later - earlier for earlier, later in pairwise(slots)} == {timedelta(seconds=2)}
    assert {row[0] for row in storm.ask("SELECT DISTINCT state FROM headrace.job_run")} <= {"succeeded", "skipped"}


def test_a_server_that_stops_at_once_loses_no_job(storm: Storm) -> None:
    """An immediate shutdown in mid-run: the run is `lost`, another one follows, and the schedule goes on."""
    storm.worker()
    storm.beat()
    job = storm.add("t_sleep", "1 hour", '{"s": 5}', retry_period="1 s")
    ticking = storm.add("t_ok", "2 s")
    storm.until(job, ["running"])
    storm.site.until(lambda: storm.tags(job) == ["start"], "it has begun")
    storm.postgres.send(signal.SIGQUIT)
    while storm.postgres.alive():
        time.sleep(0.01)
    storm.postgres.start()
    back = storm.ask("SELECT clock_timestamp()")[0][0]
    storm.until(job, ["lost", "succeeded"], 75)
    assert storm.runs(job, "finished_at - %s::timestamptz < interval '60 s'".replace("%s", f"'{back}'"))[0] == (True,)
    after = "SELECT count(*) FROM public.witness WHERE job = %s AND at > %s"
    storm.site.until(lambda: storm.ask(after, ticking, back)[0][0] >= 2, "the other job goes on", 60)
    assert storm.tags(job) == ["start", "start", "end"]


def test_missed_slots_are_made_up_for_as_each_job_says(storm: Storm) -> None:
    """A scheduler was away over several slots: once gives one run, skip none, all its cap; each slot is on record."""
    storm.worker()
    beat = storm.beat()
    jobs = {
        policy: storm.add("t_ok", "4 s", missed=policy, missed_cap=2, initial_start="2020-01-01 00:00:00+00")
        for policy in ("once", "skip", "all")
    }
    storm.site.until(lambda: all(storm.tags(job) for job in jobs.values()), "all have run")
    beat.kill()
    beat.wait()
    time.sleep(1)
    gone = storm.ask("SELECT clock_timestamp()")[0][0]
    time.sleep(18)
    storm.beat()
    statement = (
        "SELECT state, reason, started_at - scheduled_for < interval '3 s', scheduled_for FROM headrace.job_run "
        "WHERE job_id = %s AND scheduled_for > %s AND state IN ('succeeded', 'skipped') ORDER BY scheduled_for"
    )
    rows: dict[str, list[tuple[Any, ...]]] = {}

    def have_run() -> bool:
        rows.update({policy: storm.ask(statement, job, gone) for policy, job in jobs.items()})
        return all(sum(row[0] == "succeeded" for row in found) >= 3 for found in rows.values())

    storm.site.until(have_run, "the grid goes on", 40)
    first = {policy: next(n for n, row in enumerate(rows[policy]) if row[0] == "succeeded") for policy in jobs}
    assert first["once"] >= 3
    assert rows["once"][first["once"]][1] == "catch-up"  # one run makes up for the skipped ones before it
    assert rows["skip"][first["skip"]][1:3] == ("schedule", True)
    assert first["skip"] in (first["once"], first["once"] + 1)
    assert rows["all"][first["all"]][1] == "catch-up"
    assert first["all"] == first["once"] - 1  # its cap is two
    for found in rows.values():
        assert {later[3] - earlier[3] for earlier, later in pairwise(found)} == {timedelta(seconds=4)}
    assert storm.ask("SELECT DISTINCT event FROM headrace.alert") == [("missed",)]


def test_a_dead_database_delays_no_other(storm: Storm) -> None:
    """With an unroutable and a dead database in the settings, a job elsewhere starts in time."""
    databases = (
        '{"far": {"connection": {"host": "10.255.255.1", "user": "x"}},'
        ' "dead": {"connection": {"host": "127.0.0.1", "port": 9, "user": "x"}}}'
    )
    worker = storm.worker(HEADRACE_DATABASES=databases)
    storm.beat()
    job = storm.add("t_ok", "1 s")
    storm.site.until(lambda: len(storm.tags(job)) >= 15, "fifteen runs", 40)
    late = storm.ask(
        "SELECT percentile_disc(0.9) WITHIN GROUP (ORDER BY started_at - scheduled_for) < interval '5 s' "
        "FROM headrace.job_run WHERE job_id = %s AND state = 'succeeded'",
        job,
    )
    assert late == [(True,)]
    for name in ("far", "dead"):
        words = ("look.failed", f'"{name}"', '"room":"postprocessing"')  # another room looks at the same databases
        told = [line for line in storm.site.log(worker).splitlines() if all(word in line for word in words)]
        assert 1 <= len(told) <= 3  # once per process that looks, not at every tick
    status = storm.site.run("postprocessing", "status", HEADRACE_DATABASES=databases)
    assert status.returncode == 1
    assert "far (" in status.stdout and "dead (" in status.stdout

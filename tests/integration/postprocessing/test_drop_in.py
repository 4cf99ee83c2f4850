"""`headrace postprocessing run --here --legacy-config FILE` in the place of hdbpp-postprocessing's cron line."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.postprocessing.conftest import Acc


def test_every_job_runs_once_in_order_with_its_exact_config(acc: Acc) -> None:
    """Each job of hdbpp's application name runs once per call, in job_id order; digits survive, counters go on."""
    first = acc.job("t_ok", '{"x": 1.10}')
    second = acc.job("t_ok_big")
    third = acc.job('"My Sch"."Do It"', None)
    acc.job("t_ok", application="other")
    acc.job("t_ok", application=None)
    acc.ask("UPDATE public.postprocessing_jobs SET proc_name = 't_ok' WHERE job_id = %s", first)  # moves it in the heap
    done = acc.run_once()
    assert (done.returncode, done.stdout) == (0, "3 succeeded\n"), done.stderr
    witness = acc.ask("SELECT tag, job, config FROM public.witness ORDER BY id")
    assert witness == [("ok", first, '{"x": 1.10}'), ("big", second, "{}"), ("quoted", third, "null")]
    ok = ("Job run ok", "CALL", 1, 1, 0)
    assert acc.stats() == {first: ok, second: ok, third: ok}
    apart = acc.ask(
        "SELECT max(abs(extract(epoch FROM s.last_run_started_at - w.at))) < 2 "
        "FROM public.postprocessing_jobs_stats s JOIN public.witness w ON w.job = s.job_id"
    )
    assert apart == [(True,)]
    assert acc.run_once().returncode == 0
    assert [row[2:] for row in acc.stats().values()] == [(2, 2, 0)] * 3
    assert len(acc.tags()) == 6


def test_counters_go_on_from_where_the_old_script_left_them(acc: Acc) -> None:
    """An existing row of postprocessing_jobs_stats keeps its totals and its words; NULL totals count as none."""
    job, fresh = acc.job("t_ok"), acc.job("t_fail")
    acc.ask(
        "INSERT INTO public.postprocessing_jobs_stats VALUES (%s, now(), now(), 'Job run ok', 'CALL', '1s', 40, 38, 2)",
        job,
    )
    acc.ask(
        "INSERT INTO public.postprocessing_jobs_stats (job_id, last_successful_finish) VALUES (%s, '2020-01-01')", fresh
    )
    assert acc.run_once().returncode == 1
    assert acc.stats() == {job: ("Job run ok", "CALL", 41, 39, 2), fresh: ("Job run in error", "", 1, 0, 1)}
    kept = acc.ask("SELECT count(*) FROM public.postprocessing_jobs_stats WHERE last_successful_finish = '2020-01-01'")
    assert kept == [(1,)]


def test_what_cannot_be_called_fails_alone_and_says_why(acc: Acc) -> None:
    """Missing, wrongly declared, misspelt and NULL procedures fail with their SQLSTATE; the job after them runs."""
    bad = [acc.job(name) for name in ("nope", "t_one_arg", "My Sch.Do It", None)]
    good = acc.job("t_ok")
    done = acc.run_once()
    assert done.returncode == 1
    assert acc.tags() == ["ok"]
    codes = ["42883", "42883", "42601", "22004"]
    assert acc.history() == [(job, "failed", code) for job, code in zip(bad, codes, strict=True)] + [
        (good, "succeeded", None)
    ]
    assert [acc.stats()[job] for job in bad] == [("Job run in error", "", 1, 0, 1)] * 4
    finished = acc.ask("SELECT count(last_successful_finish) FROM public.postprocessing_jobs_stats")
    assert finished == [(1,)]
    assert "t_one_arg takes (IN job_id integer)" in done.stderr


def test_a_function_runs_as_well(acc: Acc) -> None:
    """A function that takes (integer, jsonb) is called like a procedure."""
    job = acc.job("t_func", '{"a": 1}')
    assert acc.run_once().returncode == 0
    assert acc.ask("SELECT tag, job, config FROM public.witness") == [("func", job, '{"a": 1}')]


@pytest.mark.parametrize(
    "name",
    ["t_ok(1,null); DROP TABLE witness; --", "t_ok%s", "t_ök", "x" * 70, "a.b.c", "", '"t_ok', "t_ok --", "%(job_id)s"],
)
def test_nothing_but_a_name_is_ever_executed(acc: Acc, name: str) -> None:
    """Text that is no routine's name fails by itself: nothing of it is run, and the next job is."""
    acc.job(name)
    acc.job("t_ok")
    assert acc.run_once().returncode == 1
    assert acc.tags() == ["ok"]
    assert [row[1] for row in acc.history()] == ["failed", "succeeded"]


def test_a_long_name_is_cut_as_postgresql_cuts_it(acc: Acc) -> None:
    """A procedure made with 70 characters is found by the same 70 characters."""
    name = "t_" + "long" * 17
    body = "INSERT INTO public.witness (tag) VALUES ('long')"
    acc.ask(f"CREATE PROCEDURE {name}(i integer, c jsonb) LANGUAGE sql AS $$ {body} $$")
    acc.job(name)
    assert acc.run_once().returncode == 0
    assert acc.tags() == ["long"]


def test_an_error_inside_is_recorded_whole_and_rolled_back(acc: Acc) -> None:
    """A failing procedure leaves nothing, its error is kept with code, detail, hint and context; others run."""
    failing = acc.job("t_fail")
    acc.job("t_ok")
    assert acc.run_once().returncode == 1
    assert acc.tags() == ["ok"]
    assert acc.stats()[failing] == ("Job run in error", "", 1, 0, 1)
    row = acc.history("state, sqlstate, message, detail, hint, context, inner_transactions")[0]
    assert row[:5] == ("failed", "P7001", "boom", "some detail", "some hint")
    assert "t_fail" in row[5] and row[6] == 0


def test_a_success_and_a_failure_keep_the_last_success(acc: Acc) -> None:
    """A failure after a success leaves last_successful_finish where it was."""
    job = acc.job("t_ok")
    assert acc.run_once().returncode == 0
    before = acc.ask("SELECT last_successful_finish FROM public.postprocessing_jobs_stats")
    acc.ask("UPDATE public.postprocessing_jobs SET proc_name = 't_fail' WHERE job_id = %s", job)
    assert acc.run_once().returncode == 1
    assert acc.ask("SELECT last_successful_finish FROM public.postprocessing_jobs_stats") == before


def test_procedures_may_commit(acc: Acc) -> None:
    """COMMIT inside works; a later error keeps what was committed, and the history counts the inner transactions."""
    good, bad = acc.job("t_commit_ok"), acc.job("t_commit_fail")
    assert acc.run_once().returncode == 1
    assert acc.tags() == ["c1", "c2", "c1", "c2"]
    found = acc.history("job_id, state, message, inner_transactions")
    assert found == [(good, "succeeded", None, 2), (bad, "failed", "after commit", 2)]


def test_a_session_that_dies_takes_no_other_job_with_it(acc: Acc) -> None:
    """A procedure that ends its own backend is lost, on record and counted; the jobs after it run."""
    jobs = [acc.job(name) for name in ("t_ok", "t_die", "t_ok", "t_ok")]
    assert acc.run_once().returncode == 1
    assert [row[1] for row in acc.history()] == ["succeeded", "lost", "succeeded", "succeeded"]
    assert acc.tags() == ["ok"] * 3
    assert acc.stats()[jobs[1]] == ("Job run in error", "", 1, 0, 1)


def test_no_job_inherits_another_ones_session(acc: Acc) -> None:
    """Settings, temporary tables and released locks of one job do not reach the next; every run has its own name."""
    acc.job("t_dirty")
    ok, failing = acc.job("t_ok"), acc.job("t_fail")
    assert acc.run_once().returncode == 1
    assert [row[1] for row in acc.history()] == ["succeeded", "succeeded", "failed"]
    assert len(acc.stats()) == 3
    app, zone, path = acc.ask("SELECT app, zone, path FROM public.witness WHERE tag = 'ok'")[0]
    run = acc.ask("SELECT run_id FROM headrace.job_run WHERE job_id = %s", ok)[0][0]
    assert app == f"headrace postprocessing job={ok} run={run}"
    assert (zone, path) == ("Europe/Paris", "public")  # as the server and the role have it
    assert failing in acc.stats()


def test_two_calls_at_once_run_a_job_once(acc: Acc) -> None:
    """A second drop-in that finds a job running skips it, says so, and exits 0."""
    acc.job("t_sleep", '{"s": 3}')
    answers: list[subprocess.CompletedProcess[str]] = []
    first = threading.Thread(target=lambda: answers.append(acc.run_once()))
    first.start()
    acc.site.until(lambda: acc.tags() == ["start"], "the first one sleeps")
    second = acc.run_once()
    first.join()
    assert (second.returncode, second.stdout) == (0, "1 skipped\n")
    assert "is already running" in second.stderr
    assert answers[0].returncode == 0
    assert acc.tags() == ["start", "end"]
    assert sorted(row[1] for row in acc.history()) == ["skipped", "succeeded"]


def test_null_config_is_json_null_or_sql_null_as_the_site_says(acc: Acc) -> None:
    """hdbpp-postprocessing passed JSON null; `legacy_null: sql` passes SQL NULL as TimescaleDB does."""
    acc.job('"My Sch"."Do It"', None)
    assert acc.run_once().returncode == 0
    assert acc.run_once(HEADRACE_POSTPROCESSING__LEGACY_NULL="sql").returncode == 0
    assert [row[0] for row in acc.ask("SELECT config FROM public.witness ORDER BY id")] == ["null", "SQL NULL"]


def test_a_job_may_delete_itself(acc: Acc) -> None:
    """A procedure that deletes its own row succeeds; its history stays, and nothing trips over the missing row."""
    job = acc.job("t_drop_me")
    acc.job("t_ok")
    assert acc.run_once().returncode == 0
    assert acc.history() == [(job, "succeeded", None), (job + 1, "succeeded", None)]
    assert acc.run_once().stdout == "1 succeeded\n"


def test_many_databases_do_not_wait_for_each_other(acc: Acc, empty_dsn: str, tmp_path: Path) -> None:
    """Dead, missing, empty and unroutable databases get one clear line each; the good one is done meanwhile."""
    from tests.integration.postprocessing.conftest import connection_of, write_yaml

    here = connection_of(acc.dsn)
    document = {
        "dead": {"connection": {**here, "host": "127.0.0.1", "port": 9}},
        "missing": {"connection": {**here, "database": "no_such_database"}},
        "empty": {"connection": connection_of(empty_dsn)},
        "acc": {"connection": here},
        "unroutable": {"connection": {**here, "host": "10.255.255.1", "password": "hunter2"}},
    }
    acc.job("t_ok")
    legacy = write_yaml(tmp_path / "several.conf", document)
    done = threading.Thread(target=lambda: answers.append(acc.run_once(legacy=legacy)))
    answers: list[subprocess.CompletedProcess[str]] = []
    done.start()
    acc.site.until(lambda: acc.tags() == ["ok"], "acc's job has run", seconds=8)
    done.join()
    lines = answers[0].stderr.splitlines()
    assert answers[0].returncode == 1
    for name in ("dead", "missing", "empty", "unroutable"):
        assert len([line for line in lines if line.startswith(name)]) == 1, lines
    assert "hunter2" not in answers[0].stderr + answers[0].stdout


def test_a_read_only_database_is_left_alone(acc: Acc) -> None:
    """A standby or read-only server gets no attempt, and one line that says so."""
    acc.job("t_ok")
    name = acc.ask("SELECT current_database()")[0][0]
    acc.ask(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    done = acc.run_once(HEADRACE_CONTROL__DSN=acc.dsn + "?options=-c%20default_transaction_read_only%3Doff")
    assert done.returncode == 1
    assert "read-only" in done.stderr
    assert acc.tags() == []


def test_a_missing_privilege_is_on_record(acc: Acc, request: pytest.FixtureRequest) -> None:
    """A login that may not EXECUTE gets 42501 for that job; its other jobs run."""
    role = f"poor_{acc.ask('SELECT pg_backend_pid()')[0][0]}"
    acc.ask(f"CREATE ROLE {role} LOGIN")
    acc.ask(f"GRANT {role} TO current_user")
    request.addfinalizer(lambda: acc.ask(f"DROP OWNED BY {role}; DROP ROLE {role}"))
    denied, allowed = acc.job("t_func"), acc.job("t_ok")
    acc.ask("REVOKE EXECUTE ON FUNCTION t_func FROM PUBLIC")
    acc.ask(f"GRANT INSERT ON public.witness TO {role}")
    acc.ask("UPDATE headrace.job SET run_as = NULL")
    assert acc.run_once().returncode == 0
    acc.ask("UPDATE headrace.job SET run_as = %s", role)
    assert acc.run_once().returncode == 1
    assert acc.history("job_id, state, sqlstate")[2:] == [(denied, "failed", "42501"), (allowed, "succeeded", None)]
    assert acc.ask("SELECT role FROM public.witness ORDER BY id DESC LIMIT 1") == [(role,)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no database"),
        ("{}", "names no database"),
        ("c1: 5", "c1: expected a section `connection:`"),
        ("c1: {connection: {host: h}}", "c1.connection: `user` is missing"),
        ("c1: {connection: {user: u, port: many}}", "port 'many' is no port number"),
        ("c1: [", "not valid YAML"),
        ("- a", "found a list"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(acc: Acc, tmp_path: Path, text: str, words: str) -> None:
    """A file that is empty, broken or incomplete ends with exit 2, one line and no traceback, `--validate` as well."""
    file = tmp_path / "wrong.conf"
    file.write_text(text)
    for more in ([], ["--validate"]):
        done = acc.run_once(*more, legacy=file)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1 and words in done.stderr and "Traceback" not in done.stderr


def test_a_missing_file_is_refused_in_one_line(acc: Acc, tmp_path: Path) -> None:
    """A file that is not there ends with exit 2."""
    done = acc.run_once(legacy=tmp_path / "nowhere.conf")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "nowhere.conf" in done.stderr


def test_the_defaults_of_the_old_readme_work(acc: Acc, tmp_path: Path) -> None:
    """Password, host, port and database may be left out: localhost, 5432, hdb and no password."""
    file = tmp_path / "short.conf"
    file.write_text("hdb: {connection: {user: someone}}")
    done = acc.run_once(legacy=file)
    assert done.returncode == 3
    assert "host='localhost' port='5432' dbname='hdb'" in done.stderr
    assert acc.run_once("--validate", legacy=file).returncode == 0


def test_the_document_has_counts_and_runs(acc: Acc) -> None:
    """`--json` prints one document with the counts and each run's row."""
    acc.job("t_ok")
    acc.job("t_fail")
    document = json.loads(acc.run_once("--json").stdout)
    counts = {key: document[key] for key in ("succeeded", "failed", "skipped", "lost", "timeout")}
    assert counts == {"succeeded": 1, "failed": 1, "skipped": 0, "lost": 0, "timeout": 0}
    assert [run["state"] for run in document["runs"]] == ["succeeded", "failed"]
    assert document["runs"][1]["error"]["sqlstate"] == "P7001"
    assert [run["key"] for run in document["runs"]] == ["acc:job 1", "acc:job 2"]


def test_an_unreachable_control_database_ends_at_once(acc: Acc) -> None:
    """Without its control database the command exits 3."""
    done = acc.run_once(HEADRACE_CONTROL__DSN="host=127.0.0.1 port=9 dbname=x")
    assert done.returncode == 3


def test_every_run_is_in_the_history_with_what_it_ran(acc: Acc) -> None:
    """A run's row has config, notices, backend, who asked, and the hash of the definition, which changes with it."""
    acc.job("t_ok", '{"k": 1}')
    assert acc.run_once().returncode == 0
    row: Any = acc.history("config, body_hash, notices, backend_pid, requested_by, reason, proc_schema, proc_name")[0]
    pid = acc.ask("SELECT pid FROM public.witness")[0][0]
    assert row[0] == {"k": 1} and row[2] == ['NOTICE:  working on {"k": 1}'] and row[3] == pid
    assert "@" in row[4] and row[5:] == ("drop-in", "public", "t_ok")
    acc.ask("CREATE OR REPLACE PROCEDURE t_ok(job_id integer, config jsonb) LANGUAGE sql AS 'SELECT 1'")
    assert acc.run_once().returncode == 0
    hashes = [found[0] for found in acc.history("body_hash")]
    assert len(set(hashes)) == 2 and all(len(one) == 64 for one in hashes)

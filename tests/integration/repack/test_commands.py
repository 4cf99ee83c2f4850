"""Each command of `headrace repack`, called as a person or a script calls it, as a role that owns its tables only."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import yaml

from tests.conftest import Site
from workers.repack import api
from workers.settings import Settings

SLOW: dict[str, Any] = {"limits": {"sleep_ratio": 100}}  # after each chunk a pause of a second or more
ROWS = 20_000


@dataclass
class Desk:
    """Somebody at a terminal, with settings and a table `app.t` of which every row was updated."""

    site: Site
    file: Path

    def settings(self, **repack: Any) -> None:
        """Write the settings of the room."""
        self.file.write_text(yaml.safe_dump({"repack": repack}))

    def words(self, *words: str) -> list[str]:
        """The command behind `headrace`."""
        return ["--config", str(self.file), "repack", *words]

    def run(self, *words: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        """`headrace repack WORDS`, which must end with this code."""
        done = self.site.run(*self.words(*words), timeout=90, **more)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr and "Warning" not in done.stderr
        return done

    def json(self, *words: str, code: int = 0) -> Any:
        """The document of `headrace repack WORDS --json`."""
        return json.loads(self.run(*words, "--json", code=code).stdout)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """`headrace repack WORDS` beside us."""
        return self.site.start("headrace", *self.words(*words))

    def fill(self, rows: int = ROWS) -> None:
        """The table, twice as large as its rows."""
        self.site.ask("CREATE SCHEMA app; CREATE TABLE app.t (id integer PRIMARY KEY, v text NOT NULL, j jsonb)")
        self.site.ask("CREATE INDEX by_v ON app.t (v)")
        self.site.ask("INSERT INTO app.t SELECT g, 'v' || g, '{\"a\": null}' FROM generate_series(1, %s) g", rows)
        self.site.ask("UPDATE app.t SET v = v || 'x'")
        self.site.ask("ANALYZE app.t")

    def rows(self) -> list[tuple[Any, ...]]:
        """What the table has."""
        return self.site.ask("SELECT count(*), sum(hashtext(t::text)) FROM app.t t")

    def request(self, columns: str = "step, state, rows_copied") -> tuple[Any, ...]:
        """The newest request's row."""
        return self.site.ask(f"SELECT {columns} FROM headrace.repack ORDER BY id DESC LIMIT 1")[0]

    def hurry(self) -> None:
        """Let requests go on without pauses."""
        self.site.ask("UPDATE headrace.repack SET options = jsonb_set(options, '{limits,sleep_ratio}', '0')")

    @contextmanager
    def held_in_copy(self) -> Iterator[None]:
        """After its first chunk the newest request cannot read the table meanwhile."""
        self.until("rows_copied > 0", "the first chunk is copied")
        with closing(psycopg2.connect(self.site.dsn)) as conn, conn.cursor() as cursor:
            cursor.execute("LOCK TABLE app.t IN ACCESS EXCLUSIVE MODE")
            yield

    def until(self, condition: str, what: str) -> None:
        """Wait until the newest request is so."""
        newest = "SELECT 1 FROM headrace.repack WHERE id = (SELECT max(id) FROM headrace.repack) AND"
        self.site.until(lambda: bool(self.site.ask(f"{newest} {condition}")), what)

    def leftovers(self) -> list[tuple[Any, ...]]:
        """Schemas and triggers of ours that are there still."""
        return self.site.ask(
            "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'headrace_%%'"
            " UNION ALL SELECT tgname FROM pg_trigger WHERE tgname LIKE 'headrace_%%'"
        )


@pytest.fixture
def desk(site: Site, tmp_path: Path) -> Desk:
    """Settings that say nothing of the room."""
    made = Desk(site, tmp_path / "headrace.yaml")
    made.settings()
    return made


def test_a_table_is_rewritten_here(desk: Desk) -> None:
    """run --here reports one document, the table is smaller and the same, and the estimate stands beside the gain."""
    desk.fill()
    desk.settings(plans={"all": {"schemas": ["app"], "thresholds": {"min_bloat_bytes": 1}}})
    [seen] = desk.json("connections")["connections"]
    assert (seen["database"], seen["reachable"], seen["set_up"], seen["active"]) == ("control", True, True, 0)
    before = desk.rows()
    document = desk.json("run", "--here")
    assert [document[key] for key in ("succeeded", "failed", "skipped", "lost", "timeout", "problems")] == [
        1, 0, 0, 0, 0, [],
    ]  # fmt: skip
    assert [run["state"] for run in document["runs"]] == ["succeeded"]
    [table] = document["tables"]
    assert {key: table[key] for key in ("database", "schema", "table", "state", "reason", "rows_copied")} == {
        "database": "control", "schema": "app", "table": "t", "state": "done", "reason": None, "rows_copied": ROWS,
    }  # fmt: skip
    assert table["bytes_after"] < 0.7 * table["bytes_before"] and 0 < table["hold_seconds"] < 1
    assert (desk.rows(), desk.leftovers()) == (before, [])
    [gain] = desk.json("candidates", "--history")["history"]
    assert gain["repack"] == table["repack"] and gain["gained_bytes"] == table["bytes_before"] - table["bytes_after"]
    assert 0.5 * gain["gained_bytes"] < gain["bloat_bytes"] < 1.5 * gain["gained_bytes"]
    assert "below 30 %" in desk.run("candidates", "control", "--refresh").stdout


def test_what_cannot_be_done_says_why(desk: Desk) -> None:
    """Refused tables are exit 1, a line each; names and rules that are wrong are exit 2, before anything begins."""
    desk.fill(10)
    desk.site.ask("CREATE TABLE app.nokey (a integer)")
    desk.settings(databases={"control": {"tables": {"app.nokey": {}, "app.t": {"cleanup_nulls": ["v"]}}}})
    wrong = desk.run("run", "app.t", "--here", code=2).stderr
    assert wrong == "headrace: app.t: cleanup_nulls: column v is of type text, not json or jsonb; take it out\n"
    assert "cleanup_nulls" in desk.site.run("--config", str(desk.file), "validate").stderr
    desk.settings()
    refused = desk.run("run", "app.nokey", "app.x", "--here", code=1).stderr.splitlines()
    assert len(refused) == 2 and "app.nokey: has no usable key" in refused[0] and "primary key" in refused[0]
    assert refused[1] == "app.x: there is no such table; did you mean app.t?"
    assert "schema.table" in desk.run("run", "t", "--here", code=2).stderr
    assert "did you mean" in desk.run("run", "app.t", "--database", "contrl", "--here", code=2).stderr
    plan = desk.json("plan", "app.t", "app.nokey", code=1)
    assert [table["table"] for table in plan["tables"]] == ["t"] and "has no usable key" in plan["problems"][0]
    assert plan["tables"][0]["statements"][0]["step"] == "rehearsal"
    assert desk.site.ask("SELECT count(*) FROM headrace.repack") == [(0,)]
    assert "cannot be reached" in desk.run(
        "run", "app.t", "--here", code=3, HEADRACE_CONTROL__DSN="host=127.0.0.1 port=1 dbname=x"
    ).stderr  # fmt: skip


def test_prepared_now_and_swapped_later(desk: Desk) -> None:
    """A copy is kept in step by a process of its own until swap, or run, lets it take the table's place."""
    desk.fill()
    desk.settings(replay_seconds=0.1, limits={"swap_below_rows": 1})
    said = desk.run("prepare", "app.t", "--here", "--start-replay", "--fillfactor", "80", "--cluster", "by_v")
    assert "prepared" in said.stdout and "keeps the copies in step" in said.stderr
    desk.site.ask("UPDATE app.t SET v = 'new' WHERE id <= 500")
    desk.until("keys_replayed >= 500", "the process has replayed the changes")
    desk.site.ask("DELETE FROM app.t WHERE id > 19990")
    before = desk.rows()
    assert "repacked" in desk.run("swap", "--here").stdout
    assert (desk.rows(), desk.leftovers()) == (before, [])
    assert desk.site.ask("SELECT reloptions FROM pg_class WHERE oid = 'app.t'::regclass") == [(["fillfactor=80"],)]
    desk.run("prepare", "app.t", "--here", "--keep-old", "1")
    document = desk.json("run", "app.t", "--here")
    assert document["tables"][0]["state"] == "active" and desk.request("step, hold_seconds > 0") == ("drop", True)
    assert "old table is kept until" in desk.run("run", "app.t", "--here", code=1).stderr
    assert desk.json("abort", "app.t", "--here")["tables"][0]["state"] == "aborted"
    assert (desk.rows(), desk.leftovers()) == (before, [])


def test_a_killed_run_is_resumed_and_a_second_one_refused(desk: Desk) -> None:
    """While one is at it another is refused with its number; killed, the same command goes on with what is copied."""
    desk.fill()
    desk.settings(**SLOW)
    first = desk.start("run", "app.t", "--here")
    with desk.held_in_copy():
        assert "is being rewritten already (repack 1, at copy)" in desk.run("run", "app.t", "--here", code=1).stderr
        shown = json.loads(desk.run("status", "--json").stdout)["databases"][0]["requests"][0]
        assert shown["step"] == "copy" and 0 < shown["percent"] < 100 and shown["eta_seconds"] > 0
        first.kill()
        first.wait()
    copied = desk.request("rows_copied")[0]
    assert 0 < copied < ROWS
    desk.settings()
    desk.hurry()
    again = desk.run("run", "app.t", "--here")
    assert f"resumes repack 1 at copy, {copied:,} rows copied" in again.stderr
    assert desk.request() == ("drop", "done", ROWS) and desk.leftovers() == []


def test_sigterm_cancels_the_statement_in_hand(desk: Desk) -> None:
    """It ends at once although an index takes long to build; the request stays, and abort leaves nothing behind."""
    desk.fill(2000)
    function = "FUNCTION app.slow(v text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN {} RETURN v; END'"
    desk.site.ask(f"CREATE {function.format('')}; CREATE INDEX slowly ON app.t (app.slow(v))")
    desk.site.ask(f"CREATE OR REPLACE {function.format('PERFORM pg_catalog.pg_sleep(0.05);')}")
    process = desk.start("run", "app.t", "--here")
    asleep = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX slowly%%' AND state = 'active'"
    desk.site.until(lambda: bool(desk.site.ask(asleep)), "the index is being built")
    process.send_signal(signal.SIGTERM)
    desk.site.until(lambda: process.poll() is not None, "the process has ended")
    assert process.returncode == 130
    assert "ended by SIGTERM: repack 1 stays at index" in desk.site.log(process)
    assert desk.request() == ("index", "active", 2000)
    asked = "SELECT state, error ->> 'message' FROM headrace.run WHERE requested_by IS NOT NULL"
    assert desk.site.ask(asked) == [("cancelled", "ended by SIGTERM")]
    assert "given up" in desk.run("abort", "--all", "--here").stdout
    assert desk.leftovers() == []


def test_workers_do_what_is_asked_for(desk: Desk) -> None:
    """Without --here a worker does it, and --wait follows it to its end; paused it stays where it is until resume."""
    desk.fill()
    desk.settings(**SLOW)
    desk.site.worker(options=("-Q", "repack"), HEADRACE_CONFIG=str(desk.file))
    desk.run("run", "app.t")
    with desk.held_in_copy():
        assert "paused" in desk.run("pause", "app.t").stdout
    over = "SELECT 1 FROM headrace.run WHERE state IN ('skipped', 'cancelled')"
    desk.site.until(lambda: bool(desk.site.ask(over)), "the worker has stopped, and no message is on its way")
    copied = desk.request("rows_copied")[0]
    assert copied < ROWS
    assert "is paused by" in desk.run("run", "app.t", code=1).stderr
    assert "goes on" in desk.run("resume").stdout
    desk.hurry()
    document = desk.json("run", "app.t", "--wait")
    assert (document["succeeded"], document["tables"][0]["state"]) == (1, "done")
    assert desk.request() == ("drop", "done", ROWS) and desk.leftovers() == []


REPCLOUD = """
[logging]
log_level = "info"
[connections.here]
{here}
schemas = []
tables = ["app.t"]
max_replay_rows = 1000
lock_timeout = "1s"
deadlock_resolution = "nothing"
[connections.away]
host = "127.0.0.1"
port = 1
database = "x"
schemas = []
tables = ["app.t"]
"""


def test_repcloud_files_are_taken_as_they_are(desk: Desk, tmp_path: Path) -> None:
    """By name below HOME or by path, with the tables' own file: what is listed is rewritten, in each connection."""
    desk.fill(500)
    parts = desk.site.dsn.removeprefix("postgresql://")
    login, _, place = parts.rpartition("@")
    user, _, password = login.partition(":")
    address, _, name = place.partition("/")
    host, _, port = address.partition(":")
    here = f'user = "{user}"\npassword = "{password}"\nhost = "{host}"\nport = {port}\ndatabase = "{name}"'
    folder = tmp_path / ".repcloud" / "config"
    (folder / "table_conf").mkdir(parents=True)
    (folder / "default.toml").write_text(REPCLOUD.format(here=here))
    (folder / "table_conf" / "default_here.toml").write_text(
        "[storage.app.t]\nfillfactor = 60\n[app.t]\nj.cleanup_nulls = true\n"
    )
    home, legacy = {"HOME": str(tmp_path)}, ("--legacy-config", "default")
    both = desk.run("run", "--here", *legacy, code=1, **home)
    assert "here: app.t: repacked" in both.stdout
    assert "away" in both.stderr and "cannot be reached" in both.stderr and password not in both.stderr + both.stdout
    assert desk.site.ask("SELECT reloptions FROM pg_class WHERE oid = 'app.t'::regclass") == [(["fillfactor=60"],)]
    assert desk.site.ask("SELECT DISTINCT j::text FROM app.t") == [("{}",)]
    path = ("--legacy-config", str(folder / "default.toml"))
    desk.run("run", "--here", *path, "--connection", "away", code=3)
    assert "did you mean 'here'" in desk.run("run", "--here", *path, "--connection", "her", code=2).stderr
    printed = desk.run("import", str(folder / "default.toml")).stdout
    assert yaml.safe_load(printed)["repack"]["databases"]["here"]["tables"]["app.t"]["fillfactor"] == 60


def test_everything_of_it_is_taken_out_of_a_database(desk: Desk) -> None:
    """drop-schema asks first; then copies, logs, what failed ones left and our tables go, and setup makes them anew."""
    desk.fill(500)
    desk.run("prepare", "app.t", "--here")
    desk.site.ask("CREATE SCHEMA headrace_old_77; CREATE TABLE headrace_old_77.t (a integer)")
    before = desk.rows()
    asked = desk.run("drop-schema", code=130).stderr
    assert "app.t: repack 1 is given up" in asked and "headrace_old_77.t" in asked
    assert len(desk.leftovers()) > 1
    assert "table headrace.repack: gone" in desk.run("drop-schema", "--yes").stdout
    assert (desk.rows(), desk.leftovers()) == (before, [])
    assert desk.site.ask("SELECT to_regclass('headrace.repack') IS NULL") == [(True,)]
    assert "CREATE TABLE headrace.repack " in desk.run("setup", "--print").stdout
    assert "repack.sql" in desk.run("setup", "control").stdout
    assert desk.site.ask("SELECT to_regclass('headrace.repack') IS NULL") == [(False,)]


def test_what_failed_shows_in_the_status_of_all(desk: Desk) -> None:
    """A rewrite that failed needs somebody, who is told once, and what to do."""
    desk.fill(10)
    desk.site.ask("CREATE UNIQUE INDEX twice ON app.t ((v || id::text))")
    desk.run("prepare", "app.t", "--here")
    desk.site.ask("ALTER TABLE app.t ADD COLUMN more integer")
    assert "was changed since" in desk.run("swap", "--here", code=1).stderr
    failed = desk.run("status", code=1).stdout
    assert "repack 1 failed" in failed and "`headrace repack run app.t` begins anew" in failed
    done = desk.site.run("--config", str(desk.file), "status", "--json")
    needs = json.loads(done.stdout)["needs_a_person"]
    assert done.returncode == 1 and len([need for need in needs if "app.t" in need]) == 1


def test_replay_leaves_nothing_in_the_log(conf: Settings, sql: Callable[..., list[tuple[Any, ...]]]) -> None:
    """A prepared copy that is brought up to date has every change, not all but a few."""
    sql("CREATE SCHEMA app; CREATE TABLE app.t (id integer PRIMARY KEY, v text)")
    sql("INSERT INTO app.t SELECT g, 'old' FROM generate_series(1, 100) g")
    repack, _said = api.begin(conf, "control", "app", "t", api.Wish(goal="ready"))
    message = api.message("control", repack, "app", "t")
    assert api.finish(conf, [message], timeout=timedelta(seconds=30)) == []
    sql("UPDATE app.t SET v = 'new'")
    api.go_on(conf, "control", repack)
    assert api.finish(conf, [message], timeout=timedelta(seconds=30)) == []
    assert sql(f"SELECT count(*) FROM headrace_log_{repack}.log") == [(0,)]

"""Rewrites of tables on Headrace's page and in its metrics: how far each is, who is needed, what was gained."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.monitor.test_jobs import BROWSER, Tables, ask, connection_of
from workers import database, execution
from workers import settings as settings_module
from workers.messages import ChooseTables
from workers.monitor.answers import Answer
from workers.monitor.board import Board, Snapshot
from workers.monitor.metrics import exposition
from workers.monitor.rewrite_metrics import counts, families
from workers.monitor.rewrites import overview
from workers.repack import api, requests
from workers.repack.requests import Wish
from workers.repack_settings import Limits
from workers.services.ports import choose_port
from workers.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import Servers, Site

SECRET = "s3cret-of-the-archive"  # the login of the database that is down, and in a problem: on no page
OWNED = "<script>document.title='owned'</script>"
HOSTILE = f'"{OWNED}'  # the name of a table
ROWS = 5000
ACTIVE = [
    "Table", "Database", "Id", "State", "Step", "Done", "Rows", "Rate", "Backlog", "Log", "Copy", "Size", "Hold", "By",
]  # fmt: skip
ENDED = ["Table", "Database", "Id", "State", "At", "Took", "Rows", "Size", "Gained", "Hold", "By"]
# Messages as short as can be: each step ends before its work does.
SHORT = Limits(slice_seconds=0.001, chunk_seconds=0.05, rehearse=False)
STEPS = ("prepare", "copy", "index", "replay", "swap", "verify", "drop")


@dataclass(frozen=True)
class Monitored:
    """A Flower that looks at a database with requests in every state, one that is down and one without our tables."""

    site: Site
    port: int
    password: str
    ids: dict[str, int]

    def get(self, path: str, *, login: bool = True) -> str:
        word = base64.b64encode(f"headrace:{self.password}".encode()).decode()
        headers = {"Authorization": f"Basic {word}"} if login else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=15) as answer:
            return str(answer.read().decode())

    def metrics(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Every metric of repack by its name, without the prefix, and by the values of its labels."""
        return metrics_of(self.get("/metrics"))

    def row(self, table: str, columns: str) -> tuple[Any, ...]:
        """What the database says about a request."""
        return ask(self.site.dsn, f"SELECT {columns} FROM headrace.repack WHERE id = %s", self.ids[table])[0]


def metrics_of(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("headrace_repack_"):
                rows = found.setdefault(sample.name.removeprefix("headrace_repack_"), {})
                labels = tuple(value for _, value in sorted(sample.labels.items()))
                assert labels not in rows  # Prometheus would refuse the scrape
                rows[labels] = sample.value
    return found


def lines_of(page: str, table: str, columns: list[str]) -> dict[str, dict[str, str]]:
    """The cells of a table of the page by the name of the request's table, with its note below it."""
    found: dict[str, dict[str, str]] = {}
    last: dict[str, str] = {}
    for row in Tables(page).rows.get(table, []):
        if len(row) == 1:
            last["Note"] = row[0]
        elif row:
            last = found[row[0]] = dict(zip(columns, row, strict=True))
    return found


def alerts_of(page: str) -> list[str]:
    """The red lines, as they are in the page's source."""
    return [part.partition("</p>")[0] for part in page.split('<p class="alert alert-danger" role="alert">')[1:]]


def make_table(dsn: str, name: str, *, rows: int = ROWS, every: int = 10) -> None:
    """A table of which nearly all is waste: one row in `every` is left."""
    quoted = '"' + name.replace('"', '""') + '"'
    ask(dsn, f"CREATE TABLE app.{quoted} (id integer PRIMARY KEY, v text) WITH (autovacuum_enabled = false)")
    ask(dsn, f"INSERT INTO app.{quoted} SELECT n, repeat('x', 100) FROM generate_series(1, {rows}) n")
    ask(dsn, f"DELETE FROM app.{quoted} WHERE id % {every} <> 0")
    ask(dsn, f"ANALYZE app.{quoted}")


def begin(conf: Settings, table: str, **wish: Any) -> int:
    return requests.request(conf, "control", "app", table, Wish(**{"limits": SHORT, **wish}))


def step_to(conf: Settings, dsn: str, repack: int, table: str, condition: str) -> None:
    """Take a request further, a message at a time, until its row is so."""
    for _ in range(50):
        if ask(dsn, f"SELECT {condition} FROM headrace.repack WHERE id = %s", repack)[0][0]:
            return
        ask(dsn, "UPDATE headrace.repack SET due_at = clock_timestamp() WHERE id = %s", repack)
        execution.execute(requests.message("control", repack, "app", table), conf)
    raise AssertionError(f"never {condition}")


def settings_of(site: Site) -> dict[str, Any]:
    none = {"min_bloat_percent": 0, "min_bloat_bytes": 0}
    return {
        "repack": {
            "plans": {
                "nightly": {"tables": ["app.done"], "thresholds": none},
                "picky": {"tables": ["app.done", "app.half"], "thresholds": {"min_bloat_percent": 100}},
            }
        },
        "databases": {"gone": connection_of(site.dsn, port=1, password=SECRET)},
    }


@pytest.fixture(scope="module")
def ids(module_site: Site) -> Iterator[dict[str, int]]:
    """Requests of every state by the table that each is of."""
    dsn = module_site.dsn
    words = settings_of(module_site)
    conf = Settings(host="here", control={"dsn": dsn}, data_dir=module_site.folder / "state", **words)
    settings_module.use(conf)
    execution.load_rooms()
    ask(dsn, "CREATE SCHEMA app")
    for name in ("done", "ready", "dropped", "old", HOSTILE):
        make_table(dsn, name)
    make_table(dsn, "half", rows=48_000, every=2)  # more than two chunks are left
    found = {}
    choice = ChooseTables(database="control", plan="nightly")
    assert execution.run_here([choice], conf, timeout=timedelta(seconds=30)) == []
    found["done"] = ask(dsn, "SELECT id FROM headrace.repack WHERE table_name = 'done'")[0][0]
    found["ready"] = begin(conf, "ready", goal="ready", by="kim", limits=Limits(rehearse=False))
    message = requests.message("control", found["ready"], "app", "ready")
    assert requests.finish(conf, [message], timeout=timedelta(seconds=30)) == []
    ask(dsn, "UPDATE headrace.repack SET problem = 'the lock was not to be had' WHERE id = %s", found["ready"])
    found["half"] = begin(conf, "half", by="lee")
    step_to(conf, dsn, found["half"], "half", "rows_copied > 0")
    found["dropped"] = begin(conf, "dropped", by="kim")
    step_to(conf, dsn, found["dropped"], "dropped", "step = 'copy'")
    ask(dsn, "DROP TABLE app.dropped")
    message = requests.message("control", found["dropped"], "app", "dropped")
    assert requests.finish(conf, [message], timeout=timedelta(seconds=30)) != []
    found[HOSTILE] = begin(conf, HOSTILE, by=OWNED)
    ask(
        dsn,
        "UPDATE headrace.repack SET paused_at = '2026-03-01 10:20:30+00', paused_by = %s, problem = %s WHERE id = %s",
        OWNED, f"{OWNED}\n\u202e password={SECRET} " + "x" * 5000 + " the end", found[HOSTILE],
    )  # fmt: skip
    found["old"] = begin(conf, "old", by="kim")
    ask(
        dsn,
        "UPDATE headrace.repack SET state = 'aborted', finished_at = now() - interval '8 days' WHERE id = %s",
        found["old"],
    )
    # Somebody looked again after the rewrite, and found nothing worth while.
    look = ChooseTables(database="control", plan="picky")
    assert execution.run_here([look], conf, timeout=timedelta(seconds=20)) == []
    ask(
        dsn,
        "INSERT INTO headrace.repack_candidate (schema_name, table_name, method, looked_at, table_bytes, index_bytes,"
        " toast_bytes, table_bloat_bytes, index_bloat_bytes, toast_bloat_bytes, verdict)"
        " VALUES ('app', 'gone', 'statistics', now() - interval '8 days', 9, 0, 0, 9, 0, 0, 'chosen')",
    )
    settings_module._current = None
    database.close_all()
    yield found


@pytest.fixture(scope="module")
def monitored(module_site: Site, servers: Servers, ids: dict[str, int]) -> Iterator[Monitored]:
    """Flower over these requests."""
    words = settings_of(module_site)
    words["databases"]["bare"] = connection_of(servers.postgres.dsn("postgres"))
    port = choose_port(None)
    flower = module_site.start(
        "flower",
        f"--port={port}",
        HEADRACE_DATABASES=json.dumps(words["databases"]),
        HEADRACE_REPACK=json.dumps(words["repack"]),
    )

    def is_up() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=5) as answer:
                return bool(answer.read() == b"OK")
        except OSError:
            return False

    module_site.until(is_up, "Flower answers")
    credentials = json.loads((module_site.folder / "state" / "credentials.json").read_text())
    yield Monitored(module_site, port, credentials["flower_password"], ids)
    assert SECRET not in module_site.log(flower)


def test_the_page_asks_for_the_login(monitored: Monitored) -> None:
    """Nobody sees the names of tables without it."""
    with pytest.raises(urllib.error.HTTPError, match="401"):
        monitored.get("/headrace/repack", login=False)


def test_the_page_tells_how_far_each_request_is(monitored: Monitored) -> None:
    """A line has the state, step, rows, sizes and who asked, as the request's row says; the newest comes first."""
    lines = lines_of(monitored.get("/headrace/repack"), "repack-active", ACTIVE)
    assert list(lines) == [f"app.{HOSTILE}", "app.half", "app.ready"]
    half, ready = lines["app.half"], lines["app.ready"]
    copied, estimated, before = monitored.row("half", "rows_copied, rows_estimated, bytes_before")
    assert half["Id"] == str(monitored.ids["half"]) and half["Database"] == "control"
    assert half["State"] == "waiting" and half["Step"].startswith("copy, for ")
    assert half["Rows"] == f"{copied:,} of {max(estimated, copied):,}" and half["By"] == "lee"
    part = f"{100 * copied / max(estimated, copied):.1f} %; "
    assert half["Done"].startswith(part) and half["Done"].endswith(" left")
    assert 0 < int(half["Rate"].replace(",", "")) <= copied * 1000
    assert half["Size"] == api.size(before) and half["Hold"] == "—" and "Note" not in half
    assert half["Copy"].endswith("kB") and half["Log"] == "0 B"
    assert ready["State"] == "ready: waits for a person" and ready["Step"].startswith("replay, for ")
    assert ready["Backlog"] == "0" and ready["Done"].endswith(" keys replayed") and ready["By"] == "kim"
    assert ready["Note"] == "the lock was not to be had"


def test_the_page_lists_what_ended_lately(monitored: Monitored) -> None:
    """What ended within seven days has its state, time, sizes, gain and hold; what ended before has no line."""
    lines = lines_of(monitored.get("/headrace/repack"), "repack-ended", ENDED)
    assert list(lines) == ["app.dropped", "app.done"]
    done, dropped = lines["app.done"], lines["app.dropped"]
    before, after, estimated, hold, finished_at = monitored.row(
        "done", "bytes_before, bytes_after, estimated_gain_bytes, hold_seconds, finished_at"
    )
    assert after < before
    assert done["State"] == "done" and done["At"] == f"{finished_at:%Y-%m-%d %H:%M:%S}" and done["By"] == "plan nightly"
    assert done["Size"] == f"{api.size(before)} → {api.size(after)}" and done["Rows"] == f"{ROWS // 10:,}"
    assert done["Gained"] == f"{api.size(before - after)} of {api.size(estimated)} estimated"
    assert done["Hold"] == f"{1000 * hold:,.1f} ms"
    reason, problem = monitored.row("dropped", "reason, problem")
    assert dropped["State"] == f"failed: {reason}" and dropped["Note"] == problem and dropped["Gained"] == "—"


def test_the_page_has_the_newest_estimates(monitored: Monitored) -> None:
    """Each table that was looked at has one line with the newest verdict, beside what its last rewrite gave back."""
    rows = [row for row in Tables(monitored.get("/headrace/repack")).rows["repack-estimates"] if row]
    # The most wasteful first; what nobody has seen for a week may be gone.
    names = [row[0] for row in rows]
    assert len(names) == len(set(names)) and names.index("app.half") < names.index("app.done")
    half, done = rows[names.index("app.half")], rows[names.index("app.done")]
    before, after, estimated = monitored.row("done", "bytes_before, bytes_after, estimated_gain_bytes")
    assert done[7] == f"{api.size(before - after)} of {api.size(estimated)} estimated" and half[7] == "—"
    assert (half[1], half[5]) == ("control", "already being rewritten") and done[5] == "below 100 %"
    size, bloat = ask(
        monitored.site.dsn,
        "SELECT table_bytes + index_bytes + toast_bytes, table_bloat_bytes + index_bloat_bytes + toast_bloat_bytes"
        "  FROM headrace.repack_candidate WHERE table_name = 'half' ORDER BY id DESC LIMIT 1",
    )[0]
    assert half[2:5] == [api.size(size), api.size(bloat), f"{100 * bloat / size:.1f} %"] and bloat > 0


def test_each_need_is_a_red_line(monitored: Monitored) -> None:
    """What needs somebody is said as `status` says it, to the command at its end."""
    alerts = alerts_of(monitored.get("/headrace/repack"))
    failed = next(alert for alert in alerts if "app.dropped: repack" in alert)
    assert failed.startswith("control: ") and failed.endswith("`headrace repack run app.dropped` begins anew")
    assert any(alert.endswith("app.ready: waits for somebody: the lock was not to be had") for alert in alerts)
    assert not any("app.done" in alert or "app.half" in alert for alert in alerts)


def test_a_database_that_is_down_hides_no_other(monitored: Monitored) -> None:
    """It is one line with the reason and without its password, and 0 in the metrics; one without our tables is fine."""
    page, overview_page = monitored.get("/headrace/repack"), monitored.get("/headrace")
    alerts = [alert for alert in alerts_of(page) if "cannot be seen" in alert]
    assert len(alerts) == 1 and alerts[0].startswith("gone cannot be seen: gone (") and "password=•••" in alerts[0]
    assert "gone cannot be seen." in overview_page
    assert SECRET not in page + overview_page + monitored.get("/metrics")
    metrics = monitored.metrics()
    assert metrics.pop("up") == {("control",): 1, ("gone",): 0, ("bare",): 1}
    assert {labels[0] for rows in metrics.values() for labels in rows} == {"control"}


def test_what_somebody_called_a_table_stays_text(monitored: Monitored) -> None:
    """No name and no reason gets out of its cell or turns the writing around, and a long one keeps its end."""
    page = monitored.get("/headrace/repack")
    assert OWNED not in page and "\u202e" not in page and SECRET not in page
    line = lines_of(page, "repack-active", ACTIVE)[f"app.{HOSTILE}"]
    assert line["State"] == f"paused by {OWNED} since 2026-03-01 10:20:30" and line["By"] == OWNED
    assert line["Note"].startswith(f"{OWNED}\\n\\u202e password=•••") and line["Note"].endswith("the end")
    assert len(line["Note"]) < 700


def test_the_overview_counts_and_leads_there(monitored: Monitored) -> None:
    """Its numbers are of all databases, and its link is the page."""
    page = monitored.get("/headrace")
    words = " ".join(page.partition('<p id="rewrites"')[2].partition("</p>")[0].split())
    assert "3 active" in words and ">2 waiting for a person<" in words and ">1 failed in the last 7 days<" in words
    assert 'href="/headrace/repack"' in words


def test_metrics_are_what_the_rows_say(monitored: Monitored) -> None:
    """Each figure of a table is the one of its request; a table that is not being rewritten has no backlog."""
    found = monitored.metrics()
    assert found["active"] == {
        ("control", step): {"prepare": 1, "copy": 1, "replay": 1}.get(step, 0) for step in STEPS
    }  # fmt: skip
    assert [found[name]["control",] for name in ("failed", "waiting", "needs")] == [1, 2, 2]
    copied, estimated = monitored.row("half", "rows_copied, rows_estimated")
    hostile, half, ready = (("control", f"app.{name}") for name in (HOSTILE, "half", "ready"))
    assert found["rows_copied"] == {half: copied, ready: ROWS // 10, hostile: 0}
    assert found["rows_estimated"][half] == estimated
    assert found["log_bytes"] == {half: 0, ready: 0, hostile: 0} and found["backlog_rows"] == {ready: 0}
    before, after, hold = monitored.row("done", "bytes_before, bytes_after, hold_seconds")
    assert found["gained_bytes"] == {("control", "app.done"): before - after}
    assert found["last_hold_seconds"] == {("control", "app.done"): pytest.approx(hold)}


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_a_browser_shows_requests_and_runs_no_name(monitored: Monitored, tmp_path: Path) -> None:
    """In a real browser requests and estimates are readable, and a script for a name stays a name."""
    assert BROWSER is not None
    address = f"http://headrace:{monitored.password}@127.0.0.1:{monitored.port}/headrace/repack"
    switches = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom")
    argv = [BROWSER, *switches, f"--user-data-dir={tmp_path}", address]
    dom = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    assert lines_of(dom, "repack-active", ACTIVE)[f"app.{HOSTILE}"]["By"] == OWNED
    assert lines_of(dom, "repack-ended", ENDED)["app.done"]["State"] == "done"
    assert "<title>Rewrites" in dom and OWNED not in dom


def test_a_server_that_hangs_delays_nothing(ids: dict[str, int], module_site: Site, tmp_path: Path) -> None:
    """One that accepts connections and never answers costs the three seconds of patience, and no other database."""
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        hanging = connection_of(module_site.dsn, host="127.0.0.1", port=silent.getsockname()[1], sslmode="disable")
        board = Board(
            Settings(
                host="here", control={"dsn": module_site.dsn}, data_dir=tmp_path, databases={"hanging": hanging}
            )
        )  # fmt: skip
        began = time.monotonic()
        found = asyncio.run(board.rewrites())
        assert time.monotonic() - began < 8  # it gives up connecting after ten
    assert "no answer within 3 s" in (found["hanging"].error or "")
    assert len((found["control"].value or {})["requests"]) == len(ids) - 1  # one ended long ago


def test_a_look_waits_for_no_swap(ids: dict[str, int], module_site: Site, tmp_path: Path) -> None:
    """While somebody holds a copy for himself everything but the sizes is there."""
    board = Board(Settings(host="here", control={"dsn": module_site.dsn}, data_dir=tmp_path))
    with closing(psycopg2.connect(module_site.dsn)) as conn, conn.cursor() as cursor:
        cursor.execute(f"LOCK TABLE headrace_new_{ids['ready']}.ready IN ACCESS EXCLUSIVE MODE")
        found = asyncio.run(board.rewrites())
    assert found["control"].error is None
    ready = next(one for one in overview(found).active if one.table == "app.ready")
    assert (ready.copy, ready.log, ready.rows) == ("—", "—", f"{ROWS // 10:,} of {ROWS // 10:,}")
    samples = [sample for family in families(found) for sample in family.samples]
    assert not any(sample.name == "headrace_repack_log_bytes" for sample in samples)
    assert sum(sample.name == "headrace_repack_rows_copied" for sample in samples) == 3


def test_a_look_makes_no_tables(empty_dsn: str, tmp_path: Path) -> None:
    """A database without our tables has none after the page was looked at, and nothing is said of rewrites."""
    conf = Settings(host="here", control={"dsn": empty_dsn}, data_dir=tmp_path)
    found = asyncio.run(Board(conf).rewrites())
    assert (found["control"].value or {})["set_up"] is False
    assert counts(found) is None and overview(found).troubles == ()
    assert metrics_of(exposition(Snapshot(repack=found)).decode()) == {"up": {("control",): 1}}
    assert ask(empty_dsn, "SELECT to_regnamespace('headrace')") == [(None,)]


def test_a_login_without_rights_is_a_line(dsn: str, servers: Servers, tmp_path: Path) -> None:
    """A database whose requests Flower's login may not read is said to be so, in PostgreSQL's words."""
    ask(dsn, "SELECT 1")
    admin = servers.postgres.superuser_dsn(psycopg2.extensions.parse_dsn(dsn)["dbname"])
    ask(admin, "CREATE ROLE repack_stranger LOGIN PASSWORD 'x'")
    try:
        ask(admin, "GRANT USAGE ON SCHEMA headrace TO repack_stranger")
        stranger = psycopg2.extensions.make_dsn(dsn, user="repack_stranger", password="x")
        board = Board(Settings(host="here", control={"dsn": stranger}, data_dir=tmp_path))
        found = asyncio.run(board.rewrites())
    finally:
        ask(admin, "DROP OWNED BY repack_stranger")
        ask(admin, "DROP ROLE repack_stranger")
    assert "permission denied for table repack" in (found["control"].error or "")


def test_two_tables_of_one_name_are_one_series() -> None:
    """A dot may be in a schema's name, too: Prometheus gets no series twice, and the newest request is the one."""
    parts = [(1, "a.b", "c", 7), (2, "a", "b.c", 9)]
    found = [
        {"id": number, "schema": schema, "table": table, "state": "active", "is": "running", "step": "copy",
         "rows_copied": copied, "rows_estimated": 10, "backlog_rows": None, "log_bytes": None, "hold_seconds": None}
        for number, schema, table, copied in parts
    ]  # fmt: skip
    answers = {"control": Answer({"set_up": True, "requests": found, "needs": [], "estimates": []})}
    rows = next(family for family in families(answers) if family.name == "headrace_repack_rows_copied").samples
    assert [(sample.labels, sample.value) for sample in rows] == [({"database": "control", "table": "a.b.c"}, 9)]

"""Derived products on Headrace's pages and in its metrics: how missions stand, what failed, why, and what to do."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.etree import ElementTree

import psycopg2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.monitor.test_jobs import BROWSER, Tables, ask, connection_of
from tests.integration.products.rows import DAY, Rows
from workers.monitor.archive import BUILDS, QUARANTINED, overview
from workers.monitor.archive_metrics import counts
from workers.monitor.board import Board, Snapshot
from workers.monitor.metrics import exposition
from workers.products import api
from workers.services.ports import choose_port
from workers.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import Servers, Site

SECRET = "s3cret-of-the-archive"  # in a problem, and the login of a database that is down: on no page
OWNED = "<script>document.title='owned'</script>"
HOSTILE = f"a/../b %41?#&'\"\n{OWNED}"  # the name of a mission
SHOWN = HOSTILE.replace("\n", "\\n")
READER = "products_reader"  # the login with which Flower reads the missions
COLUMNS = {
    "missions": ["Mission", "Graph", "Due", "Building", "Retrying", "Failed", "Quarantined", "Broken", "Plan", "Hosts"],
    "running": ["What", "Mission", "Build", "Host", "Reason", "For"],
    "failed": ["What", "Mission", "Kind", "Attempts", "At", "Remedy"],
    "quarantine": ["File", "Mission", "Id", "Host", "Reason", "Suggestion", "At"],
    "left": ["Path", "Host", "Problem", "At"],
    "held": ["Process", "Version", "Mission", "At", "Remedy"],
    "builds": ["What", "Mission", "Build", "State", "Reason", "Code", "Host", "At", "Took"],
}


@dataclass(frozen=True)
class Monitored:
    """A Flower that looks at a mission with something of everything, and at one with a name of the worst kind."""

    site: Site
    port: int
    password: str
    ids: dict[str, int]

    def open(self, path: str, *, login: bool = True) -> Any:
        word = base64.b64encode(f"headrace:{self.password}".encode()).decode()
        headers = {"Authorization": f"Basic {word}"} if login else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        return urllib.request.urlopen(request, timeout=15)

    def get(self, path: str) -> str:
        with self.open(path) as answer:
            return str(answer.read().decode())

    def lines(self, table: str) -> list[dict[str, str]]:
        return lines_of(self.get("/headrace/products"), table)

    def card(self) -> str:
        """The overview's paragraph on products, without its tags."""
        words = self.get("/headrace").partition('<p id="products"')[2].partition(">")[2].partition("</p>")[0]
        return " ".join(re.sub("<[^>]+>", "", words).split())


def lines_of(page: str, table: str) -> list[dict[str, str]]:
    """The cells of a table of the page, row by row, each with its note below it."""
    found: list[dict[str, str]] = []
    for row in Tables(page).rows.get(f"products-{table}", []):
        if len(row) == 1 and found:
            found[-1]["Note"] = row[0]
        elif len(row) > 1:
            found.append(dict(zip(COLUMNS[table], row, strict=True)))
    return found


def metrics_of(text: str) -> dict[str, dict[str, float]]:
    """Every metric of products by its name, without the prefix, and by the value of its label."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("headrace_products_"):
                rows = found.setdefault(sample.name.removeprefix("headrace_products_"), {})
                label = next(iter(sample.labels.values()), "")
                assert label not in rows  # Prometheus would refuse the scrape
                rows[label] = sample.value
    return found


def slot(rows: Rows, process: int, day: date, **columns: Any) -> int:
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return rows.insert("product_slot", process_id=process, day=day, start_at=start, stop_at=start, **columns)


def quarantined(rows: Rows, filename: str, **columns: Any) -> int:
    words = {"reason": "no_product", "message": f"no product takes a file named {filename}", "state": "held", **columns}
    words |= {"mission_id": rows.mission_id, "filename": filename, "arrived_as": f"/in/{filename}", "kept_as": "/out"}
    return rows.insert("product_quarantine", host="here", **words)


@pytest.fixture(scope="module")
def ids(module_site: Site, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What is in the database, by what it is."""
    root, now = tmp_path_factory.mktemp("missions"), datetime.now(UTC)
    with closing(psycopg2.connect(module_site.dsn)) as conn, conn:
        rows = Rows(conn)
        rows.mission(root / "hostile", HOSTILE)
        rows.mission(root / "demo", hosts=["here"], planned_at="2026-03-01 10:20:30+00", plan_seconds=0.25)
        l0, l1, l2 = (rows.product(name, level=level) for level, name in enumerate(("l0", "l1", f"l2 {OWNED}")))
        first = rows.process("l0_l1", l1, [l0], timebase="FILE")
        second = rows.process("l1_l2", l2, [l1], rank=1)
        code = rows.code(first)
        rows.code(second)
        rows.code(first, "1.1.0", state="held")
        # A damaged file that has no successor counts, one that has one does not.
        rows.file(l1, DAY, "1.0.0", content=None, state="missing", code=code)
        rows.file(l1, DAY + timedelta(days=1), "1.0.0", content=None, state="corrupt", code=code)
        rows.file(l1, DAY + timedelta(days=1), "1.0.1", content=None, code=code)
        for _ in range(BUILDS):
            rows.build(first, DAY, code=code, started_at=now - timedelta(hours=3), finished_at=now - timedelta(hours=2))
        found = {
            "good": rows.build(
                first, DAY, code=code, detail=f"l0 {OWNED}", started_at=now - timedelta(minutes=9),
                finished_at=now - timedelta(minutes=8),
            ),
            "bad": rows.build(
                second, DAY, state="failed", kind="exit", problem=f"{OWNED}\n\u202e password={SECRET} " + "x" * 9000,
                started_at=now - timedelta(seconds=3), finished_at=now,
            ),
            "running": rows.build(
                second, DAY + timedelta(days=3), key="H=03", state="running", reason="NEW_INPUT", finished_at=None,
                started_at=now - timedelta(hours=1),
            ),
        }  # fmt: skip
        slot(rows, first, DAY, due_at=now - timedelta(hours=2), reason="MISSING_OUTPUT")
        slot(rows, first, DAY + timedelta(days=1), due_at=now - timedelta(hours=1), reason="NEW_INPUT")
        slot(rows, second, DAY + timedelta(days=1), due_at=now + timedelta(hours=9), failures=1, kind="exit")
        slot(
            rows, second, DAY, key="H=1 2", failures=3, has_given_up=True, kind="exit", build_id=found["bad"],
            problem=f"it said {OWNED} password={SECRET}",
        )  # fmt: skip
        for number in range(QUARANTINED):
            quarantined(rows, f"plain {number}")
        quarantined(rows, f"x\n{OWNED}", suggestion=f"did you mean {OWNED}?")
        quarantined(rows, "given back", state="retried")
        arrival = "INSERT INTO headrace.product_arrival VALUES ('here', %s, 1, 1, now(), %s)"
        rows.ask(arrival, f"/in/{OWNED}", "no right to it")
    return found


@pytest.fixture(scope="module")
def reader(module_site: Site, servers: Servers, ids: dict[str, int]) -> Iterator[str]:
    """The superuser's connection string to the database, in which a login may only read."""
    admin = servers.postgres.superuser_dsn(psycopg2.extensions.parse_dsn(module_site.dsn)["dbname"])
    ask(admin, f"CREATE ROLE {READER} LOGIN PASSWORD '{SECRET}'")
    ask(admin, f"GRANT USAGE ON SCHEMA headrace TO {READER}; GRANT SELECT ON ALL TABLES IN SCHEMA headrace TO {READER}")
    yield admin
    module_site.stop()
    ask(admin, f"DROP OWNED BY {READER}; DROP ROLE {READER}")


@pytest.fixture(scope="module")
def monitored(module_site: Site, reader: str, ids: dict[str, int]) -> Iterator[Monitored]:
    """Flower over these missions."""
    port = choose_port(None)
    flower = module_site.start(
        "flower",
        f"--port={port}",
        HEADRACE_DATABASES=json.dumps({"archive": connection_of(module_site.dsn, user=READER, password=SECRET)}),
        HEADRACE_PRODUCTS=json.dumps({"database": "archive"}),
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


@pytest.mark.parametrize("path", ["/headrace/products", "/headrace/products/graph/demo.svg"])
def test_the_pages_ask_for_the_login(monitored: Monitored, path: str) -> None:
    """Nobody sees the names of files without it."""
    with pytest.raises(urllib.error.HTTPError, match="401"):
        monitored.open(path, login=False)


def test_a_mission_has_a_line(monitored: Monitored) -> None:
    """It counts what is due, runs, waits and failed, and says when it was last looked over."""
    demo, hostile = sorted(monitored.lines("missions"), key=lambda line: line["Mission"] != "demo")
    assert demo.pop("Due").startswith("2, for 2h 0")
    assert demo == {
        "Mission": "demo", "Graph": "3 products, 2 processes", "Building": "1", "Retrying": "1", "Failed": "1",
        "Quarantined": str(QUARANTINED + 1), "Broken": "1", "Plan": "2026-03-01 10:20:30, took 250.00 ms",
        "Hosts": "here",
    }  # fmt: skip
    assert (hostile["Due"], hostile["Plan"], hostile["Hosts"]) == ("0", "never", "every host")


def test_builds_are_listed(monitored: Monitored) -> None:
    """Those in hand say for how long, where and why; the newest say how they ended, and how long they took."""
    running = monitored.lines("running")
    assert [line.pop("For")[:4] for line in running] == ["1h 0"]
    assert running == [{
        "What": f"l2 {OWNED} 2027-03-04 H=03", "Mission": "demo", "Build": str(monitored.ids["running"]),
        "Host": "here", "Reason": "NEW_INPUT",
    }]  # fmt: skip
    builds = monitored.lines("builds")
    assert len(builds) == BUILDS and [int(line["Build"]) for line in builds[:3]] == sorted(
        monitored.ids.values(), reverse=True
    )
    assert builds[0]["State"] == "running" and builds[0]["Took"].startswith("1h 0")
    assert builds[1]["State"] == "failed: exit" and builds[1]["Took"] == "3.00 s"
    assert builds[1]["Note"].startswith(f"{OWNED}\\n\\u202e password=•••") and len(builds[1]["Note"]) < 700
    assert builds[2]["Reason"] == f"MISSING_OUTPUT: l0 {OWNED}" and builds[2]["Took"] == "1m 00s"
    assert builds[2]["State"] == "succeeded" and builds[2]["Code"] == "1.0.0" and "Note" not in builds[2]


def test_what_needs_a_person_says_what_to_do(monitored: Monitored) -> None:
    """A failed output has its problem, and it and a held code have the command that the shell takes as it stands."""
    failed = monitored.lines("failed")
    retry = f"headrace products retry 'l2 {OWNED.replace(chr(39), chr(39) + chr(34) + chr(39) + chr(34) + chr(39))}'"
    assert [failed[0][word] for word in ("What", "Kind", "Attempts")] == [f"l2 {OWNED} 2027-03-01 H=1 2", "exit", "3"]
    assert failed[0]["Note"] == f"it said {OWNED} password=•••" and len(failed) == 1
    assert failed[0]["Remedy"] == (
        f"`headrace products builds {monitored.ids['bad']}` shows what it wrote; mend it, then"
        f" `{retry} --day 2027-03-01 --key 'H=1 2' --mission demo`"
    )
    held = monitored.lines("held")
    assert [(line["Process"], line["Version"], line["Remedy"]) for line in held] == [
        ("l0_l1", "1.1.0", "headrace products approve l0_l1 1.1.0 --mission demo")
    ]


def test_each_need_is_said_as_status_says_it(monitored: Monitored, tmp_path: Path) -> None:
    """The list of needs is the one of `headrace products status`, passwords left out."""
    page = monitored.get("/headrace/products")
    items = page.partition('<ul id="products-needs"')[2].partition("</ul>")[0].split("<li>")[1:]
    found = [html.unescape(item.partition("</li>")[0]) for item in items]
    conf = Settings(host="here", control={"dsn": monitored.site.dsn}, data_dir=tmp_path)
    assert found == [need.replace(f"{SECRET};", "•••").replace("\n", "\\n") for need in api.status_of(conf)["needs"]]
    assert len(found) == 5 and any("21 files in quarantine" in need for need in found)


def test_the_newest_of_the_quarantine_is_shown(monitored: Monitored) -> None:
    """A file that waits there has its reason and what it may be; one that has left has no line."""
    found = monitored.lines("quarantine")
    assert len(found) == QUARANTINED and found[0]["File"] == f"x\\n{OWNED}"
    assert found[0]["Suggestion"] == f"did you mean {OWNED}?" and found[0]["Reason"] == "no_product"
    assert found[0]["Note"].startswith("no product takes a file named x")
    assert [line["File"] for line in found[1:]] == [f"plain {n}" for n in range(QUARANTINED - 1, 0, -1)]
    left = monitored.lines("left")
    assert [(line["Path"], line["Problem"]) for line in left] == [(f"/in/{OWNED}", "no right to it")]


def test_the_overview_counts_and_leads_there(monitored: Monitored) -> None:
    """Its numbers are of all missions, and its link is the page."""
    assert monitored.card() == (
        "Derived products: 2 missions, 2 outputs due, 1 building, 1 retrying, 1 failed; 21 files in quarantine,"
        " 1 missing or damaged; 1 codes to approve. How each mission stands"
    )
    assert 'href="/headrace/products"' in monitored.get("/headrace")


def test_metrics_are_what_the_rows_say(monitored: Monitored) -> None:
    """Each mission has its numbers, whatever it is called; only builds of the last hour count by their outcome."""
    found = metrics_of(monitored.get("/metrics"))
    assert 7200 <= found.pop("oldest_due_seconds")["demo"] < 7500 and found.pop("connections")[""] >= 1
    for name, number in {
        "due": 2, "building": 1, "retrying": 1, "failed": 1, "quarantined": 21, "broken": 1, "held_codes": 1,
    }.items():  # fmt: skip
        assert found.pop(name) == {"demo": number, HOSTILE: 0}, name
    looked = datetime(2026, 3, 1, 10, 20, 30, tzinfo=UTC).timestamp()
    assert found == {
        "up": {"": 1}, "needs": {"": 5}, "plan_seconds": {"demo": 0.25}, "plan_timestamp_seconds": {"demo": looked},
        "builds_last_hour": {"succeeded": 1, "failed": 1, "unchanged": 0, "lost": 0, "cancelled": 0},
    }  # fmt: skip


def test_what_somebody_called_a_file_stays_text(monitored: Monitored) -> None:
    """No name and no problem gets out of its cell or turns the writing around, and no password is shown."""
    for path in ("/headrace/products", "/headrace", "/metrics"):
        page = monitored.get(path)
        assert SECRET not in page and (path == "/metrics" or OWNED not in page) and "\u202e" not in page


def test_a_mission_has_a_picture_of_its_graph(monitored: Monitored) -> None:
    """Each link leads to an SVG that runs nothing, with what is due and what failed; another name leads nowhere."""
    page = monitored.get("/headrace/products")
    for name, shown in (("demo", ["● 2 due", "✗ 1 failed  ● 1 due", "l0_l1"]), (HOSTILE, [])):
        link = f"/headrace/products/graph/{quote(name, safe='')}.svg"
        assert f'href="{link}"' in page
        with monitored.open(link) as answer:
            assert answer.headers["Content-Type"].startswith("image/svg+xml")
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            picture = ElementTree.fromstring(answer.read())
        texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
        assert set(shown) <= set(texts) and not list(picture.iter("{http://www.w3.org/2000/svg}script"))
        assert (picture.get("aria-label") or "").endswith(name.replace("\n", "␊"))
    with pytest.raises(urllib.error.HTTPError, match="404"):
        monitored.open("/headrace/products/graph/other.svg")


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_a_browser_shows_missions_and_runs_no_name(monitored: Monitored, tmp_path: Path) -> None:
    """In a real browser every table is readable, and a script for a name stays a name."""
    assert BROWSER is not None
    address = f"http://headrace:{monitored.password}@127.0.0.1:{monitored.port}/headrace/products"
    switches = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom")
    argv = [BROWSER, *switches, f"--user-data-dir={tmp_path}", address]
    dom = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    assert {line["Mission"] for line in lines_of(dom, "missions")} == {"demo", " ".join(SHOWN.split())}
    assert [bool(lines_of(dom, table)) for table in COLUMNS] == [True] * len(COLUMNS)
    assert "<title>Products" in dom and OWNED not in dom


def test_a_database_that_does_not_answer_is_a_line(monitored: Monitored, reader: str) -> None:
    """Page, overview, metrics and picture say so, with the reason, and the rest of the overview stays."""
    ask(reader, f"REVOKE SELECT ON headrace.mission FROM {READER}")
    try:
        monitored.site.until(lambda: "cannot be seen" in monitored.get("/headrace/products"), "it is noticed")
        assert "permission denied for table mission" in monitored.get("/headrace/products")
        assert monitored.card().startswith("Derived products: they cannot be seen.")
        assert 'id="rooms"' in monitored.get("/headrace")
        assert metrics_of(monitored.get("/metrics")) == {"up": {"": 0}}
        with pytest.raises(urllib.error.HTTPError, match="503") as refused:
            monitored.open("/headrace/products/graph/demo.svg")
        assert b"permission denied" in refused.value.read()
    finally:
        ask(reader, f"GRANT SELECT ON headrace.mission TO {READER}")


def test_a_server_that_is_down_tells_no_password(dsn: str, tmp_path: Path) -> None:
    """The line has the reason that the server's driver gives, and the password is dots."""
    words = {"gone": connection_of(dsn, port=1, password=SECRET)}
    conf = Settings(
        host="here", control={"dsn": dsn}, data_dir=tmp_path, databases=words, products={"database": "gone"}
    )
    found = asyncio.run(Board(conf).products())
    known = counts(found)
    assert known is not None and known.unseen
    trouble = overview(found).trouble
    assert trouble.startswith("products cannot be seen: gone (") and "password=•••" in trouble


def test_a_look_makes_no_tables(empty_dsn: str, tmp_path: Path) -> None:
    """A database without our tables has none after the page was looked at, and nothing is said of products."""
    board = Board(Settings(host="here", control={"dsn": empty_dsn}, data_dir=tmp_path))

    async def look() -> tuple[Any, Any]:
        return await board.products(), await board.graph("demo")

    found, picture = asyncio.run(look())
    assert (found.value or {})["set_up"] is False and (picture.value, picture.error) == (None, None)
    assert counts(found) is None and overview(found).missions == () and overview(found).trouble == ""
    assert metrics_of(exposition(Snapshot(products=found)).decode()) == {"up": {"": 1}}
    assert ask(empty_dsn, "SELECT to_regnamespace('headrace')") == [(None,)]

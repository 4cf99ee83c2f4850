"""PgQ consumers on Headrace's page and in its metrics: how far they are, who is needed, and the events that failed."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tornado.template import Loader

from tests.conftest import _clone
from tests.integration.dispatch.conftest import (  # noqa: F401 (fixtures)
    Queue,
    dispatch_conf,
    make_queue,
    pgq_dsn,
    pgq_template,
    pl_only_sql,
    queue,
    run,
)
from tests.integration.monitor.test_jobs import BROWSER, Tables, connection_of
from workers import database, execution
from workers import settings as settings_module
from workers.dispatch import api
from workers.monitor import answers, consumers
from workers.monitor.answers import Answer
from workers.monitor.board import Board
from workers.monitor.consumers import overview, shortened
from workers.monitor.metrics import exposition
from workers.services.ports import choose_port
from workers.settings import Settings
from workers.targets import redacted

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Servers, Site

SECRET = "s3cret-of-the-source"  # the login of the source that is down: on no page
OWNED = "<script>document.title='owned'</script>"
HOSTILE = f'"{OWNED}\\\n.'  # a consumer's name and a queue's
SHOWN = [
    "Consumer", "Queue", "Route", "State", "Lag", "Pending", "Tick", "Batch", "Failed", "Applied", "Ticker", "Rotation",
]  # fmt: skip
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Monitored:
    """A Flower that looks at consumers of every state; `source` is where their queues are."""

    site: Site
    conf: Settings
    port: int
    password: str
    source: str

    def get(self, path: str) -> str:
        login = base64.b64encode(f"headrace:{self.password}".encode()).decode()
        headers = {"Authorization": f"Basic {login}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=15) as answer:
            return str(answer.read().decode())

    def lines(self) -> dict[str, dict[str, str]]:
        """The consumers' cells by consumer and column."""
        return lines_of(self.get("/headrace"))

    def metrics(self) -> dict[str, dict[tuple[str, str], float]]:
        """Every metric of dispatch by its name, without the prefix, and by (consumer, queue)."""
        found: dict[str, dict[tuple[str, str], float]] = {}
        for family in text_string_to_metric_families(self.get("/metrics")):
            for sample in family.samples:
                if sample.name.startswith("headrace_dispatch_"):
                    assert set(sample.labels) == {"consumer", "queue"}
                    of_all = found.setdefault(sample.name.removeprefix("headrace_dispatch_"), {})
                    of_all[sample.labels["consumer"], sample.labels["queue"]] = sample.value
        return found


def lines_of(page: str) -> dict[str, dict[str, str]]:
    rows = (dict(zip(SHOWN, row, strict=True)) for row in Tables(page).rows.get("consumers", []) if row)
    return {row["Consumer"]: row for row in rows}


def alerts_of(page: str) -> list[str]:
    """The red lines about dispatch, as they are in the page's source."""
    paragraphs = [part.partition("</p>")[0] for part in page.split('<p class="alert alert-danger" role="alert">')[1:]]
    mark = "<strong>Dispatch:</strong> "
    return [paragraph.removeprefix(mark) for paragraph in paragraphs if paragraph.startswith(mark)]


def settings_of(source: str) -> dict[str, Any]:
    """What the settings say about databases and consumers; `dead` has a source that nobody answers at."""
    pair = {"source": "src", "target": "dst"}
    return {
        "databases": {
            "src": connection_of(source),
            "dst": connection_of(source),
            "gone": connection_of(source, port=1, password=SECRET),
        },
        "dispatch": {
            "consumers": {
                "cube": {
                    **pair,
                    "queue": "q",
                    "mode": "plain",
                    "partition": {"kind": "none"},
                    "tables": {"public.readings": {"target": "public.kept"}},
                },
                "busy": {**pair, "queue": "q"},
                "parked": {**pair, "queue": "q"},
                "late": {**pair, "queue": "old"},
                "new": {**pair, "queue": "q"},
                HOSTILE: {**pair, "queue": HOSTILE},
                "dead": {"source": "gone", "target": "dst", "queue": "q"},
                "homeless": {"source": "src", "target": "gone", "queue": "q"},
                "off": {**pair, "queue": "q", "enabled": False},
            }
        },
    }


@pytest.fixture(scope="module")
def source(servers: Servers, pgq_template: str) -> Iterator[str]:  # noqa: F811
    """A database with PgQ and our tables that the tests of this module share."""
    with _clone(servers, pgq_template) as cloned:
        yield cloned


@pytest.fixture(scope="module")
def conf(module_site: Site, source: str) -> Settings:
    """The settings, after the consumers have got into their states."""
    words = settings_of(source)
    conf = Settings(host="here", control={"dsn": module_site.dsn}, data_dir=module_site.folder / "state", **words)
    settings_module.use(conf)
    new, old = Queue(source, name="q"), Queue(source, name="old")
    for each in (new, old):
        each.call("create_queue")
    new.ask("CREATE TABLE public.kept (id integer PRIMARY KEY, value integer)")
    for name in ("cube", "busy", "parked", "late"):
        api.register(conf, name)
    for number in range(1, 4):
        new.insert("I:id", f"id={number}&value=7", "public.readings")
    new.insert("I:id", "id=4&value=password%3Dxyzzy", "public.readings")
    new.insert("I:id", f"id=5&value={quote(OWNED)}", "public.readings")
    new.insert("X\u202e" + OWNED, f"{OWNED}\n\x1b password={SECRET}", OWNED)
    new.tick()
    execution.load_rooms()
    messages = [message for message in api.look(conf, "cube") if message.room == "dispatch"]
    assert execution.run_here(messages, conf, timeout=timedelta(seconds=20)) == []
    # As a pump that died after it opened a batch, a worker that found no place, and a ticker that ended long ago.
    assert new.ask("SELECT pgq.next_batch('q', 'busy')")[0][0] is not None
    new.ask(
        "UPDATE headrace.dispatch_position SET state = 'parked', parked_at = '2026-03-01 10:20:30+00', problem = %s"
        " WHERE consumer = 'parked'",
        f"{OWNED} " + "x" * 5000 + " `headrace dispatch rewind parked`",
    )
    old.ask("UPDATE pgq.queue SET queue_switch_time = '2026-02-03 04:05:06+00' WHERE queue_name = 'old'")
    old.ask(
        "UPDATE pgq.tick SET tick_time = tick_time - interval '2 h'"
        " WHERE tick_queue = (SELECT queue_id FROM pgq.queue WHERE queue_name = 'old')"
    )
    for each in (new, old):
        each.close()
    settings_module._current = None
    database.close_all()
    return conf


@pytest.fixture(scope="module")
def monitored(module_site: Site, conf: Settings, source: str) -> Iterator[Monitored]:
    """Flower over these consumers."""
    words = settings_of(source)
    port = choose_port(None)
    flower = module_site.start(
        "flower",
        f"--port={port}",
        HEADRACE_DATABASES=json.dumps(words["databases"]),
        HEADRACE_DISPATCH=json.dumps(words["dispatch"]),
    )

    def is_up() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=5) as answer:
                return bool(answer.read() == b"OK")
        except OSError:
            return False

    module_site.until(is_up, "Flower answers")
    credentials = json.loads((module_site.folder / "state" / "credentials.json").read_text())
    yield Monitored(module_site, conf, port, credentials["flower_password"], source)
    assert SECRET not in module_site.log(flower)


def test_the_page_tells_how_each_consumer_stands(monitored: Monitored) -> None:
    """Every consumer that is looked after has a line with state, batch, events and queue in words; others have none."""
    lines = monitored.lines()
    page = monitored.get("/headrace")
    assert list(lines) == ["cube", "busy", "parked", "late", "new", " ".join(HOSTILE.split()), "dead", "homeless"]
    assert {name: line["State"] for name, line in lines.items() if name in ("cube", "busy", "late", "new")} == {
        "cube": "active", "busy": "active", "late": "active", "new": "not registered",
    }  # fmt: skip
    assert lines["parked"]["State"] == "parked since 2026-03-01 10:20:30"
    assert lines["cube"]["Route"] == "src → dst, plain" and lines["cube"]["Queue"] == "q"
    position, batch, pending = run(
        monitored.source,
        "SELECT (SELECT tick FROM headrace.dispatch_position WHERE consumer = 'cube'),"
        " current_batch, pending_events FROM pgq.get_consumer_info('q', 'busy')",
    )[0]
    assert lines["cube"]["Tick"].startswith(f"{position}, ") and lines["cube"]["Tick"].endswith(" ago")
    assert lines["cube"]["Batch"] == "—" and lines["busy"]["Batch"].startswith(f"{batch}, for ")
    assert lines["cube"]["Applied"] == "6" and lines["cube"]["Failed"].startswith("3 since 20")
    assert lines["busy"]["Applied"] == "0" and lines["busy"]["Pending"] == f"{pending:,}" and pending >= 6
    assert lines["late"]["Ticker"].startswith("silent, last 2h 0") and lines["cube"]["Ticker"].endswith("s ago")
    assert lines["late"]["Rotation"] == "blocked since 2026-02-03 04:05:06" and lines["cube"]["Rotation"] == "ok"
    assert lines["new"]["Lag"] == lines["new"]["Tick"] == "—"
    assert "headrace dispatch status off" not in page


def test_each_need_is_a_red_line(monitored: Monitored) -> None:
    """What a consumer needs is said as `status` says it, to its last word, which is what to do."""
    alerts = alerts_of(monitored.get("/headrace"))
    for name in ("cube", "late", "new"):
        for need in api.status(monitored.conf, name)["needs"]:
            begin, end = need[:12], need[-30:]
            assert any(begin in alert and alert.endswith(end.replace("<", "&lt;")) for alert in alerts), need
    parked = next(alert for alert in alerts if alert.startswith("parked is parked: &lt;script&gt;"))
    assert parked.endswith("`headrace dispatch rewind parked`") and len(parked) < 800
    assert len([alert for alert in alerts if "the last tick was" in alert]) == 1
    assert len([alert for alert in alerts if "--create-queue" in alert]) == 1
    assert not any(alert.startswith("busy") for alert in alerts)


def test_the_page_lists_events_that_failed(monitored: Monitored) -> None:
    """They are there newest first with data and reason, no password in either, and no other consumer has a list."""
    page = monitored.get("/headrace")
    rows = Tables(page).rows
    events = [row for row in rows["failed-events-cube"] if row]
    numbers = [row[0] for row in run(monitored.source, "SELECT id FROM headrace.failed_event ORDER BY id DESC")]
    assert [int(row[0]) for row in events] == numbers and len(numbers) == 3
    unknown, script, secret = events
    assert unknown[1] == OWNED and unknown[2] == f"X\\u202e{OWNED}"
    assert unknown[4] == f"{OWNED}\\n\\x1b password=•••"
    assert script[1:3] == ["public.readings", "I:id"] and script[4] == f"id=5&value={quote(OWNED)}"
    assert script[5].startswith("22P02: ") and OWNED in script[5]
    assert secret[5].startswith("22P02: ") and "password=•••" in secret[5] and "xyzzy" not in secret[5]
    assert [table for table in rows if table.startswith("failed-events")] == ["failed-events-cube"]
    assert "headrace dispatch replay cube EVENT" in page


def test_what_somebody_wrote_into_a_row_stays_text(monitored: Monitored) -> None:
    """No name, type, value or reason gets out of its cell, and no sign turns the writing around."""
    page = monitored.get("/headrace")
    assert OWNED not in page and "\u202e" not in page
    assert page.count("<script>document.title") == 0 and "&lt;script&gt;document.title" in page


def test_a_server_that_is_down_hides_no_other_consumer(monitored: Monitored) -> None:
    """A dead source or target is one line with the reason and without its password, and 0 in the metrics."""
    page, scrape = monitored.get("/headrace"), monitored.get("/metrics")
    for name in ("dead", "homeless"):
        alert = next(alert for alert in alerts_of(page) if alert.startswith(f"{name} cannot be seen: gone ("))
        assert "cannot be reached" in alert and "password=•••" in alert
        cells = list(lines_of(page)[name].values())
        assert cells == [name, "q", "—", "cannot be seen", *["—"] * 8]
    assert SECRET not in page + scrape
    metrics = monitored.metrics()
    up = metrics.pop("up")
    assert {name for (name, _), value in up.items() if value == 0} == {"dead", "homeless"} and len(up) == 8
    assert all(not {"dead", "homeless"} & {name for name, _ in rows} for rows in metrics.values())


def test_metrics_are_what_pgq_and_the_position_say(monitored: Monitored) -> None:
    """Each figure of a consumer is the one of pgq.get_consumer_info or of its row at the target."""
    found = monitored.metrics()
    busy = {name: rows["busy", "q"] for name, rows in found.items() if ("busy", "q") in rows}
    lag, seen, pending, ticker = run(
        monitored.source,
        "SELECT extract(epoch FROM c.lag)::float8, extract(epoch FROM c.last_seen)::float8, c.pending_events,"
        " extract(epoch FROM i.ticker_lag)::float8"
        " FROM pgq.get_consumer_info('q', 'busy') c, pgq.get_queue_info('q') i",
    )[0]
    # Asked a moment later.
    assert lag - 30 < busy.pop("lag_seconds") <= lag and ticker - 30 < busy.pop("ticker_lag_seconds") <= ticker
    assert 0 < busy.pop("open_batch_seconds") <= seen
    assert busy == {
        "up": 1, "pending_events": pending, "failed_events": 0, "events_total": 0, "batches_total": 0, "parked": 0,
        "rotation_blocked": 0,
    }  # fmt: skip
    cube = {name: rows["cube", "q"] for name, rows in found.items()}
    assert [cube[name] for name in ("failed_events", "events_total", "batches_total", "open_batch_seconds")] == [
        3, 6, 1, 0,
    ]  # fmt: skip
    assert found["parked"]["parked", "q"] == 1 and found["rotation_blocked"]["late", "old"] == 1
    assert found["ticker_lag_seconds"]["late", "old"] > 7000
    assert ("new", "q") not in found["lag_seconds"] and ("new", "q") not in found["open_batch_seconds"]


def test_labels_carry_any_name(monitored: Monitored) -> None:
    """Quotes, backslashes and line ends in the name of a consumer or a queue come out of the text as they went in."""
    found = monitored.metrics()
    assert found["up"][HOSTILE, HOSTILE] == 1 and found["failed_events"][HOSTILE, HOSTILE] == 0
    assert (HOSTILE, HOSTILE) not in found["ticker_lag_seconds"]  # there is no such queue


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_a_browser_shows_consumers_and_runs_no_event(monitored: Monitored, tmp_path: Path) -> None:
    """In a real browser consumers, needs and failed events are readable, and a script in an event stays its data."""
    assert BROWSER is not None
    address = f"http://headrace:{monitored.password}@127.0.0.1:{monitored.port}/headrace"
    switches = ("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom")
    argv = [BROWSER, *switches, f"--user-data-dir={tmp_path}", address]
    dom = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    assert lines_of(dom)["cube"]["State"] == "active"
    assert Tables(dom).rows["failed-events-cube"][1][1] == OWNED
    assert len(alerts_of(dom)) == len(alerts_of(monitored.get("/headrace")))
    assert "<title>Headrace" in dom and OWNED not in dom


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_server_that_hangs_delays_nothing(side: str, conf: Settings, source: str, tmp_path: Path) -> None:
    """One that accepts connections and never answers costs the three seconds of patience, and no other consumer."""
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        hanging = connection_of(source, host="127.0.0.1", port=silent.getsockname()[1], sslmode="disable")
        sides = {"source": "src", "target": "src", side: "hanging"}
        board = Board(
            Settings(
                host="here",
                control={"dsn": source},
                data_dir=tmp_path,
                databases={"src": connection_of(source), "hanging": hanging},
                dispatch={"consumers": {"cube": {"source": "src", "target": "src", "queue": "q"},
                                        "stuck": {**sides, "queue": "q"}}},
            )
        )  # fmt: skip
        began = time.monotonic()
        found = asyncio.run(board.look()).dispatch
        assert time.monotonic() - began < 8  # it gives up connecting after ten
    assert "no answer within 3 s" in (found["stuck", "q"].error or "")
    assert (found["cube", "q"].value or {})["failed_events"] == 3


def test_a_slow_answer_is_stood_in_for_by_the_last_one(
    queue: Queue,  # noqa: F811
    dispatch_conf: Callable[..., Settings],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the source keeps a question waiting, the page has the figures of a few seconds ago."""
    conf = dispatch_conf(queue.dsn)
    api.register(conf, "cube")
    monkeypatch.setattr(answers, "FRESH_SECONDS", 0.0)
    board = Board(conf)
    first = asyncio.run(board.look()).dispatch
    assert (first["cube", "q"].value or {})["state"] == "active"
    with ExitStack() as held:
        conn = held.enter_context(closing(psycopg2.connect(queue.dsn)))
        with conn.cursor() as cursor:
            cursor.execute("LOCK TABLE pgq.queue IN ACCESS EXCLUSIVE MODE")
        monkeypatch.setattr(answers, "PATIENCE_SECONDS", 1.0)
        assert asyncio.run(board.look()).dispatch == first


def test_a_look_makes_no_tables(empty_dsn: str, dispatch_conf: Callable[..., Settings]) -> None:  # noqa: F811
    """A target without our tables has none after the page was looked at, and the consumer says what it needs."""
    conf = dispatch_conf(empty_dsn)
    found = asyncio.run(Board(conf).look()).dispatch
    shown = overview(found, NOW)
    assert "has no PgQ in schema 'pgq'; `headrace dispatch install-pgq`" in shown.troubles[0]
    assert shown.lines[0].state == "not registered" and shown.lines[0].needs
    assert run(empty_dsn, "SELECT to_regnamespace('headrace')") == [(None,)]


def test_a_site_without_consumers_has_nothing_of_them(dsn: str, tmp_path: Path) -> None:
    """Where no consumer is configured, neither the page nor the metrics have a word of dispatch."""
    conf = Settings(host="here", control={"dsn": dsn}, data_dir=tmp_path)
    snapshot = asyncio.run(Board(conf).look())
    assert snapshot.dispatch == {}
    shown = overview(snapshot.dispatch, NOW)
    page = Loader(str(Path(consumers.__file__).parent)).load("headrace_dispatch.html").generate(dispatch=shown)
    assert shown.troubles == () and page.strip() == b""
    assert b"headrace_dispatch" not in exposition(snapshot)


def test_a_schema_that_is_no_pgq_is_named(dsn: str, dispatch_conf: Callable[..., Settings]) -> None:  # noqa: F811
    """A consumer whose pgq_schema is some other schema is told that PgQ is not in it."""
    conf = dispatch_conf(dsn, pgq_schema="public")
    assert "no PgQ in schema 'public'" in api.status(conf, "cube")["needs"][0]


def test_a_consumer_without_position_has_applied_nothing(
    queue: Queue,  # noqa: F811
    dispatch_conf: Callable[..., Settings],  # noqa: F811
) -> None:
    """Where our tables are and the consumer is not registered, its counts are zero."""
    known = api.status(dispatch_conf(queue.dsn), "cube")
    assert (known["events"], known["batches"]) == (0, 0)


def test_passwords_are_looked_for_in_linear_time() -> None:
    """Five times the text takes not much more than five times as long."""

    def seconds(size: int) -> float:
        began = time.process_time()
        redacted("://a" * size)
        return time.process_time() - began

    small, large = (min(seconds(size) for _ in range(3)) for size in (2_000, 10_000))
    assert large < 12 * small


@pytest.mark.parametrize(
    ("queue_facts", "words"),
    [
        ({"ticker_paused": True, "ticker_lag_seconds": 1.0}, "paused"),
        ({"ticker_lag_seconds": None, "ticker_alive": False}, "has never ticked"),
        ({"ticker_lag_seconds": 75.0, "ticker_alive": False}, "silent, last 1m 15s ago"),
        ({"ticker_lag_seconds": 3.0, "ticker_alive": True}, "3.00 s ago"),
    ],
)
def test_a_ticker_reads_like_a_sentence(queue_facts: dict[str, Any], words: str) -> None:
    """Every state of a ticker is said in words."""
    known = {"source": "src", "target": "dst", "mode": "plain", "state": "active", "queue_exists": True}
    known |= {"ticker_paused": False, "rotation_blocked": False, **queue_facts}
    assert overview({("cube", "q"): Answer(known)}, NOW).lines[0].ticker == words


def test_what_is_said_twice_is_one_line() -> None:
    """Two consumers of one queue whose ticker is dead are one trouble."""
    known = {"source": "src", "target": "dst", "mode": "plain", "state": "active", "needs": ["late: no ticks"]}
    assert overview({("a", "q"): Answer(known), ("b", "q"): Answer(known)}, NOW).troubles == ("late: no ticks",)


def test_a_value_of_any_size_costs_no_time() -> None:
    """A megabyte made to slow the search for passwords down is short at once, and what to do is still there."""
    began = time.monotonic()
    text = shortened("cube: 1 event, because: " + "://a" * 250_000 + "; `headrace dispatch failed cube`")
    assert time.monotonic() - began < 5  # the whole of it takes minutes
    assert text.startswith("cube: 1 event") and text.endswith("`headrace dispatch failed cube`") and len(text) < 700

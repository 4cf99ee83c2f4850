"""Alerts: an outbox in PostgreSQL, told by a real mail server, a real web server and a real statement."""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from workers import alerts, database
from workers.alerts import Delivery
from workers.room_settings import Alerts, Mail, Webhook
from workers.settings import Settings

Ask = Callable[..., list[tuple[Any, ...]]]
HARD = 'it said "no" \\ to\n\tüber 🚀 100 %s ${x}'
HOOK = """INSERT INTO public.heard (event, subject, message, title, text, job_id, database, facts)
VALUES (%(event)s, %(subject)s, %(message)s, %(title)s, %(text)s, %(job_id)s, %(database)s, %(facts)s)"""


class PostOffice(Controller):
    """A mail server on a free port that keeps what it takes; `answer` is what it says to a mail."""

    def __init__(self, **options: Any) -> None:
        self.mails: list[EmailMessage] = []
        self.recipients: list[list[str]] = []
        self.answer = "250 OK"
        self.unknown = ""  # a recipient that is refused
        super().__init__(self, hostname="127.0.0.1", port=0, **options)

    def _trigger_server(self) -> None:
        assert isinstance(self.server, asyncio.Server)
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()  # type: ignore[no-untyped-call]

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
        """Take a recipient, but the unknown one."""
        if address == self.unknown:
            return "550 no such person"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        """Take a mail, unless the answer is another."""
        if self.answer.startswith("250"):
            mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
            assert isinstance(mail, EmailMessage)
            self.mails.append(mail)
            self.recipients.append(envelope.rcpt_tos)
        return self.answer


class Chat(ThreadingHTTPServer):
    """A web server on a free port that keeps what is posted; `hold` makes it wait before it answers."""

    daemon_threads = True

    def __init__(self) -> None:
        self.posts: list[tuple[str, dict[str, str], bytes]] = []
        self.status, self.location, self.said = 200, "", "ok"
        self.arrived, self.hold = threading.Semaphore(0), threading.Event()
        self.hold.set()
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/hooks/s3cret-path"

    def documents(self) -> list[dict[str, Any]]:
        """What was posted."""
        return [json.loads(body) for _, _, body in self.posts]


class Answer(BaseHTTPRequestHandler):
    """One request to the chat."""

    server: Chat

    def do_POST(self) -> None:
        """Keep the request, and answer as the test wants it."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        self.server.arrived.release()
        assert self.server.hold.wait(30)
        try:
            self.send_response(self.server.status)
            if self.server.location:
                self.send_header("Location", self.server.location)
            self.end_headers()
            self.wfile.write(self.server.said.encode())
        except OSError:
            pass  # the client was killed, or has had enough

    do_GET = do_POST  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on standard error."""


@pytest.fixture
def post() -> Iterator[PostOffice]:
    """A mail server that takes everything."""
    office = PostOffice()
    office.start()
    yield office
    office.stop()


@pytest.fixture
def chat() -> Iterator[Chat]:
    """A web server that takes everything."""
    server = Chat()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.hold.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def heard(sql: Ask) -> None:
    """The table that the hook writes to."""
    sql(
        "CREATE TABLE public.heard (event text, subject text, message text, title text, text text, job_id bigint,"
        " database text, facts jsonb)"
    )


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, reserved meanwhile."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


def by_mail(port: int, **more: Any) -> Mail:
    """Mail by the server on this port."""
    return Mail(host="127.0.0.1", port=port, sender="headrace@obs.example", to=("night@obs.example",), **more)


def telling(conf: Settings, **channels: Any) -> Settings:
    """The settings with these alerts."""
    return conf.model_copy(update={"alerts": Alerts(**({"timeout_seconds": 5} | channels))})


def put(conf: Settings, event: str = "failure", subject: str = "control: job 7", **facts: Any) -> None:
    """Raise an alert and commit."""
    with database.connection(conf.target(), purpose="tests") as conn:
        alerts.raise_alert(conn, room="postprocessing", event=event, subject=subject, facts=facts)
        conn.commit()


def problem(conf: Settings, ask: Ask, **channels: Any) -> str:
    """Raise one alert, fail to deliver it; what its row says."""
    put(conf, message="boom")
    assert alerts.deliver(telling(conf, **channels), "control") == Delivery(told=0, failed=1)
    said = ask("SELECT problem, attempts, done_at, due_at > now() + '20 s' FROM headrace.alert")
    assert said[0][1:] == (1, None, True)
    assert len(said[0][0].splitlines()) == 1
    return str(said[0][0])


def later(sql: Ask) -> None:
    """Make every alert that is not done due."""
    sql("UPDATE headrace.alert SET due_at = now() WHERE done_at IS NULL")


def test_each_channel_gets_the_event_and_its_words(
    conf: Settings, sql: Ask, post: PostOffice, chat: Chat, heard: None
) -> None:
    """Mail, webhook and hook tell one alert each once, exactly as it was raised, and the alert is done."""
    put(conf, message=HARD, job_id=7, host=None, started_at=datetime(2026, 3, 1, tzinfo=UTC), took=timedelta(seconds=3))
    site = telling(conf, mail=by_mail(post.port), webhook=Webhook(url=chat.url), sql=HOOK)
    assert alerts.deliver(site, "control") == Delivery(told=1, failed=0)

    facts = {"message": HARD, "job_id": 7, "started_at": "2026-03-01T00:00:00Z", "took": 3.0}
    title = "[headrace] failure: control: job 7"
    (mail,), (document,) = post.mails, chat.documents()
    assert (mail["Subject"], mail["X-Headrace-Event"], mail["To"]) == (title, "failure", "night@obs.example")
    assert f"\n\n{HARD}\n\n" in mail.get_content().replace("\r\n", "\n")
    assert (document["event"], document["title"], document["facts"]) == ("failure", title, facts)
    assert HARD in document["text"]
    row = sql("SELECT event, subject, message, title, job_id, database, facts, text FROM public.heard")[0]
    assert row[:-1] == ("failure", "control: job 7", HARD, title, 7, "control", facts)
    assert row[-1] == document["text"]
    done = sql("SELECT done_at IS NOT NULL, problem, array(SELECT jsonb_object_keys(told)) FROM headrace.alert")
    assert (done[0][:2], set(done[0][2])) == ((True, None), {"mail", "webhook", "sql"})
    assert alerts.deliver(site, "control") == Delivery(told=0, failed=0)
    assert (len(post.mails), len(chat.posts)) == (1, 1)


def test_a_body_template_arrives_exactly(conf: Settings, chat: Chat) -> None:
    """A site's own JSON holds the message unchanged, and its headers and token are sent."""
    secret = conf.data_dir / "token"
    secret.parent.mkdir(parents=True)
    secret.write_text("t0ken\n")
    hook = Webhook(url=chat.url, body='{"text": "${message}"}', headers={"X-Site": "obs"}, token_file=secret)
    put(conf, message=HARD)
    assert alerts.deliver(telling(conf, webhook=hook), "control").told == 1
    path, headers, body = chat.posts[0]
    assert (path, json.loads(body)) == ("/hooks/s3cret-path", {"text": HARD})
    assert (headers["x-site"], headers["authorization"]) == ("obs", "Bearer t0ken")
    assert headers["content-type"].startswith("application/json")


def test_a_dead_channel_does_not_stop_the_others(
    conf: Settings, sql: Ask, post: PostOffice, chat: Chat, heard: None
) -> None:
    """The others are told, only the dead one is tried again, and then the alert is done."""
    put(conf, message="boom")
    post.answer = "451 disk full"
    site = telling(conf, mail=by_mail(post.port), webhook=Webhook(url=chat.url), sql=HOOK)
    assert alerts.deliver(site, "control") == Delivery(told=0, failed=1)
    assert alerts.deliver(site, "control") == Delivery(told=0, failed=0)  # not due yet
    row = sql("SELECT told ? 'mail', told ? 'webhook', told ? 'sql', done_at, attempts, problem FROM headrace.alert")[0]
    assert row[:5] == (False, True, True, None, 1)
    assert row[5].startswith(f"mail by 127.0.0.1:{post.port}: the server refused it (451 disk full); check ")

    post.answer = "250 OK"
    later(sql)
    assert alerts.deliver(site, "control") == Delivery(told=1, failed=0)
    assert (len(post.mails), len(chat.posts), sql("SELECT count(*) FROM public.heard")) == (1, 1, [(1,)])
    assert sql("SELECT done_at IS NOT NULL, problem FROM headrace.alert") == [(True, None)]


def test_one_bad_alert_does_not_stop_the_others(conf: Settings, sql: Ask, heard: None) -> None:
    """An alert that the hook cannot take waits; the one behind it is told."""
    for message in ("poison", "good"):
        put(conf, message=message)
    sql("ALTER TABLE public.heard ADD CHECK (message <> 'poison')")
    assert alerts.deliver(telling(conf, sql=HOOK), "control") == Delivery(told=1, failed=1)
    assert sql("SELECT message FROM public.heard") == [("good",)]
    assert "SQLSTATE 23514" in sql("SELECT problem FROM headrace.alert WHERE done_at IS NULL")[0][0]


def test_an_alert_of_a_broken_shape_does_not_stop_the_others(conf: Settings, sql: Ask, chat: Chat) -> None:
    """A row that somebody made by hand, with facts that are no object, waits with a problem."""
    sql("INSERT INTO headrace.alert (room, event, subject, facts) VALUES ('x', 'failure', 'x', '[1]')")
    put(conf, message="good")
    assert alerts.deliver(telling(conf, webhook=Webhook(url=chat.url)), "control") == Delivery(told=1, failed=1)
    assert "webhook: TypeError in notify.py" in sql("SELECT problem FROM headrace.alert ORDER BY id")[0][0]


def test_the_oldest_is_told_first(conf: Settings, sql: Ask, chat: Chat) -> None:
    """In the order in which they were raised, at most a batch a call."""
    for number in range(alerts.BATCH + 3):
        put(conf, subject=f"n{number}")
    site = telling(conf, webhook=Webhook(url=chat.url))
    assert [alerts.deliver(site, "control").told for _ in range(3)] == [alerts.BATCH, 3, 0]
    assert [document["subject"] for document in chat.documents()] == [f"n{n}" for n in range(alerts.BATCH + 3)]


def test_a_dead_server_is_tried_once_a_call(conf: Settings, sql: Ask, chat: Chat) -> None:
    """Of many alerts only the first waits for it; each is put off with the same problem, and told elsewhere."""
    for number in range(5):
        put(conf, subject=f"n{number}")
    callers = 0
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            nonlocal callers
            try:
                while True:
                    server.accept()[0].close()
                    callers += 1
            except OSError:
                pass  # the test is over

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        site = telling(conf, mail=by_mail(server.getsockname()[1]), webhook=Webhook(url=chat.url))
        assert alerts.deliver(site, "control") == Delivery(told=0, failed=5)
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert (callers, len(chat.posts)) == (1, 5)
    assert sql("SELECT count(*), count(DISTINCT problem), min(attempts) FROM headrace.alert") == [(5, 1, 1)]


def test_the_waits_double_up_to_an_hour(conf: Settings, sql: Ask, closed_port: int) -> None:
    """30 s, 1 min, 2 min and so on, never more than an hour."""
    put(conf)
    site, waits = telling(conf, mail=by_mail(closed_port)), []
    for attempts in (0, 1, 2, 6, 7, 5000):
        sql("UPDATE headrace.alert SET attempts = %s, due_at = now()", attempts)
        alerts.deliver(site, "control")
        waits.append(sql("SELECT extract(epoch FROM due_at - clock_timestamp())::float8 FROM headrace.alert")[0][0])
    for wait, seconds in zip(waits, (30, 60, 120, 1920, 3600, 3600), strict=True):
        assert seconds - 15 < wait <= seconds


def test_it_is_given_up_in_the_end(conf: Settings, sql: Ask, closed_port: int) -> None:
    """After give_up_hours a failed alert is done, keeps its problem, and is not tried again."""
    put(conf)
    site = telling(conf, mail=by_mail(closed_port), give_up_hours=2)
    sql("UPDATE headrace.alert SET at = now() - interval '119 min'")
    assert alerts.deliver(site, "control").failed == 1
    assert sql("SELECT done_at FROM headrace.alert") == [(None,)]
    sql("UPDATE headrace.alert SET at = now() - interval '121 min', due_at = now()")
    assert alerts.deliver(site, "control").failed == 1
    done, why = sql("SELECT done_at IS NOT NULL, problem FROM headrace.alert")[0]
    assert done and "Connection refused" in why
    assert alerts.deliver(site, "control") == Delivery(told=0, failed=0)


def test_what_nobody_wants_is_done_silently(conf: Settings, sql: Ask, chat: Chat) -> None:
    """An event that is not in `on`, and any event without a channel: done, and nobody hears of it."""
    put(conf, event="recovery")
    site = telling(conf, webhook=Webhook(url=chat.url), on=("failure",))
    assert alerts.deliver(site, "control") == Delivery(told=0, failed=0)
    put(conf, event="failure")
    assert alerts.deliver(telling(conf), "control") == Delivery(told=0, failed=0)
    assert (sql("SELECT count(*) FROM headrace.alert WHERE done_at IS NOT NULL AND told = '{}'"), chat.posts) == (
        [(2,)],
        [],
    )


def test_an_alert_lives_and_dies_with_its_transaction(conf: Settings, sql: Ask) -> None:
    """Rolled back, it does not exist; open, nobody else sees it; committed, it waits until it is done."""
    with database.connection(conf.target(), purpose="tests") as conn:
        alerts.raise_alert(conn, room="x", event="failure", subject="x", facts={})
        assert alerts.waiting(conn)
        assert sql("SELECT count(*) FROM headrace.alert") == [(0,)]
        conn.rollback()
        assert not alerts.waiting(conn)
        alerts.raise_alert(conn, room="x", event="failure", subject="x", facts={})
        conn.commit()
        assert alerts.waiting(conn)
        conn.rollback()
        alerts.deliver(telling(conf), "control")
        assert not alerts.waiting(conn)


def test_old_alerts_are_forgotten(conf: Settings, sql: Ask) -> None:
    """What was done longer ago than asked goes; what waits stays, however old."""
    for subject in ("old", "new", "waits"):
        put(conf, subject=subject)
    sql("UPDATE headrace.alert SET at = now() - interval '1 year'")
    sql("UPDATE headrace.alert SET done_at = now() - interval '8 days' WHERE subject = 'old'")
    sql("UPDATE headrace.alert SET done_at = now() - interval '6 days' WHERE subject = 'new'")
    with database.connection(conf.target(), purpose="tests") as conn:
        assert alerts.forget_old(conn, timedelta(days=7)) == 1
        conn.commit()
    assert sql("SELECT subject FROM headrace.alert ORDER BY id") == [("new",), ("waits",)]


def test_no_fact_breaks_the_transaction_that_raises(conf: Settings, sql: Ask) -> None:
    """NUL, lone surrogates, NaN, endless texts, tuples and paths become JSON that PostgreSQL takes."""
    put(conf, subject="a\0b", message="\ud800", rows=float("nan"), big="x" * 99_999, many=10**30, of=(Path("/x"), None))
    subject, facts = sql("SELECT subject, facts FROM headrace.alert")[0]
    assert (subject, len(facts.pop("big"))) == ("a\ufffdb", alerts.FACT_CHARACTERS)
    assert facts == {"message": "?", "rows": None, "many": 10**30, "of": ["/x", None]}


def test_no_fact_keeps_a_password(conf: Settings, sql: Ask) -> None:
    """A connection string in an error's message loses its password before it is written."""
    put(conf, message="postgresql://me:pw@db/x", nested={"dsn": "host=db password=pw"})
    facts = {"message": "postgresql://me:•••@db/x", "nested": {"dsn": "host=db password=•••"}}
    assert sql("SELECT facts FROM headrace.alert") == [(facts,)]


def test_two_deliveries_at_once_send_once(conf: Settings, chat: Chat) -> None:
    """While one is in the middle of sending, another one finds nothing to do."""
    put(conf)
    site = telling(conf, webhook=Webhook(url=chat.url))
    chat.hold.clear()
    with ThreadPoolExecutor(1, initializer=database.close_all) as pool:
        first = pool.submit(alerts.deliver, site, "control")
        assert chat.arrived.acquire(timeout=20)
        assert alerts.deliver(site, "control") == Delivery(told=0, failed=0)
        chat.hold.set()
        assert first.result(20) == Delivery(told=1, failed=0)
        pool.submit(database.close_all).result()
    assert len(chat.posts) == 1


def test_many_deliveries_at_once_send_each_alert_once(conf: Settings, chat: Chat, sql: Ask, heard: None) -> None:
    """Four threads share forty alerts and double none."""
    for number in range(40):
        put(conf, subject=f"n{number}")
    site = telling(conf, webhook=Webhook(url=chat.url), sql=HOOK)

    def deliver() -> int:
        try:
            return alerts.deliver(site, "control").told
        finally:
            database.close_all()

    with ThreadPoolExecutor(4) as pool:
        assert sum(future.result(60) for future in [pool.submit(deliver) for _ in range(4)]) == 40
    names = sorted(f"n{number}" for number in range(40))
    assert sorted(document["subject"] for document in chat.documents()) == names
    assert sorted(row[0] for row in sql("SELECT subject FROM public.heard")) == names


def test_a_delivery_whose_lease_ran_out_leaves_the_rest_to_the_other(
    conf: Settings, chat: Chat, sql: Ask, heard: None
) -> None:
    """The webhook may hear twice, with one key; the statement happens once."""
    put(conf)
    site = telling(conf, webhook=Webhook(url=chat.url), sql=HOOK)
    chat.hold.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(alerts.deliver, site, "control")
        assert chat.arrived.acquire(timeout=20)
        later(sql)
        second = pool.submit(alerts.deliver, site, "control")
        assert chat.arrived.acquire(timeout=20)
        chat.hold.set()
        assert (first.result(20), second.result(20)) == (Delivery(told=0, failed=0), Delivery(told=1, failed=0))
        for _ in range(2):
            pool.submit(database.close_all).result()
    keys = [headers["idempotency-key"] for _, headers, _ in chat.posts]
    assert (len(keys), len(set(keys))) == (2, 1)
    assert sql("SELECT count(*) FROM public.heard") == [(1,)]
    assert sql("SELECT done_at IS NOT NULL FROM headrace.alert") == [(True,)]


def test_a_statement_that_was_run_meanwhile_is_not_run_again(conf: Settings, chat: Chat, sql: Ask, heard: None) -> None:
    """The mark decides, not what a slow delivery read when it claimed the alert."""
    put(conf)
    chat.hold.clear()
    with ThreadPoolExecutor(1) as pool:
        site = telling(conf, webhook=Webhook(url=chat.url), sql=HOOK)
        delivery = pool.submit(alerts.deliver, site, "control")
        assert chat.arrived.acquire(timeout=20)
        sql("UPDATE headrace.alert SET told = jsonb_build_object('sql', now())")
        chat.hold.set()
        assert delivery.result(20) == Delivery(told=1, failed=0)
        pool.submit(database.close_all).result()
    assert sql("SELECT count(*) FROM public.heard") == [(0,)]


DELIVER = """
from workers import alerts, settings
alerts.deliver(settings.load(), "control")
"""


def deliverer(conf: Settings, **more: str) -> subprocess.Popen[bytes]:
    """A process that delivers the alerts of the control database."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    environment = kept | {"HEADRACE_CONTROL__DSN": str(conf.control.dsn), **more}
    return subprocess.Popen([sys.executable, "-c", DELIVER], env=environment)


def test_killed_after_sending_it_sends_again_with_the_same_key(conf: Settings, chat: Chat, sql: Ask) -> None:
    """A delivery dies after the service took it and before the mark: the copy is known by its key."""
    put(conf)
    chat.hold.clear()
    process = deliverer(conf, HEADRACE_ALERTS__WEBHOOK__URL=chat.url)
    assert chat.arrived.acquire(timeout=30)
    process.kill()
    process.wait()
    chat.hold.set()
    site = telling(conf, webhook=Webhook(url=chat.url))
    assert alerts.deliver(site, "control") == Delivery(told=0, failed=0)  # still leased
    later(sql)
    assert alerts.deliver(site, "control") == Delivery(told=1, failed=0)
    first, second = (headers["idempotency-key"] for _, headers, _ in chat.posts)
    assert first == second


def test_killed_in_the_statement_it_happens_once(conf: Settings, sql: Ask, heard: None) -> None:
    """The hook and its mark commit together: what a killed delivery did in it is undone, and then done once."""
    put(conf)
    hook = f"{HOOK}; SELECT pg_advisory_xact_lock(7)"
    sql("SELECT pg_advisory_lock(7)")
    process = deliverer(conf, HEADRACE_ALERTS__SQL=hook)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()"
    deadline = time.monotonic() + 30
    while sql(waits) != [(1,)]:
        assert time.monotonic() < deadline, "the hook does not wait for the lock"
        time.sleep(0.02)
    process.kill()
    process.wait()
    sql("SELECT pg_advisory_unlock(7)")
    later(sql)
    assert alerts.deliver(telling(conf, sql=hook), "control") == Delivery(told=1, failed=0)
    assert sql("SELECT count(*) FROM public.heard") == [(1,)]


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("SELECT %(nonsense)s", "%(nonsense)s is no parameter; there are at, context, database, "),
        ("SELECT 1 WHERE 'a' LIKE '%a'", "a literal % is written %%"),
        ("SELECT nothing()", "function nothing() does not exist"),
        ("SELECT pg_sleep(60)", "statement timeout"),
        ("INSERT INTO public.heard SELECT %(event)s; SELECT 1/0", "division by zero (SQLSTATE 22012)"),
    ],
    ids=["parameter", "percent", "function", "endless", "half-way"],
)
def test_a_statement_that_fails_says_why(conf: Settings, sql: Ask, heard: None, statement: str, said: str) -> None:
    """One line that names the hook, the database and the reason; nothing of the statement stays."""
    why = problem(conf, sql, sql=statement, timeout_seconds=0.5 if "sleep" in statement else 5)
    assert why.startswith("SQL hook in control: ") and said in why
    assert sql("SELECT count(*), (SELECT count(*) FROM headrace.alert WHERE told <> '{}') FROM public.heard") == [
        (0, 0)
    ]


def test_a_refused_connection_says_what_to_check(conf: Settings, sql: Ask, closed_port: int) -> None:
    """Mail and webhook to a port where nobody listens: both problems in one line."""
    why = problem(conf, sql, mail=by_mail(closed_port), webhook=Webhook(url=f"http://127.0.0.1:{closed_port}/x"))
    assert f"mail by 127.0.0.1:{closed_port}: [Errno 111] Connection refused; check host, port and security" in why
    assert f"webhook http://127.0.0.1:{closed_port}/…: [Errno 111] Connection refused; check alerts.webhook.url" in why


@pytest.mark.parametrize(
    ("status", "said"),
    [(400, "answered 400 no token"), (404, "check url"), (503, "answered 503"), (302, "a redirect to http://else/…")],
)
def test_only_2xx_takes_it(conf: Settings, sql: Ask, chat: Chat, status: int, said: str) -> None:
    """Anything else is a problem with the service's own words, and a redirect is not followed."""
    chat.status, chat.said, chat.location = status, "no\n token", "http://else/secret" if status == 302 else ""
    assert said in problem(conf, sql, webhook=Webhook(url=chat.url))
    assert len(chat.posts) == 1


def test_a_silent_service_is_not_waited_for(conf: Settings, sql: Ask, chat: Chat) -> None:
    """A request without an answer ends after timeout_seconds."""
    chat.hold.clear()
    assert "timed out; check alerts.webhook" in problem(conf, sql, webhook=Webhook(url=chat.url), timeout_seconds=1)


def test_a_dripping_service_is_not_waited_for(conf: Settings, sql: Ask) -> None:
    """A mail server that sends a byte now and then, for ever, ends after three times timeout_seconds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def drip() -> None:
            peer, _ = server.accept()
            with peer:
                try:
                    while not over.wait(0.1):
                        peer.sendall(b"2")
                except OSError:
                    pass  # the client has left

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        why = problem(conf, sql, mail=by_mail(server.getsockname()[1]), timeout_seconds=0.8)
        over.set()
        thread.join(10)
    assert "no end after 2.4 s" in why


def test_the_environments_proxy_is_not_used(conf: Settings, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the proxy of the settings is gone through: it then sees the whole address."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    put(conf)
    assert alerts.deliver(telling(conf, webhook=Webhook(url=chat.url)), "control").told == 1
    put(conf)
    proxied = Webhook(url="http://nowhere.invalid/x", proxy=chat.url)
    assert alerts.deliver(telling(conf, webhook=proxied), "control").told == 1
    assert [path for path, _, _ in chat.posts] == ["/hooks/s3cret-path", "http://nowhere.invalid/x"]


def test_secrets_are_in_no_problem(
    conf: Settings, sql: Ask, chat: Chat, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Servers that quote the token, the path or the password back at us: neither row nor log has them."""
    secret = tmp_path / "secret"
    secret.write_text("t0p-s3cret")
    refused = AuthResult(success=False, handled=False, message="535 bad: t0p-s3cret")
    office = PostOffice(auth_require_tls=False, authenticator=lambda *_: refused)
    office.start()
    chat.status, chat.said = 401, "Bearer t0p-s3cret at /hooks/s3cret-path?key=k3y for k4y is wrong"
    hook = Webhook(url=f"{chat.url}?key=k3y".replace("//", "//me:pw5@"), token_file=secret, headers={"X-Key": "k4y"})
    try:
        why = problem(conf, sql, mail=by_mail(office.port, user="me", password_file=secret), webhook=hook)
    finally:
        office.stop()
    assert (
        "the login was refused (535 bad: •••)" in why and "answered 401 Bearer ••• at •••?••• for ••• is wrong" in why
    )
    for hidden in ("t0p-s3cret", "s3cret-path", "k3y", "k4y", "pw5"):
        assert hidden not in why and hidden not in caplog.text


def test_a_secret_that_cannot_be_read_or_sent_is_named_by_its_file(conf: Settings, sql: Ask, tmp_path: Path) -> None:
    """A missing password file is named; a token with a line break is not quoted."""
    (tmp_path / "token").write_text("one\ntwo-s3cret")
    hook = Webhook(url="http://127.0.0.1:9/x", token_file=tmp_path / "token")
    why = problem(conf, sql, webhook=hook)
    assert "characters that HTTP forbids" in why and "s3cret" not in why
    sql("DELETE FROM headrace.alert")
    why = problem(conf, sql, webhook=hook.model_copy(update={"token_file": tmp_path / "gone"}))
    assert f"{tmp_path}/gone: the secret cannot be read" in why


def test_one_unknown_recipient_does_not_double_the_mail(conf: Settings, post: PostOffice) -> None:
    """The server took it for somebody: it counts as told."""
    post.unknown = "gone@obs.example"
    mail = by_mail(post.port).model_copy(update={"to": ("gone@obs.example", "night@obs.example")})
    put(conf)
    assert alerts.deliver(telling(conf, mail=mail), "control") == Delivery(told=1, failed=0)
    assert post.recipients == [["night@obs.example"]]


def test_no_known_recipient_is_a_problem(conf: Settings, sql: Ask, post: PostOffice) -> None:
    """Each refused address with the server's words."""
    post.unknown = "night@obs.example"
    why = problem(conf, sql, mail=by_mail(post.port))
    assert "every recipient was refused (night@obs.example: 550 no such person); check alerts.mail.to" in why


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not here to make a certificate")
    both = tmp_path_factory.mktemp("tls") / "both.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    made = subprocess.run(
        [openssl, *words.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "-", "-out", "-"],
        capture_output=True,
        check=True,
    )
    both.write_bytes(made.stdout)
    return both


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")  # it does not see that all of it is TLS
@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_mail_goes_encrypted_with_a_login(
    conf: Settings, sql: Ask, certificate: Path, tmp_path: Path, security: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate that the system does not trust is refused; a trusted one is used, and the password fits."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    seen: list[Any] = []

    def login(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        seen.append((data.login, data.password, session.ssl is not None or security == "tls"))
        return AuthResult(success=True)

    tls = {"tls_context": context, "require_starttls": True} if security == "starttls" else {"ssl_context": context}
    office = PostOffice(authenticator=login, auth_required=True, auth_require_tls=security == "starttls", **tls)
    office.start()
    (tmp_path / "password").write_text("s3cret")
    mail = by_mail(office.port, security=security, user="me", password_file=tmp_path / "password")
    try:
        assert "certificate verify failed" in problem(conf, sql, mail=mail)
        later(sql)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert alerts.deliver(telling(conf, mail=mail), "control") == Delivery(told=1, failed=0)
    finally:
        office.stop()
    assert (seen, len(office.mails)) == ([(b"me", b"s3cret", True)], 1)


def test_a_server_without_starttls_gets_no_password(conf: Settings, sql: Ask, post: PostOffice) -> None:
    """Where encryption is asked for and not offered, nothing is sent in the clear."""
    why = problem(conf, sql, mail=by_mail(post.port, security="starttls", user="me"))
    assert "STARTTLS extension not supported by server" in why
    assert post.mails == []

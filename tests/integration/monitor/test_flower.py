"""Flower as Headrace runs it: a login before everything, every queue shown, metrics that outlive their servers."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import flower.urls
import psycopg2
import pytest
from flower.views import auth, monitor
from prometheus_client.parser import text_string_to_metric_families
from tornado.web import StaticFileHandler, URLSpec

from workers import hosts, migrations
from workers.services.ports import choose_port
from workers.services.postgres import PostgresServer
from workers.services.valkey import ValkeyServer
from workers.settings import Settings
from workers.targets import CONTROL, Target
from workers.telemetry import api as telemetry

TREE = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
HOSTS = ("alpha", "beta")
SECRET = "s3cret-in-a-message"  # of a failed run: it must be dots on every page
LATE = "late.example.org"


@dataclass
class Site:
    """The servers and settings that the Flower processes of these tests share."""

    folder: Path
    postgres: PostgresServer
    valkey: ValkeyServer
    env: dict[str, str]
    control: Target
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *argv: str, log: str, **extra: str) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as file:
            process = subprocess.Popen(
                argv, env={**self.env, **extra}, cwd=self.folder, stdout=file, stderr=subprocess.STDOUT
            )
        self.processes.append(process)
        return process

    def log(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Reply:
    """What Flower answered."""

    status: int
    text: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Client:
    """Asks one Flower; `login` is `user:password` or nothing."""

    port: int
    login: str | None = None

    def ask(self, path: str, *, method: str = "GET", data: bytes | None = None, **headers: str) -> Reply:
        if self.login is not None:
            headers.setdefault("Authorization", basic(self.login))
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", method=method, data=data, headers=headers
        )
        try:
            with urllib.request.urlopen(request, timeout=15) as answer:
                return Reply(answer.status, answer.read().decode(), dict(answer.headers))
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.read().decode(), dict(error.headers))

    def metrics(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Every metric by name and label values (in the order of the labels' names)."""
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(self.ask("/metrics").text):
            for sample in family.samples:
                labels = tuple(value for _, value in sorted(sample.labels.items()))
                found.setdefault(sample.name, {})[labels] = sample.value
        return found


def basic(login: str) -> str:
    return "Basic " + base64.b64encode(login.encode()).decode()


def eventually(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return value


def healthy(client: Client) -> bool:
    try:
        return client.ask("/healthcheck").text == "OK"
    except OSError:
        return False


def run_sql(dsn: str, *statements: str) -> None:
    with closing(psycopg2.connect(dsn)) as conn, conn, conn.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="headrace-monitor-"))
    folder.chmod(0o755)  # as root the server runs in a user namespace and must reach its folder
    postgres, valkey = PostgresServer(folder / "data"), ValkeyServer(folder / "data")
    files = folder / "telem"
    files.mkdir()
    try:
        postgres.start()
        valkey.start()
        env = {name: value for name, value in os.environ.items() if not name.startswith(("HEADRACE_", "FLOWER_"))}
        env |= {
            "PYTHONPATH": str(TREE),
            "HEADRACE_CONTROL__DSN": postgres.dsn(),
            "HEADRACE_BROKER__URL": valkey.url(),
            "HEADRACE_HOST": "alpha",
            "HEADRACE_DATA_DIR": str(folder / "data"),
            "HEADRACE_TELEMETRY__DATA_DIRS": json.dumps([str(files)]),
        }
        site = Site(folder, postgres, valkey, env, Target(CONTROL, postgres.dsn()))
        seed(site)
        yield site
        for process in site.processes:
            process.send_signal(signal.SIGTERM)
        for process in site.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        valkey.stop()
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


def seed(site: Site) -> None:
    """Two hosts, a failure, a pause, files that wait and one that is damaged."""
    with closing(psycopg2.connect(site.postgres.dsn())) as conn:
        migrations.migrate(conn, migrations.FOUNDATION)
    telemetry.setup(Settings(control={"dsn": site.postgres.dsn()}))
    for name in HOSTS:
        hosts.announce(site.control, name, f"w@{name}", [f"telemetry.{name}", f"products.{name}", "ticks"])
    run_sql(
        site.postgres.dsn(),
        "UPDATE headrace.host SET last_seen = now() - interval '5 minutes' WHERE name = 'beta'",
        "INSERT INTO headrace.pause (room, host, paused_by, reason) VALUES ('telemetry', 'beta', 'kim', 'observing')",
        f"""INSERT INTO headrace.run (room, key, state, task, message, started_at, finished_at, error) VALUES
            ('telemetry', 'beta:/d/<b>bad</b>.bintel', 'failed', 'telemetry.ingest', '{{}}', now(), now(),
             '{{"message": "no route to postgresql://me:{SECRET}@there/db"}}')""",
        """INSERT INTO headrace.telemetry_file (host, path, device, state, seen_mtime_ns, mtime_ns, ingested_at, error)
           VALUES ('beta', '/d/w.bintel', 'wheel', 'pending', (extract(epoch FROM now()) - 100) * 1e9,
                   NULL, NULL, NULL),
                  ('beta', '/d/c.bintel', 'cooler', 'done', NULL, (extract(epoch FROM now()) - 7) * 1e9, now(), NULL),
                  ('alpha', '/d/x.bintel', 'xray', 'damaged', NULL, NULL, NULL, 'byte 7 is no record')""",
        """INSERT INTO headrace.dead_letter (host, path, start_byte, end_byte, reason, raw)
           VALUES ('alpha', '/d/x.bintel', 7, 9, 'no record', 'ab')""",
    )


@pytest.fixture(scope="module")
def secrets(site: Site) -> dict[str, str]:
    document = json.loads((site.folder / "data" / "credentials.json").read_text())
    return {name: value for name, value in document.items() if name != "flower_user"}


@pytest.fixture(scope="module")
def client(site: Site, secrets: dict[str, str]) -> Client:
    """The plain `celery -A workers flower`, and somebody who has its login."""
    port = choose_port(None)
    site.start(str(BIN / "celery"), "-A", "workers", "flower", f"--port={port}", log="flower.log")
    client = Client(port, f"headrace:{secrets['flower_password']}")
    eventually(lambda: healthy(client), f"Flower answers; its log: {site.log('flower.log')}")
    return client


@pytest.fixture(scope="module")
def worker(site: Site, client: Client) -> str:
    """A real worker of the host alpha, once Flower knows it."""
    site.start(str(BIN / "celery"), "-A", "workers", "worker", "-n", "worker@alpha", "-c", "1", log="worker.log")
    eventually(
        lambda: "active_queues" in json.loads(client.ask("/api/workers?refresh=1").text).get("worker@alpha", {}),
        "Flower sees the worker",
    )
    return "worker@alpha"


def addresses() -> list[str]:
    """An address for every handler of Flower that may show data or do something."""
    without_data = (monitor.Healthcheck, auth.LoginHandler, auth.LogoutHandler, StaticFileHandler)
    specs = [entry if isinstance(entry, URLSpec) else URLSpec(*entry) for entry in flower.urls.handlers]
    patterns = [spec.regex.pattern.rstrip("$") for spec in specs if spec.handler_class not in without_data]
    return ["/headrace", *(re.sub(r"\(\.[+*]\)|^\.\*", "/x", pattern).replace("//", "/") for pattern in patterns)]


def test_nothing_is_served_without_a_login(client: Client) -> None:
    """Without a login every handler that serves data answers 401, whatever the method."""
    stranger = Client(client.port)
    found = {
        (path, method): stranger.ask(path, method=method, data=b"" if method == "POST" else None).status
        for path in addresses()
        for method in ("GET", "POST", "OPTIONS")
    }
    assert len(found) > 80
    assert {key: status for key, status in found.items() if status != 401} == {}
    assert stranger.ask("/healthcheck").text == "OK"


@pytest.mark.parametrize(
    "word",
    [
        basic("headrace:wrong"),
        basic("headräce:ü"),
        basic(""),
        "Basic %%%",
        "Basic",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer none none",
    ],
)
def test_a_wrong_login_is_refused(client: Client, word: str) -> None:
    """A wrong, odd or empty login is 401, never an error of ours."""
    stranger = Client(client.port)
    paths = ("/metrics", "/headrace", "/api/workers")
    assert [stranger.ask(path, Authorization=word).status for path in paths] == [401, 401, 401]


def test_pages_answer_with_the_login(client: Client) -> None:
    """With the generated login Flower's own pages and ours are there, linked from the navigation."""
    paths = ["/", "/workers", "/tasks", "/broker", "/headrace", "/metrics", "/api/workers", "/api/tasks"]
    assert {path: client.ask(path).status for path in paths} == dict.fromkeys(paths, 200)
    assert 'href="/headrace"' in client.ask("/tasks").text


def test_the_login_is_generated_privately_and_told(site: Site, client: Client) -> None:
    """Standard error tells where the generated login is; only the owner may read that file."""
    file = site.folder / "data" / "credentials.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert f"password `flower_password` in {file}" in site.log("flower.log")


def test_every_queue_is_shown(site: Site, client: Client, worker: str) -> None:
    """All queues of all hosts are on the Broker page, though only one host has a worker, and one joined later."""
    hosts.announce(site.control, LATE, f"w@{LATE}", [f"telemetry.{LATE}"])
    names = {"ticks", "dispatch", "postprocessing", "repack"}
    names |= {f"{room}.{host}" for room in ("telemetry", "products") for host in (*HOSTS, LATE)}

    def shown() -> bool:
        depths = {queue for (queue,) in client.metrics()["headrace_queue_messages"]}
        listed = {row["name"] for row in json.loads(client.ask("/api/queues/length").text)["active_queues"]}
        page = set(re.findall(r"<td>([^<]+)</td>", client.ask("/broker").text))
        return depths == names and listed == names and names <= page

    eventually(shown, "all queues are shown", 6)


def test_metrics_by_token(client: Client, secrets: dict[str, str]) -> None:
    """A scraper with the token reads Flower's metrics and ours, and no other page."""
    word = f"Bearer {secrets['metrics_token']}"
    reply = Client(client.port).ask("/metrics", Authorization=word)
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert "flower_worker_online" in reply.text and "headrace_up" in reply.text
    assert Client(client.port).ask("/headrace", Authorization=word).status == 401


def test_metrics_say_what_the_databases_say(client: Client) -> None:
    """Hosts, runs, files, lag, dead letters, pauses and the missing beat are told in numbers."""
    found = client.metrics()
    assert found["headrace_up"] == {("broker",): 1, ("postgresql",): 1, ("telemetry",): 1}
    assert found["headrace_host_silent_seconds"][("beta",)] == pytest.approx(300, abs=60)
    assert found["headrace_runs"][("telemetry", "failing")] >= 1
    assert found["headrace_paused"] == {("beta", "telemetry"): 1}
    assert found["headrace_beat_leader"] == {(): 0}
    assert found["headrace_dead_letters"] == {(): 1}
    assert found["headrace_telemetry_files"][("alpha", "damaged")] == 1
    assert found["headrace_telemetry_oldest_pending_seconds"][("beta",)] == pytest.approx(100, abs=60)
    assert found["headrace_telemetry_oldest_pending_seconds"][("alpha",)] == 0
    assert found["headrace_telemetry_device_lag_seconds"][("cooler",)] == pytest.approx(7, abs=0.1)


def test_a_beat_is_seen_by_its_lock(site: Site, client: Client) -> None:
    """While a beat leads, the metric is 1 and the page has no complaint."""
    assert "No beat sends ticks" in client.ask("/headrace").text
    beat = site.start(str(BIN / "celery"), "-A", "workers", "beat", log="beat.log")
    try:
        eventually(lambda: client.metrics()["headrace_beat_leader"] == {(): 1}, "the beat leads")
        assert "No beat sends ticks" not in client.ask("/headrace").text
    finally:
        beat.terminate()
        beat.wait(10)


def test_the_page_tells_what_needs_a_person(client: Client) -> None:
    """The page shows the pause, the silent host, the failure with its reason, and the damaged file, all escaped."""
    text = client.ask("/headrace").text
    for piece in ("observing", "silent", "no route to postgresql://me:•••@there/db", "byte 7 is no record", "7.0"):
        assert piece in text, piece
    assert "<b>bad</b>" not in text and "&lt;b&gt;bad" in text


def test_a_task_is_found_and_readable(site: Site, client: Client, worker: str) -> None:
    """A real message is found by its path, device or host, and the list shows `path=… host=…`."""
    path = str(site.folder / "telem" / "cooler_20240416035000000000000.ndjson")
    code = f"from producers import enqueue; enqueue('telemetry.ingest', path={path!r})"
    subprocess.run([sys.executable, "-c", code], env=site.env, check=True, cwd=site.folder)

    def rows(search: str) -> list[dict[str, Any]]:
        fields = {"draw": 1, "start": 0, "length": 10, "search[value]": search, "order[0][column]": 0}
        query = urlencode({**fields, "columns[0][data]": "name", "order[0][dir]": "asc"})
        return list(json.loads(client.ask(f"/tasks/datatable?{query}").text)["data"])

    eventually(lambda: rows("kwargs:cooler"), "the task is in Flower's list")
    searches = (f"kwargs:path={path}", "kwargs:host=alpha", "cooler_2024", "kwargs:cooler")
    shown = {search: [row["kwargs"] for row in rows(search)] for search in searches}
    assert shown == {search: [f"path={path} host=alpha"] for search in searches}
    assert f"path={path}" in client.ask(f"/task/{rows('kwargs:cooler')[0]['uuid']}").text
    assert rows("kwargs:nosuchdevice") == []


def test_revoke_is_refused(client: Client) -> None:
    """Flower's Revoke would poison an id that comes again, so it is refused with what to do instead."""
    reply = client.ask("/api/task/revoke/0-1", method="POST", data=b"terminate=true")
    assert reply.status == 403 and "headrace cancel" in reply.text


def test_no_secret_is_on_any_page(site: Site, client: Client, worker: str, secrets: dict[str, str]) -> None:
    """No password or token is on a page, in an API answer, in the metrics or in Flower's log."""
    details = f"/worker/{quote(worker)}"
    paths = [*addresses(), details, "/", "/tasks", "/api/workers?refresh=1"]
    texts = {path: client.ask(path).text for path in paths} | {"log": site.log("flower.log")}
    assert "broker_url" in texts[details]
    words = {**secrets, "message": SECRET}
    assert [(name, path) for name, word in words.items() for path, text in texts.items() if word in text] == []


def test_options_win_and_a_lost_broker_is_told(site: Site) -> None:
    """The command line's login and port win, the API stays closed, and a dead broker is up 0."""
    port = choose_port(None)
    argv = [str(BIN / "celery"), "-A", "workers", "flower", f"--port={port}", "--basic-auth=me:mine"]
    nowhere = {"HEADRACE_BROKER__URL": "redis://:topsecret@127.0.0.1:1/0", "HEADRACE_FLOWER__PORT": "1"}
    flower_process = site.start(*argv, log="second.log", FLOWER_UNAUTHENTICATED_API="1", **nowhere)
    client = Client(port, "me:mine")
    try:
        eventually(lambda: healthy(client), "the second Flower answers")
        assert Client(port).ask("/api/workers").status == 401
        found = client.metrics()
        assert found["headrace_up"] == {("broker",): 0, ("postgresql",): 1, ("telemetry",): 1}
        assert "headrace_queue_messages" not in found
        assert "topsecret" not in site.log("second.log") + client.ask("/headrace").text
        assert_only_loopback(port)
    finally:
        flower_process.kill()  # its threads still wait for the broker; seconds that no test needs
        flower_process.wait(20)


@pytest.mark.parametrize("argv", [["-m", "celery", "-A", "workers", "flower"], ["-m", "producers.cli", "flower"]])
def test_every_way_to_start_it_is_as_closed(site: Site, secrets: dict[str, str], argv: list[str]) -> None:
    """`python -m celery ... flower` and `headrace flower` ask for the same login and have the same page."""
    port = choose_port(None)
    process = site.start(sys.executable, *argv, f"--port={port}", log="other.log")
    try:
        eventually(lambda: healthy(Client(port)), "the other Flower answers")
        assert [Client(port).ask(path).status for path in ("/", "/metrics", "/headrace")] == [401] * 3
        assert Client(port, f"headrace:{secrets['flower_password']}").ask("/headrace").status == 200
    finally:
        process.terminate()
        process.wait(20)


def assert_only_loopback(port: int) -> None:
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    found = {line[1] for line in listening if line[3] == "0A" and line[1].endswith(f":{port:04X}")}
    assert found == {f"0100007F:{port:04X}"}


def test_a_secret_that_cannot_work_stops_flower(site: Site) -> None:
    """An empty password file is no login: Flower ends with exit code 2 and says which file."""
    empty = site.folder / "empty"
    empty.touch()
    process = site.start(
        str(BIN / "celery"), "-A", "workers", "flower", log="third.log", HEADRACE_FLOWER__PASSWORD_FILE=str(empty)
    )
    assert process.wait(20) == 2
    assert f"headrace: {empty}: the secret is empty" in site.log("third.log")


def test_metrics_outlive_postgresql(site: Site, client: Client) -> None:
    """With PostgreSQL stopped, metrics and page still answer within seconds: up is 0, queues are still told."""
    site.postgres.stop()
    try:
        eventually(lambda: client.metrics()["headrace_up"][("postgresql",)] == 0, "the stop is seen", 10)
        began = time.monotonic()
        found = client.metrics()
        assert found["headrace_up"] == {("broker",): 1, ("postgresql",): 0, ("telemetry",): 0}
        assert ("ticks",) in found["headrace_queue_messages"]
        page = client.ask("/headrace")
        assert page.status == 200 and "postgresql does not answer" in page.text
        assert time.monotonic() - began < 8
    finally:
        site.postgres.start()
    eventually(lambda: client.metrics()["headrace_up"][("postgresql",)] == 1, "the return is seen", 10)

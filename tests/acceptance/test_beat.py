"""Several beats: exactly one sends ticks, another takes over in a moment, and a lost database only makes them wait."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import redis

from workers import database, migrations
from workers.services.postgres import PostgresServer
from workers.settings import Settings
from workers.status import BEAT_LOCK

if TYPE_CHECKING:
    from tests.conftest import Site

Process = subprocess.Popen[bytes]
HOLDERS = """
    SELECT pid FROM pg_locks
     WHERE locktype = 'advisory' AND granted AND (classid::bigint << 32 | objid::bigint) = %s
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server of this module's own, because it is stopped and started."""
    server = PostgresServer(tmp_path_factory.mktemp("postgres"))
    server.start()
    conf = Settings(control={"dsn": server.dsn()})
    with database.connection(conf.target(), purpose="tests") as conn:
        migrations.migrate(conn, migrations.FOUNDATION)
    database.close_all()
    yield server
    server.stop()


@pytest.fixture
def beats(site: Site, postgres: PostgresServer) -> Iterator[list[Process]]:
    """A leader and a standby whose ticks come every second; no worker takes them from the queue."""
    site.dsn = postgres.dsn()
    leader = site.start("beat", app="rehearsal")
    site.until(lambda: "beat.leading" in site.log(leader), "the first beat leads")
    standby = site.start("beat", app="rehearsal")
    site.until(lambda: "beat.standby" in site.log(standby), "the second beat stands by")
    yield [leader, standby]
    for process in site.processes:
        process.kill()
        process.wait()


def holders(site: Site) -> list[int]:
    """The sessions that hold the leader's lock."""
    return [row[0] for row in site.ask(HOLDERS, BEAT_LOCK)]


def ticks(site: Site) -> list[str]:
    """The names of the ticks that wait, the newest first."""
    with redis.Redis.from_url(site.broker_url) as client:
        waiting = client.lrange("headrace:ticks", 0, -1)
    return [json.loads(message)["headers"]["task"] for message in waiting]


def until_ticks_go_on(site: Site, seconds: float = 5) -> None:
    """Wait for two more reaper ticks."""
    before = ticks(site).count("ticks.reap")
    site.until(lambda: ticks(site).count("ticks.reap") >= before + 2, "ticks go on", seconds)


def test_the_standby_sends_within_two_seconds_of_a_kill(site: Site, beats: list[Process]) -> None:
    """After kill -9 of the leader the other beat holds the lock and sends within two seconds and a bit."""
    until_ticks_go_on(site)
    leader, standby = beats
    leader.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    leader.wait()
    site.until(lambda: "beat.leading" in site.log(standby), "the standby leads", seconds=3)
    assert time.monotonic() - killed < 2.5
    before = len(ticks(site))
    site.until(lambda: len(ticks(site)) > before, "it sends", seconds=3)


def test_a_terminated_lock_connection_leaves_exactly_one_leader(site: Site, beats: list[Process]) -> None:
    """When the session with the lock is terminated, exactly one beat holds it again and ticks go on."""
    first = holders(site)
    assert len(first) == 1
    site.ask("SELECT pg_terminate_backend(%s)", first[0])
    site.until(lambda: len(holders(site)) == 1 and holders(site) != first, "one leader", seconds=5)
    until_ticks_go_on(site)
    assert len(holders(site)) == 1
    assert [process.poll() for process in beats] == [None, None]


def test_beats_wait_for_a_stopped_database(site: Site, beats: list[Process], postgres: PostgresServer) -> None:
    """While the database is stopped no beat sends; once it runs again exactly one does."""
    until_ticks_go_on(site)
    leader = beats[0]
    postgres.stop()
    site.until(lambda: "beat.standby" in site.log(leader), "the leader stands by")
    quiet = len(ticks(site))
    tried = site.log(leader).count("beat.no_database")
    site.until(lambda: site.log(leader).count("beat.no_database") >= tried + 2, "it tries again")
    assert len(ticks(site)) == quiet
    postgres.start()
    site.until(lambda: len(holders(site)) == 1, "one leader")
    until_ticks_go_on(site)
    assert [process.poll() for process in beats] == [None, None]


def test_every_node_answers_under_its_own_name(site: Site, beats: list[Process]) -> None:
    """`celery -A workers inspect ping` is answered by a worker and by both beats of one host, by three names."""
    worker = site.worker()
    expected = sorted(
        [f"w{site.processes.index(worker)}@here", *(f"celerybeat-{process.pid}@here" for process in beats)]
    )

    def nodes() -> list[str]:
        return sorted(json.loads(site.celery("inspect", "ping", "--json", "-d", ",".join(expected)).stdout or "{}"))

    site.until(lambda: nodes() == expected, f"{expected} answer")

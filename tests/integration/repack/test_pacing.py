"""A rewrite waits for standbys and for the server's WAL, as far as limits are set and the login may know."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import psycopg2.extras
import pytest

from tests.conftest import Servers
from workers import database
from workers.repack import pacing, pacing_catalog
from workers.repack.pacing import BLIND_WAIT_SECONDS, LAG_WAIT_SECONDS, Pace
from workers.repack_settings import Limits
from workers.targets import Target

Ask = Callable[..., list[tuple[Any, ...]]]

NOW = datetime(2027, 1, 1, tzinfo=UTC)
LAG = Limits(max_replication_lag_bytes=1_000_000)
GRANT = "GRANT pg_monitor TO headrace"


@pytest.fixture
def conn(dsn: str) -> Iterator[database.Connection]:
    """A session that copies: not in autocommit, and with no transaction open between its chunks."""
    with closing(database.connect(Target("db", dsn), purpose="tests")) as opened:
        yield opened


@contextmanager
def monitor(servers: Servers) -> Iterator[None]:
    """The ordinary login may see how far the standbys are."""
    with closing(psycopg2.connect(servers.postgres.superuser_dsn())) as superuser:
        superuser.autocommit = True
        superuser.cursor().execute(GRANT)
        try:
            yield
        finally:
            superuser.cursor().execute("REVOKE pg_monitor FROM headrace")


@contextmanager
def standby(servers: Servers) -> Iterator[Any]:
    """A receiver that says itself how far it is; it begins where the server is now."""
    with closing(
        psycopg2.connect(
            servers.postgres.superuser_dsn(), application_name="berlin",
            connection_factory=psycopg2.extras.PhysicalReplicationConnection,
        )
    ) as replica:  # fmt: skip
        cursor = replica.cursor()
        cursor.execute("IDENTIFY_SYSTEM")
        [(_, _, start, _)] = cursor.fetchall()
        cursor.start_replication(start_lsn=start)
        replayed(cursor, start)
        yield cursor


def replayed(cursor: Any, position: str) -> None:
    """Say that everything up to this position is replayed."""
    high, low = position.split("/")
    number = (int(high, 16) << 32) + int(low, 16)
    cursor.send_feedback(write_lsn=number, flush_lsn=number, apply_lsn=number, force=True)


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that the server does."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def write(sql: Ask, megabytes: int = 3) -> None:
    """Make so much WAL, and have it written."""
    sql("SELECT pg_logical_emit_message(true, 'tests', repeat('x', 1000000)) FROM generate_series(1, %s)", megabytes)


def test_without_a_limit_nothing_is_asked(conn: database.Connection) -> None:
    """No limit, no hold, and no statement on the connection."""
    conn.close()
    assert Pace(conn, Limits()).hold(NOW, last_chunk_seconds=5) is None


def test_a_server_without_standbys_holds_nothing(servers: Servers, conn: database.Connection, sql: Ask) -> None:
    """A lag limit alone never holds, and the question leaves no transaction open."""
    with monitor(servers):
        assert pacing.preflight(conn, LAG) is None
        pace = Pace(conn, LAG)
        assert pace.hold(NOW) is None
        write(sql)
        assert pace.hold(NOW + timedelta(seconds=30)) is None
        assert sql("SELECT state FROM pg_stat_activity WHERE pid = %s", conn.info.backend_pid) == [("idle",)]


def test_a_standby_that_falls_behind_holds(servers: Servers, conn: database.Connection, sql: Ask) -> None:
    """Over the limit of bytes it is named, until it has replayed enough."""
    with monitor(servers), standby(servers) as berlin:
        until(lambda: pacing_catalog.standbys(conn), "the standby reports")
        pace = Pace(conn, LAG)
        assert pace.hold(NOW) is None
        write(sql)
        hold = pace.hold(NOW + timedelta(seconds=1))
        assert hold is not None and hold.seconds == LAG_WAIT_SECONDS
        assert re.match(r"standby berlin is \d,\d{3},\d{3} bytes behind, over the limit of 1,000,000", hold.reason)
        [(position,)] = sql("SELECT pg_current_wal_lsn()::text")
        replayed(berlin, position)
        until(lambda: pace.hold(NOW + timedelta(seconds=2)) is None, "it goes on")


def test_a_standby_that_stopped_replaying_is_late(servers: Servers, conn: database.Connection, sql: Ask) -> None:
    """Seconds are counted from when we saw written what it lacks, whatever PostgreSQL measured last."""
    limits = Limits(max_replication_lag_seconds=8)
    with monitor(servers), standby(servers) as berlin:
        pace = Pace(conn, limits)
        pace.hold(NOW)
        [(text, position)] = sql("SELECT lsn::text, (lsn - '0/0'::pg_lsn)::bigint FROM pg_current_wal_lsn() AS lsn")
        replayed(berlin, text)
        until(lambda: [one.position for one in pacing_catalog.standbys(conn)] == [position], "it has replayed that")
        write(sql)
        holds = [pace.hold(NOW + timedelta(seconds=seconds)) for seconds in (10, 15, 20)]
        assert holds[:2] == [None, None]
        assert holds[2] is not None and "standby berlin is 10.0 seconds behind" in holds[2].reason


def test_a_login_that_may_not_know_is_told_so(servers: Servers, conn: database.Connection) -> None:
    """Before the start it is a problem that says what to grant; a standby that cannot be judged holds."""
    assert pacing.preflight(conn, Limits()) is None
    problem = pacing.preflight(conn, LAG)
    assert problem is not None and GRANT in problem
    with standby(servers):
        until(lambda: pacing_catalog.standbys(conn), "the standby is there")
        hold = Pace(conn, LAG).hold(NOW)
        assert hold is not None and GRANT in hold.reason and hold.seconds == BLIND_WAIT_SECONDS


def test_the_servers_wal_holds_while_it_is_too_much(conn: database.Connection, sql: Ask) -> None:
    """The pause is so long that the rate since the last question comes down to the limit."""
    pace = Pace(conn, Limits(max_wal_bytes_per_second=1_000_000))
    assert pace.hold(NOW) is None
    write(sql, megabytes=10)
    hold = pace.hold(NOW + timedelta(seconds=2))
    assert hold is not None and "over the limit of 1,000,000" in hold.reason
    assert 8 <= hold.seconds < 12  # 10 MB take 10 s, 2 are gone; other sessions may have written a little, too
    assert pace.hold(NOW + timedelta(seconds=2 + hold.seconds)) is None


def test_what_our_schemas_take_is_summed(conn: database.Connection, sql: Ask) -> None:
    """Copies, logs and old tables count with their indexes, nothing else does."""
    assert pacing_catalog.used_bytes(conn) == 0
    for schema in ("headrace_new_7", "headrace_old_8", "headrace_log_7", "headrace_newer"):
        sql(f"CREATE SCHEMA {schema}")
        sql(f"CREATE TABLE {schema}.t (id int PRIMARY KEY)")
        sql(f"INSERT INTO {schema}.t VALUES (1)")
    [(one,)] = sql("SELECT pg_total_relation_size('headrace_newer.t')")
    assert pacing_catalog.used_bytes(conn) == 3 * one

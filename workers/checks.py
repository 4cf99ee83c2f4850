"""Checks of servers for `headrace validate`: versions, and settings that would lose or block work."""

from __future__ import annotations

import redis

from workers import database
from workers.errors import ServerUnavailable
from workers.targets import Target, redacted

LEAST_POSTGRESQL = 140000
LEAST_REDIS = (6, 2)


def check_database(target: Target) -> list[str]:
    """What is wrong with a database, a line each. Raises ServerUnavailable when it cannot be reached."""
    problems = []
    first = database.connect(target, purpose="validate", autocommit=True)
    second = database.connect(target, purpose="validate")
    try:
        if first.server_version < LEAST_POSTGRESQL:
            problems.append(f"{target.name}: PostgreSQL {first.server_version // 10000} is too old; 14 is the least")
        before = _backend(first)
        _backend(second)  # in an open transaction: a transaction pooler now has to give `first` another backend
        if _backend(first) != before or before == _backend(second):
            problems.append(
                f"{target.name}: a pooler in transaction mode stands in between; advisory locks need one session: "
                "connect to PostgreSQL itself, or use pool_mode = session"
            )
    finally:
        first.close()
        second.close()
    return problems


def check_broker(url: str) -> list[str]:
    """What is wrong with Redis or Valkey, a line each. Raises ServerUnavailable when it cannot be reached."""
    problems = []
    try:
        client = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
        version = str(client.info("server")["redis_version"])
        policy = dict(client.config_get("maxmemory-policy")).get("maxmemory-policy")
    except (redis.RedisError, OSError, ValueError) as error:
        raise ServerUnavailable(
            f"the broker {redacted(url)} cannot be reached: {error}; check broker.url and that Redis or Valkey runs"
        ) from error
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST_REDIS:
        problems.append(f"the broker is Redis {version}; 6.2 is the least")
    if policy is not None and policy not in ("noeviction", b"noeviction"):
        problems.append(f"the broker's maxmemory-policy is {policy}: it may drop messages; set it to noeviction")
    return problems


def _backend(conn: database.Connection) -> int:
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        row = cursor.fetchone()
    return int(row[0]) if row else 0

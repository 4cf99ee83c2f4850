"""Removal: everything of repack taken out of a database: what is half-way, what failed ones left, our tables."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from workers import database, migrations
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.repack import asking, places, requests, store
from workers.repack.work import execute
from workers.settings import Settings

_LOCK = "SET LOCAL lock_timeout = '5s'"


def look(settings: Settings, database_name: str) -> list[str]:
    """What would go, a line each; nothing is changed."""
    with database.connection(settings.target(database_name), purpose="repack removal", autocommit=True) as conn:
        found = [f"schema {schema}: {', '.join(store.relations_in(conn, schema))}" for schema, _ in _schemas(conn)]
        if store.is_set_up(conn):
            found = [f"{one[1]}.{one[2]}: repack {one[0]} is given up" for one in store.active(conn)] + found
        return found + [f"table {one}" for one in store.room_tables(conn)]


def remove(settings: Settings, database_name: str, *, timeout: timedelta, by: str) -> list[str]:
    """Give up what is half-way, drop what failed requests left and our tables; what went.

    Raises PermanentFailure while a table is being swapped, and when something else needs a leftover.
    """
    target = settings.target(database_name)
    with database.connection(target, purpose="repack removal", autocommit=True) as conn:
        gone = list(_give_up(settings, database_name, conn, timeout, by)) if store.is_set_up(conn) else []
    with database.connection(target, purpose="repack removal") as conn:
        try:
            for schema, _repack in _schemas(conn):
                execute(conn, _LOCK)
                _drop(conn, schema)
                conn.commit()
                gone.append(f"schema {schema}")
            if ours := store.room_tables(conn):
                execute(conn, _LOCK)
                execute(conn, f"DROP TABLE {', '.join(ours)}")
                store.forget_migrations(conn, [one.name for one in migrations.known("repack")])
                conn.commit()
                gone += [f"table {one}" for one in ours]
        except database.DatabaseError as error:
            if database.sqlstate(error) not in ("2BP01", "42501"):
                raise
            conn.rollback()
            raise PermanentFailure(f"{database_name}: {database.first_line(error)}") from error
    places.forget()
    return gone


def _give_up(settings: Settings, database_name: str, conn: Connection, timeout: timedelta, by: str) -> Iterator[str]:
    active = [one for one in (store.read(conn, found[0]) for found in store.active(conn)) if one is not None]
    for one in active:
        whose = store.whose(conn, one.id)
        if one.step == "swap" and whose is not None and whose[0]:
            raise PermanentFailure(
                f"{one.name} is being swapped now (repack {one.id}); ask again once `headrace repack status` shows"
                " that it is over"
            )
    for one in active:
        asking.change(settings, database_name, one, "abort", by)
        message = requests.message(database_name, one.id, one.schema, one.table)
        if problems := requests.finish(settings, [message], timeout=timeout):
            outcome = asking.outcome(settings, database_name, one.id)
            if outcome is None or outcome["state"] == "active":
                raise PermanentFailure("; ".join(problems))
        yield f"{one.name}: repack {one.id}"


def _drop(conn: Connection, schema: str) -> None:
    for trigger in store.left_triggers(conn, schema):
        execute(conn, trigger)
    if tables := store.relations_in(conn, schema):
        # At once: a copy may inherit from a stand-in beside it.
        execute(conn, f"DROP TABLE {', '.join(tables)}")
    if functions := store.functions_in(conn, schema):
        execute(conn, f"DROP FUNCTION {', '.join(functions)}")
    execute(conn, f"DROP SCHEMA {schema}")


def _schemas(conn: Connection) -> list[tuple[str, int]]:
    # The log before the copies: its triggers stand on tables that stay.
    return sorted(store.own_schemas(conn), key=lambda one: (one[1], not one[0].startswith("headrace_log_"), one[0]))

"""The rows of a dbprocessing database, out of sqlite or PostgreSQL, and the bulk of rows that an import makes of them.

Nothing here commits.
"""

from __future__ import annotations

import io
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal
from urllib.parse import quote

import psycopg2
from psycopg2 import sql

from workers import database, targets
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products.legacy_rows import OPTIONAL, REQUIRED, Legacy, Tables, legacy
from workers.products.versions import Part, Version
from workers.sql_files import queries

SQL = queries("products_import")

COPY_ROWS = 20_000  # in memory at once
PATIENCE = "30s"  # for those who write files just now; later ones wait for the import


def read(source: str) -> Legacy:
    """A sqlite file, or a PostgreSQL database by connection string, URL or name (the rest from PGHOST, PGUSER, ...).

    Nothing is written there. Raises PermanentFailure for what is no dbprocessing database, ServerUnavailable for a
    server that cannot be reached.
    """
    if os.path.isfile(os.path.expanduser(source)):
        tables = _of_sqlite(os.path.expanduser(source))
    elif "://" in source or "=" in source:
        tables = _of_postgres(targets.Target("dbprocessing", source))
    elif "/" in source:
        raise PermanentFailure(f"{source}: there is no such file; name a sqlite file or a PostgreSQL database")
    else:
        tables = _of_postgres(targets.Connection(database=source).target("dbprocessing"))
    return legacy(targets.redacted(source), tables)


def _of_sqlite(path: str) -> Tables:
    try:
        with closing(sqlite3.connect(f"file:{quote(os.path.abspath(path))}?mode=ro", uri=True)) as db:
            db.text_factory = os.fsdecode
            db.row_factory = sqlite3.Row
            db.isolation_level = None
            db.execute("BEGIN")  # one snapshot, should dbprocessing be at work
            there = {row[0].lower() for row in db.execute("SELECT name FROM sqlite_master WHERE type <> 'index'")}
            return {
                name: [dict(row) for row in db.execute(f'SELECT * FROM "{name}"')]
                for name in (*REQUIRED, *OPTIONAL)
                if name in there
            }
    except sqlite3.Error as error:
        raise PermanentFailure(f"{path}: cannot be read as a sqlite database ({error})") from error


def _of_postgres(target: targets.Target) -> Tables:
    with closing(database.connect(target, purpose="products import")) as conn, database.translated(target, conn):
        conn.set_session(isolation_level="REPEATABLE READ", readonly=True)
        schema = SQL["legacy_schemas"].value(conn)
        if schema is None:
            return {}
        there = {row[0] for row in SQL["legacy_tables"].rows(conn, {"schema": schema})}
        return {
            name: [row[0] for row in SQL["legacy_rows"].with_slots(source=sql.Identifier(schema, name)).rows(conn)]
            for name in (*REQUIRED, *OPTIONAL)
            if name in there
        }


@dataclass(frozen=True, slots=True)
class Here:
    """A mission as it is here: its id and root, and the ids of what it has by their names."""

    id: int
    root: str
    products: Mapping[str, int] = field(default_factory=dict)
    processes: Mapping[str, int] = field(default_factory=dict)
    codes: Mapping[tuple[str, Version], int] = field(default_factory=dict)


def mission(conn: Connection, name: str) -> tuple[int, str, bool] | None:
    """Id, root and whether it was loaded as dbprocessing had it; None for a mission that is not here."""
    row = SQL["mission"].row(conn, {"name": name})
    return None if row is None else (row[0], row[1], row[2])


def here(conn: Connection, name: str) -> Here:
    """A mission that has been loaded."""
    row = SQL["mission"].row(conn, {"name": name})
    assert row is not None
    facts = {"mission": row[0]}
    return Here(
        row[0], row[1], dict(SQL["products"].rows(conn, facts)), dict(SQL["processes"].rows(conn, facts)),
        {(code[0], Version(*code[1:4])): code[4] for code in SQL["codes"].rows(conn, facts)},
    )  # fmt: skip


def totals(conn: Connection, mission_id: int | None) -> tuple[int, int, int, int]:
    """How many missions (0 or 1), products, processes and codes."""
    row = SQL["totals"].row(conn, {"mission": mission_id})
    assert row is not None
    return (row[0], row[1], row[2], row[3])


def hold_files(conn: Connection) -> None:
    """Nobody else writes files until the transaction ends. Raises RetryLater when somebody does for too long."""
    SQL["wait_for_files"].run(conn, {"patience": PATIENCE})
    try:
        SQL["hold_mark"].run(conn)
    except psycopg2.errors.InsufficientPrivilege as error:
        raise PermanentFailure(
            f"{database.first_line(error)}: import as the role that owns Headrace's tables"
        ) from error
    SQL["wait_for_files"].run(conn, {"patience": "0"})


def mark_newest(conn: Connection, mission_id: int) -> None:
    """Mark the newest files of a mission, and leave that to the trigger again."""
    SQL["unmark_newest"].run(conn, {"mission": mission_id})
    SQL["mark_newest"].run(conn, {"mission": mission_id})
    SQL["mark_again"].run(conn)


def files(conn: Connection, mission_id: int) -> list[tuple[Any, ...]]:
    """(id, name, product, day, key, interface, quality, revision, SHA-1) of each file that a mission has here."""
    return SQL["files"].rows(conn, {"mission": mission_id})


def reserve(conn: Connection, table: Literal["product_file", "product_build"], count: int) -> list[int]:
    """So many new ids, ascending."""
    return [row[0] for row in SQL["reserve"].rows(conn, {"table": f"headrace.{table}", "count": count})]


def copy_files(conn: Connection, rows: Iterable[Sequence[Any]]) -> int:
    """Insert files, in the order of the query's columns; how many."""
    return _copy(conn, "copy_files", rows)


def copy_builds(conn: Connection, rows: Iterable[Sequence[Any]]) -> int:
    """Insert builds, in the order of the query's columns; how many."""
    return _copy(conn, "copy_builds", rows)


def copy_links(conn: Connection, rows: Iterable[Sequence[Any]]) -> int:
    """Insert (parent, child); how many."""
    return _copy(conn, "copy_links", rows)


def _copy(
    conn: Connection, name: Literal["copy_files", "copy_builds", "copy_links"], rows: Iterable[Sequence[Any]]
) -> int:
    left, count = iter(rows), 0
    with conn.cursor() as cursor:
        while lines := ["\t".join(map(_field, row)) for row in islice(left, COPY_ROWS)]:
            cursor.copy_expert(SQL[name].text, io.StringIO("\n".join(lines) + "\n"), 1 << 20)
            count += len(lines)
    return count


def _field(value: Any) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, list | tuple):
        value = "{" + ",".join(_element(one) for one in value) + "}"
    text = str(value)
    if text.isalnum():
        return text
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r").replace("\0", "")


def _element(value: int | str) -> str:
    return str(value) if isinstance(value, int) else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def releases(conn: Connection, mission_id: int) -> dict[str, int]:
    """How many files each release of a mission has here."""
    return dict(SQL["releases"].rows(conn, {"mission": mission_id}))


def release_members(conn: Connection, ids: Sequence[int]) -> list[tuple[str, str]]:
    """Checksum and name of each of these files, as `releases` makes manifests of them."""
    return [(row[0], row[1]) for row in SQL["release_members"].rows(conn, {"files": list(ids)})]


def add_release(
    conn: Connection, mission_id: int, name: str, ids: Sequence[int], *, comment: str, by: str, manifest: str
) -> None:
    """A release that never changes any more."""
    release = SQL["add_release"].value(conn, {"mission": mission_id, "name": name, "comment": comment, "by": by})
    SQL["add_release_files"].run(conn, {"release": release, "files": list(ids)})
    SQL["seal_release"].run(conn, {"release": release, "manifest": manifest})


def settle_runs(conn: Connection, mission_id: int, *, queued: Sequence[int]) -> None:
    """Take processes without an output as run on all that there is, but where one of these files is an input."""
    SQL["settle_runs"].run(conn, {"mission": mission_id, "queued": list(queued)})


def force(conn: Connection, wanted: Sequence[tuple[int, int, Part]]) -> None:
    """Have outputs made anew: (process, file, the part of its version that is bumped)."""
    if wanted:
        processes, ids, parts = zip(*wanted, strict=True)
        SQL["force"].run(conn, {"processes": list(processes), "files": list(ids), "forces": list(parts)})

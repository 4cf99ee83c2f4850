"""What the inventory writes: files seen and missed, folder digests, and which telemetry files are to be read."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import psycopg2

from workers.database import Connection
from workers.sql_files import queries

SQL = queries("telemetry")


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder's text form, the digest of its listing, and how many files it held."""

    name: str
    digest: bytes
    files: int


def folder_digests(conn: Connection, host: str) -> dict[str, Folder]:
    """What each folder of the host looked like at the last look."""
    rows = SQL["folder_digests"].rows(conn, {"host": host})
    return {row[0]: Folder(row[0], bytes(row[1]), row[2]) for row in rows}


def copy_new(conn: Connection, lines: Iterable[bytes]) -> bool:
    """Copy files of folders never seen before straight into the inventory; False if one was there after all."""
    with conn.cursor() as cursor:
        cursor.execute("SAVEPOINT sightings")
        try:
            cursor.copy_expert(SQL["copy_origins"].text, io.BytesIO(b"\n".join(lines)), 1 << 20)
        except psycopg2.errors.UniqueViolation:
            cursor.execute("ROLLBACK TO SAVEPOINT sightings")
            return False
        cursor.execute("RELEASE SAVEPOINT sightings")
        return True


def merge(conn: Connection, host: str, lines: Iterable[bytes]) -> int:
    """Add and update files, and mark the telemetry among them; how many rows changed."""
    _stage(conn, lines)
    changed = SQL["merge_sightings"].run(conn, {"host": host})
    SQL["mark_pending"].run(conn, {"host": host})
    return changed


def mark_pending(conn: Connection, host: str, lines: Iterable[bytes]) -> None:
    """Mark telemetry files whose size or time is not the one that was read."""
    if _stage(conn, lines):
        SQL["mark_pending"].run(conn, {"host": host})


def _stage(conn: Connection, lines: Iterable[bytes]) -> bool:
    content = b"\n".join(lines)
    if not content:
        return False
    with conn.cursor() as cursor:
        cursor.execute(SQL["create_sightings"].text)
        cursor.execute("TRUNCATE pg_temp.headrace_sighting")
        cursor.copy_expert(SQL["copy_sightings"].text, io.BytesIO(content), 1 << 20)
    return True


def miss(conn: Connection, host: str, folder: str, present: set[str]) -> int:
    """Count a look that did not find files which the inventory has directly in the folder; how many are not yet
    missing for good, so that the folder must be looked at again."""
    prefix = folder.rstrip("/") + "/"
    rows = SQL["files_of_folder"].rows(conn, {"host": host, "prefix": prefix, "after": prefix[:-1] + "0"})
    gone = [path for path, sights in rows if path not in present and sights < 2]
    if not gone:
        return 0
    counted = SQL["miss_files"].rows(conn, {"host": host, "paths": gone})
    for path, sights in counted:
        if sights == 2:
            SQL["record_event"].run(conn, {"host": host, "path": path, "event": "missing", "detail": "{}"})
    return sum(sights < 2 for _path, sights in counted)


def save_folders(conn: Connection, host: str, folders: list[Folder]) -> None:
    """Remember what folders look like; commits with their files."""
    facts = {
        "host": host,
        "folders": [folder.name for folder in folders],
        "digests": [folder.digest for folder in folders],
        "files": [folder.files for folder in folders],
    }
    SQL["save_folder"].run(conn, facts)


def forget_folders(conn: Connection, host: str, folders: list[str]) -> None:
    """Folders that are gone, with all their files missing."""
    SQL["forget_folders"].run(conn, {"host": host, "folders": folders})


def taken(conn: Connection, host: str, files: int, problems: list[str]) -> bool:
    """The host's folders were looked at; whether the problems are other ones than at the last look."""
    facts = {"host": host, "files": files, "problems": problems[:100]}
    before = SQL["last_problems"].value(conn, facts)
    SQL["inventory_taken"].run(conn, facts)
    conn.commit()
    return bool((before or []) != facts["problems"])


def due_files(conn: Connection, host: str, older_seconds: float, in_flight: int) -> list[str]:
    """Paths of telemetry files to read that no young message asks for; they count as asked for now."""
    facts = {"host": host, "older": timedelta(seconds=older_seconds), "in_flight": in_flight}
    found = [row[0] for row in SQL["due_files"].rows(conn, facts)]
    conn.commit()
    return found


def due_hosts(conn: Connection, hosts: list[str], interval_seconds: float, older_seconds: float) -> list[str]:
    """Those of the hosts whose folders are to be looked at now; they count as asked now."""
    facts = {
        "hosts": hosts,
        "interval": timedelta(seconds=interval_seconds),
        "older": timedelta(seconds=older_seconds),
    }
    found = [row[0] for row in SQL["due_hosts"].rows(conn, facts)]
    conn.commit()
    return found

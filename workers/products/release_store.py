"""The rows of releases: what is tagged, and by which manifest. The caller commits."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date
from typing import Any

from workers.database import Connection
from workers.sql_files import queries

SQL = queries("products_keep")


def choose(
    conn: Connection,
    mission_id: int,
    *,
    products: Collection[str] | None,
    since: date | None,
    until: date | None,
    files: Collection[int] | None,
) -> list[int]:
    """The ids of present files: some by their ids, else the newest of products and days. They stay so meanwhile."""
    asked = {
        "mission": mission_id, "products": list(products) if products is not None else None,
        "since": since, "until": until, "files": list(files) if files is not None else None,
    }  # fmt: skip
    return [row[0] for row in SQL["choose_for_release"].rows(conn, asked)]


def begin(conn: Connection, mission_id: int, name: str, *, by: str, comment: str) -> int | None:
    """Begin a release; its id, or None when the mission has one of this name."""
    found = SQL["new_release"].value(conn, {"mission": mission_id, "name": name, "by": by, "comment": comment})
    return int(found) if found is not None else None


def add(conn: Connection, release: int, ids: Collection[int]) -> None:
    """Put files into a release as they are now."""
    SQL["add_to_release"].run(conn, {"release": release, "ids": list(ids)})


def seal(conn: Connection, release: int, manifest_sha256: str) -> None:
    """Make a release final."""
    SQL["seal_release"].run(conn, {"release": release, "manifest": manifest_sha256})


def releases(conn: Connection, mission_id: int, name: str | None = None) -> list[dict[str, Any]]:
    """The releases of a mission, or the one of a name, oldest first."""
    return SQL["releases"].records(conn, {"mission": mission_id, "name": name})


def files(conn: Connection, release: int) -> list[dict[str, Any]]:
    """The files of a release, by level, product, day and key."""
    return SQL["release_files"].records(conn, {"release": release})

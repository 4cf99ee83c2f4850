"""The tables as questions read them: lineage, what covers which day, the graph. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from workers.database import Connection
from workers.sql_files import queries

SQL = queries("products_ask")


def ancestry(conn: Connection, file: int) -> dict[int, tuple[int, ...]]:
    """A file and its ancestors: each one's id, and the ids that it was built from in their order."""
    return {row[0]: tuple(row[1]) for row in SQL["ancestry"].rows(conn, {"id": file})}


def descent(conn: Connection, file: int) -> dict[int, tuple[int, ...]]:
    """A file and its descendants: each one's id, and the ids that were built from it."""
    return {row[0]: tuple(row[1]) for row in SQL["descent"].rows(conn, {"id": file})}


def facts(conn: Connection, files: Sequence[int]) -> list[dict[str, Any]]:
    """What there is to say of these files; an id without a row is left out."""
    return SQL["facts"].records(conn, {"ids": list(files)})


def named(conn: Connection, filename: str) -> list[tuple[int, str, str]]:
    """(id, root, place) of the files of a name, in text form."""
    return [(row[0], row[1], row[2]) for row in SQL["named"].rows(conn, {"filename": filename})]


def is_file(conn: Connection, file: int) -> bool:
    """Whether there is a row of this id."""
    return bool(SQL["is_file"].value(conn, {"id": file}))


def mission_name(conn: Connection, mission: int) -> str | None:
    """The name of a mission."""
    found = SQL["mission_name"].value(conn, {"mission": mission})
    return None if found is None else str(found)


def covered_products(conn: Connection, mission: int, names: Sequence[str] | None) -> list[dict[str, Any]]:
    """Active products, lowest level first: all of them, or those of these names."""
    return SQL["covered_products"].records(conn, {"mission": mission, "names": None if names is None else list(names)})


def covered_days(
    conn: Connection, products: Sequence[int], since: date | None, until: date | None
) -> list[dict[str, Any]]:
    """Days that have newest files: `files`, `highest` and `lowest` version as [interface, quality, revision]."""
    return SQL["covered_days"].records(conn, {"products": list(products), "since": since, "until": until})


def damaged_days(
    conn: Connection, products: Sequence[int], since: date | None, until: date | None
) -> list[dict[str, Any]]:
    """Days that have `files` which are missing or corrupt."""
    return SQL["damaged_days"].records(conn, {"products": list(products), "since": since, "until": until})


def expected_days(
    conn: Connection, products: Sequence[int], since: date | None, until: date | None
) -> list[dict[str, Any]]:
    """Days that have `failed` or `due` outputs, and the `problem` of the last failure."""
    return SQL["expected_days"].records(conn, {"products": list(products), "since": since, "until": until})


def graph_products(conn: Connection, mission: int) -> list[dict[str, Any]]:
    """Active products: `id`, `name`, `level`."""
    return SQL["graph_products"].records(conn, {"mission": mission})


def graph_processes(conn: Connection, mission: int) -> list[dict[str, Any]]:
    """Active processes: `id`, `name`, `output_product`, `timebase`, `rank`, and `codes`: versions as a text."""
    return SQL["graph_processes"].records(conn, {"mission": mission})


def graph_inputs(conn: Connection, mission: int) -> list[dict[str, Any]]:
    """What active processes read, by process, position and preference."""
    return SQL["graph_inputs"].records(conn, {"mission": mission})

"""What explanations are made of: outputs, their builds, inputs, codes and files as rows. Nothing is written."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from workers.database import Connection
from workers.products.versions import Version
from workers.sql_files import queries

SQL = queries("products_explain")


@dataclass(frozen=True, slots=True)
class Maker:
    """A process that makes what is asked about."""

    id: int
    name: str
    is_active: bool


@dataclass(frozen=True, slots=True)
class Code:
    """A code and the days it is for; None: without end."""

    id: int
    filename: str
    version: Version
    state: str
    valid_from: date | None
    valid_until: date | None

    def holds_for(self, day: date) -> bool:
        """Whether it is for a day."""
        return (self.valid_from or date.min) <= day <= (self.valid_until or date.max)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A product that a process reads: which days would do, how many newest files there are, how many of the period."""

    position: int
    is_required: bool
    product_id: int
    product: str
    first: date
    last: date
    files: int
    own: int


@dataclass(frozen=True, slots=True)
class Target:
    """A code that an impact is asked of."""

    id: int
    process_id: int
    process: str
    version: Version
    state: str
    valid_from: date | None
    valid_until: date | None


def read_only(conn: Connection) -> None:
    """Write nothing from here to the end of the transaction."""
    SQL["read_only"].run(conn)


def product(conn: Connection, mission: int, name: str) -> int | None:
    """The id of a product; None for an unknown one."""
    row = SQL["product"].row(conn, {"mission": mission, "name": name})
    return None if row is None else int(row[0])


def names(conn: Connection, mission: int) -> list[str]:
    """What can be asked about."""
    return [row[0] for row in SQL["names"].rows(conn, {"mission": mission})]


def makers(conn: Connection, mission: int, product: int | None, name: str) -> list[Maker]:
    """The processes of a product, or of a name where there is no product; retired ones, too."""
    facts = {"mission": mission, "product": product, "name": name if product is None else None}
    return [Maker(*row) for row in SQL["makers"].rows(conn, facts)]


def codes(conn: Connection, process: int) -> list[Code]:
    """The codes of a process, whatever their state."""
    return [Code(row[0], row[1], Version(*row[2:5]), *row[5:]) for row in SQL["codes"].rows(conn, {"process": process})]


def slot(conn: Connection, process: int, day: date, key: str) -> dict[str, Any] | None:
    """What is written of an output, of its last attempt and of the build that runs; None when nothing is."""
    found = SQL["slot"].records(conn, {"process": process, "day": day, "key": key})
    return found[0] if found else None


def queue(conn: Connection, slot_id: int) -> tuple[int, int, int]:
    """(outputs built before a slot, builds that run, lanes of hosts that see its mission)."""
    row = SQL["queue"].row(conn, {"slot": slot_id})
    assert row is not None
    return row[0], row[1], row[2]


def inputs(
    conn: Connection, process: int, day: date, *, start: datetime | None = None, stop: datetime | None = None
) -> list[Wanted]:
    """What a process reads for a period, by default the one that begins on `day`, and what there is of it."""
    facts = {"process": process, "day": day, "start": start, "stop": stop}
    return [Wanted(*row) for row in SQL["inputs"].rows(conn, facts)]


def input_products(conn: Connection, process: int) -> list[tuple[int, bool, str]]:
    """(position, whether it is required, product) of what a process reads."""
    return [(row[0], row[1], row[2]) for row in SQL["input_products"].rows(conn, {"process": process})]


def is_orbit(conn: Connection, process: int, day: date) -> bool:
    """Whether an orbit begins on a day."""
    return bool(SQL["is_orbit"].value(conn, {"process": process, "day": day}))


def troubles(conn: Connection, products: Collection[int], first: date, last: date) -> list[tuple[int, date, str]]:
    """(process, day, key) of outputs of these products that are due or have failed: a handful."""
    facts = {"products": list(products), "first": first, "last": last}
    return [(row[0], row[1], row[2]) for row in SQL["troubles"].rows(conn, facts)]


def damaged(conn: Connection, product: int, first: date, last: date) -> list[tuple[str, str]]:
    """(name, state) of files that are not there though their rows are: a handful."""
    facts = {"product": product, "first": first, "last": last}
    return [(row[0], row[1]) for row in SQL["damaged"].rows(conn, facts)]


def quarantined(conn: Connection, mission: int, product: str, dates: Collection[str]) -> list[dict[str, Any]]:
    """Files in quarantine that may be of a product and a day, whose spellings are `dates`: a handful."""
    return SQL["quarantined"].records(conn, {"mission": mission, "product": product, "dates": list(dates)})


def arriving(conn: Connection, mission: int, dates: Collection[str]) -> list[dict[str, Any]]:
    """Files in the incoming folder whose names have a day: a handful."""
    return SQL["arriving"].records(conn, {"mission": mission, "dates": list(dates)})


def files(conn: Connection, mission: int, ids: Collection[int]) -> list[dict[str, Any]]:
    """What there is to say of files."""
    facts = {"mission": mission, "ids": list(ids), "product": None, "day": None, "key": None}
    return SQL["files"].records(conn, facts)


def newest(conn: Connection, mission: int, product: int, day: date, key: str | None) -> list[dict[str, Any]]:
    """The newest files of a product and day."""
    facts = {"mission": mission, "ids": [], "product": product, "day": day, "key": key}
    return SQL["files"].records(conn, facts)


def children(conn: Connection, file: int) -> list[dict[str, Any]]:
    """What was built from a file."""
    return SQL["children"].records(conn, {"file": file})


def code(
    conn: Connection, mission: int, *, code_id: int | None = None, process: str | None = None,
    version: Version | None = None,
) -> Target | None:  # fmt: skip
    """A code by its id, or by process and version; None for an unknown one."""
    parts = version._asdict() if version is not None else dict.fromkeys(Version._fields)
    row = SQL["code"].row(conn, {"mission": mission, "id": code_id, "process": process, **parts})
    return None if row is None else Target(row[0], row[1], row[2], Version(*row[3:6]), *row[6:])


def history(conn: Connection, processes: Collection[int]) -> dict[int, tuple[float | None, float | None]]:
    """By process: mean seconds of cpu and by the clock of builds that ended well; None where nothing is known."""
    return {row[0]: (row[1], row[2]) for row in SQL["history"].rows(conn, {"processes": list(processes)})}

"""Bloat as the server knows it: by pgstattuple where this login may use it, else by statistics; and its history.

The statistics' way: how many pages would the rows need that are there, packed as a rewrite packs them?
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Any, Literal

from psycopg2 import sql

from workers.database import Connection, DatabaseError, sqlstate
from workers.repack.choice import Estimate, Verdict
from workers.sql_files import queries

SQL = queries("repack_bloat")

# PostgreSQL's own sizes in bytes (a page's size is asked for): they are part of its file format.
PAGE_HEADER, POINTER, ROW_HEADER, ENTRY_HEADER, BTREE_SPECIAL = 24, 4, 23, 8, 16
CHUNK_HEADER = 24 + 4 + 4 + 4  # of a row of TOAST: row header, value's id, chunk's number, length
PADDING = 3.5  # to a multiple of 8, on the average
CHUNKS_LOST = 0.1  # of a page of TOAST if not all chunks are full ones, which fit exactly
INNER_FILLED = 0.7  # pages of a btree above its leaves
POSTING_PART, ROW_POINTER = 10, 6  # equal keys share an entry of at most a tenth of the page, 6 bytes per row

SAMPLE_PAGES = 300
SAMPLE_FROM_BYTES = 1_000_000  # smaller TOAST is not worth looking into
STALE_PART = 0.2  # of the rows changed since the last ANALYZE: people should know
DEAD_PART = 0.05  # more dead rows than this, and an index is full of entries that a rewrite leaves out
LOCK_NOT_AVAILABLE, GONE = "55P03", ("42P01", "3F000")


@dataclass(frozen=True, slots=True)
class Column:
    """A column as it is stored; `width` (bytes, length word included), null part and distinct values by ANALYZE."""

    relation: int
    number: int
    name: str
    length: int
    align: int
    storage: str
    is_dropped: bool
    is_virtual: bool
    width: int | None
    null_part: float | None
    distinct_values: float | None


@dataclass(frozen=True, slots=True)
class Index:
    """A valid index; `columns` 0: an expression; `rows_part` of the table's rows are in it, None: not known."""

    table: int
    oid: int
    name: str
    method: str
    bytes: int
    fillfactor: int
    rows_part: float | None
    merges_equal: bool
    columns: Sequence[int]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What was estimated of a table at a time, decided on it and, if it was rewritten, gained."""

    id: int
    looked_at: datetime
    schema: str
    table: str
    method: Literal["statistics", "pgstattuple"]
    table_bytes: int
    index_bytes: int
    toast_bytes: int
    table_bloat_bytes: int
    index_bloat_bytes: int
    toast_bloat_bytes: int
    verdict: str
    repack: int | None
    gained_bytes: int | None


def estimates(
    conn: Connection,
    schemas: Collection[str],
    tables: Collection[str],
    skip_tables: Collection[str] = (),
    *,
    exact: bool = True,
) -> list[Estimate]:
    """The bloat of ordinary tables and leaf partitions: of these schemas, and of `tables` (`schema.table`, * and ?).

    Both lists empty: every table. A partitioned table stands for its leaves. `exact` reads in the tables: by
    pgstattuple, or a sample of rows with TOAST; else the catalogs are enough. Best on an autocommit connection: no
    lock is kept then, and a table that is locked meanwhile is only noted; else that raises a DatabaseError.
    """
    rows = SQL["bloat_tables"].records(conn)
    wanted = [row["oid"] for row in rows if _is_wanted(row, schemas, tables) and not _matches(row, skip_tables)]
    facts = SQL["bloat_facts"].records(conn, {"tables": wanted})
    readable = [fact["oid"] for fact in facts if fact["heap_bytes"] is not None]
    records = SQL["bloat_indexes"].records(conn, {"tables": readable})
    found = [Index(**record) for record in records if record["bytes"] is not None]
    indexes = {oid: list(group) for oid, group in groupby(found, key=lambda index: index.table)}
    relations = readable + [index.oid for index in found if 0 in index.columns]
    columns: dict[int, dict[int, Column]] = {}
    for record in SQL["bloat_columns"].records(conn, {"tables": relations}):
        columns.setdefault(record["relation"], {})[record["number"]] = Column(**record)
    extension = SQL["bloat_extension"].value(conn) if exact else None
    made = []
    for fact in facts:
        if fact["heap_bytes"] is None and not fact["is_locked"]:
            continue  # dropped at this moment
        look = _Look(conn, fact, columns, indexes.get(fact["oid"], []), extension, exact)
        try:
            made.append(look.estimate())
        except _GoneError:
            continue
        except DatabaseError as error:
            if not conn.autocommit or sqlstate(error) not in (LOCK_NOT_AVAILABLE, *GONE):
                raise
            if sqlstate(error) == LOCK_NOT_AVAILABLE:
                made.append(replace(look.nothing("locked"), note="locked by somebody: not looked at"))
    return made


def unknown(conn: Connection, schemas: Collection[str], tables: Collection[str]) -> list[str]:
    """Those of the names and patterns that no table matches."""
    rows = SQL["bloat_tables"].records(conn)
    known = {row["schema"] for row in rows}
    return [schema for schema in schemas if schema not in known] + [
        pattern for pattern in tables if not any(_matches(row, [pattern]) for row in rows)
    ]


def remember(conn: Connection, estimate: Estimate, verdict: Verdict | str, repack_id: int | None = None) -> int:
    """Keep an estimate and what was decided on it; the row's number."""
    values = {
        "schema": estimate.schema, "table": estimate.table, "method": estimate.method,
        "table_bytes": estimate.table_bytes, "index_bytes": estimate.index_bytes,
        "toast_bytes": estimate.toast_bytes, "table_bloat_bytes": estimate.table_bloat_bytes,
        "index_bloat_bytes": estimate.index_bloat_bytes, "toast_bloat_bytes": estimate.toast_bloat_bytes,
        "verdict": verdict if isinstance(verdict, str) else verdict.text, "repack": repack_id,
    }  # fmt: skip
    return int(SQL["remember_candidate"].value(conn, values))


def latest(conn: Connection, limit: int = 100) -> list[Candidate]:
    """The newest look at each table, the most wasteful first."""
    return [Candidate(**record) for record in SQL["latest_candidates"].records(conn, {"limit": limit})]


def rewritten(conn: Connection, limit: int = 100) -> list[Candidate]:
    """Looks that led to a rewrite, with what it really gave back; the newest first."""
    return [Candidate(**record) for record in SQL["gained_candidates"].records(conn, {"limit": limit})]


def gained(conn: Connection, repack_id: int, bytes: int) -> bool:
    """Note what a rewrite gave back in bytes; False when no look led to it."""
    return bool(SQL["note_gain"].run(conn, {"repack": repack_id, "bytes": bytes}))


def forget(conn: Connection, older: timedelta) -> int:
    """Drop looks that are older; how many they were."""
    return SQL["forget_candidates"].run(conn, {"seconds": older.total_seconds()})


def _is_wanted(row: Mapping[str, Any], schemas: Collection[str], tables: Collection[str]) -> bool:
    return not (schemas or tables) or row["schema"] in schemas or _matches(row, tables)


def _matches(row: Mapping[str, Any], patterns: Collection[str]) -> bool:
    names = [f"{row['schema']}.{row['name']}", *row["above"]]
    # A bracket is a character of the name here, not a set.
    return any(fnmatchcase(name, pattern.replace("[", "[[]")) for pattern in patterns for name in names)


class _GoneError(Exception):
    """What was to be looked at has been dropped meanwhile."""


class _Look:
    """One table: its facts, and what follows from them."""

    def __init__(
        self, conn: Connection, fact: Mapping[str, Any], columns: Mapping[int, Mapping[int, Column]],
        indexes: Sequence[Index], extension: str | None, exact: bool,
    ) -> None:  # fmt: skip
        self.conn, self.fact, self.columns, self.indexes = conn, fact, columns, indexes
        self.extension, self.exact = extension, exact
        self.page: int = fact["page"]
        self.notes: list[str] = []

    def nothing(self, reason: str) -> Estimate:
        """An estimate that says only why there is none."""
        fact = self.fact
        return Estimate(
            fact["schema"], fact["table"], fact["oid"], "statistics", unknown=reason,
            table_bytes=fact["table_bytes"] or 0, index_bytes=fact["index_bytes"] or 0,
            toast_bytes=fact["toast_bytes"] or 0, last_analyze=fact["last_analyze"], note="; ".join(self.notes),
        )  # fmt: skip

    def estimate(self) -> Estimate:
        """How many pages the living rows, chunks and entries need, and what is there beyond."""
        fact = self.fact
        self._note_dropped()
        if fact["is_locked"]:
            self.notes.append("locked by somebody: not looked at")
            return self.nothing("locked")
        if fact["method"] != "heap":
            self.notes.append(f"its access method {fact['method']} cannot be estimated")
            return self.nothing("not a heap")
        rows, dead_rows, row = self._rows(), fact["dead_rows"], self._row()
        if self.extension is not None:
            seen = self._seen("bloat_look", fact["oid"])
            rows, dead_rows = int(seen["rows"]), max(dead_rows, seen["dead_rows"])
            # Where a page was not read its free space was asked for: the pointers are in the length already.
            more = (POINTER + PADDING) * seen["scanned_part"]
            row = (seen["bytes"] / max(rows, 1) + more, False)
        elif rows is None or (rows and row is None):
            return self.nothing(self._why_unknown())
        elif fact["is_counted"] and fact["changed_rows"] > STALE_PART * max(rows, 1):
            self.notes.append(f"{fact['changed_rows']} rows changed since the last ANALYZE")
        usable = self.page - PAGE_HEADER - self.page * (100 - fact["fillfactor"]) / 100
        return replace(
            self.nothing(""),
            method="statistics" if self.extension is None else "pgstattuple",
            table_bloat_bytes=self._beyond(fact["heap_bytes"], _pages(rows, row or (0, True), usable)),
            index_bloat_bytes=self._index_bloat(rows, is_littered=dead_rows > DEAD_PART * rows),
            toast_bloat_bytes=self._toast_bloat(),
            rows=rows,
            note="; ".join(self.notes),
        )

    def _beyond(self, there: int, pages: float) -> int:
        return max(0, there - math.ceil(pages) * self.page)

    def _rows(self) -> int | None:
        fact = self.fact
        if fact["is_counted"]:
            return int(fact["live_rows"])
        return _scaled(fact["noted_rows"], fact["noted_pages"], fact["heap_bytes"] / self.page)

    def _row(self) -> tuple[float, bool] | None:
        live = [column for column in self._own() if not column.is_dropped]
        stored = [column for column in live if not column.is_virtual]
        if (stored and all(column.width is None for column in stored)) or not _are_known(stored):
            return None
        bare, with_nulls = _aligned(ROW_HEADER), _aligned(ROW_HEADER + math.ceil(len(live) / 8))
        size, is_fixed = _stored(stored, with_nulls if len(stored) < len(live) else bare, with_nulls)
        return size + POINTER, is_fixed

    def _own(self) -> list[Column]:
        return list(self.columns.get(self.fact["oid"], {}).values())

    def _why_unknown(self) -> str:
        if not self.fact["is_visible"]:
            self.notes.append("its statistics are hidden from this login: it lacks SELECT, or row security is in force")
            return "statistics not visible"
        live = [column for column in self._own() if not column.is_dropped]
        without = [column.name for column in live if column.length < 0 and column.width is None]
        is_part = any(column.width is not None for column in live)
        columns = f" of {', '.join(without[:5])}" if is_part and without else ""
        self.notes.append(f"no statistics{columns}: run ANALYZE")
        return "not analyzed"

    def _note_dropped(self) -> None:
        dropped = [column.length for column in self._own() if column.is_dropped]
        if dropped:
            fixed = sum(length for length in dropped if length > 0)
            more = "" if min(dropped) > 0 else ", and those whose width varies"
            self.notes.append(f"{len(dropped)} dropped columns may still take {fixed} bytes per row{more}")

    def _index_bloat(self, rows: int, *, is_littered: bool) -> int:
        bloat, left_out = 0, []
        for index in self.indexes:
            pages = self._index_pages(index, rows)
            if self.extension is not None and index.method == "btree":
                seen = self._seen("bloat_look_into_index", index.oid)
                whole = self.page - PAGE_HEADER - BTREE_SPECIAL
                filled = seen["filled_part"] * whole / (whole - self.page * (100 - index.fillfactor) / 100)
                packed = 1 + (seen["leaf_pages"] + seen["internal_pages"]) * filled if seen["leaf_pages"] else 1
                # Entries of dead rows count as filled there.
                pages = min(packed, pages) if is_littered and pages is not None else packed
            if pages is None:
                left_out.append(index.name if index.method == "btree" else f"{index.name} ({index.method})")
            else:
                bloat += self._beyond(index.bytes, pages)
        if left_out:
            self.notes.append(f"indexes not estimated: {', '.join(left_out)}")
        return bloat

    def _index_pages(self, index: Index, rows: int) -> float | None:
        if index.method != "btree" or index.rows_part is None:
            return None
        if not rows:
            return 1
        places = enumerate(index.columns, 1)
        homes = [(self.fact["oid"], number) if number > 0 else (index.oid, place) for place, number in places]
        keys = [self.columns[relation][number] for relation, number in homes]
        if not _are_known(keys):
            return None
        if index.rows_part < 1:  # which values, and whether nulls are among them, is not known of a partial index
            keys = [replace(key, null_part=0) for key in keys]
        entries = rows * index.rows_part
        size, _ = _stored(keys, ENTRY_HEADER, 2 * ENTRY_HEADER)
        groups = min(entries, math.prod(_distinct(key, entries) for key in keys)) if index.merges_equal else entries
        return _btree_pages(self.page, entries, groups, size + POINTER, index.fillfactor)

    def _toast_bloat(self) -> int:
        fact = self.fact
        if not fact["chunk_bytes"]:
            return 0
        most = (self.page - _aligned(PAGE_HEADER + 4 * POINTER)) // 4 // 8 * 8 - CHUNK_HEADER  # of bytes in a chunk
        if self.extension is not None:
            seen = self._seen("bloat_look", fact["toast"])
            chunks: int | None = int(seen["rows"])
            more = POINTER + PADDING
            average = seen["bytes"] / max(chunks or 0, 1) - CHUNK_HEADER - more * (1 - seen["scanned_part"])
        else:
            chunks, average = self._chunks(), self._sampled_chunk(most) or most
        if chunks is None:
            self.notes.append("TOAST not estimated: VACUUM counts it")
            return 0
        average = min(max(average, 1), most)
        lost = CHUNKS_LOST * min(1, (1 - average / most) / CHUNKS_LOST)
        pages = chunks * (CHUNK_HEADER + average + POINTER) / (self.page - PAGE_HEADER) / (1 - lost)
        index_pages = _btree_pages(self.page, chunks, chunks, ENTRY_HEADER + 4 + 4 + POINTER, 90)
        return self._beyond(fact["chunk_bytes"], pages) + self._beyond(fact["chunk_index_bytes"], index_pages)

    def _chunks(self) -> int | None:
        fact, pages = self.fact, self.fact["chunk_bytes"] / self.page
        # Four chunks at least fill a page: more pages than that were filled before the counters began.
        if fact["is_toast_counted"] or pages <= fact["inserted_chunks"] / 3 + 10:
            return int(fact["live_chunks"])
        return _scaled(fact["noted_chunks"], fact["noted_chunk_pages"], pages)

    def _sampled_chunk(self, most: int) -> float | None:
        fact = self.fact
        own = [column for column in self._own() if not column.is_dropped and not column.is_virtual]
        wide = [column for column in own if column.length < 0 and column.storage in ("x", "e")]
        if not self.exact or not wide or not fact["is_visible"] or fact["chunk_bytes"] < SAMPLE_FROM_BYTES:
            return None
        target = fact["toast_target"] or most + CHUNK_HEADER
        sizes = [
            sql.SQL("(pg_column_size(t.{}), {})").format(sql.Identifier(column.name), sql.Literal(column.number))
            for column in wide
        ]
        query = SQL["bloat_sample"].with_slots(
            table=sql.Identifier(fact["schema"], fact["table"]),
            percent=sql.Literal(min(100, 100 * SAMPLE_PAGES * self.page / max(fact["heap_bytes"], 1))),
            sizes=sql.SQL(", ").join(sizes),
            target=sql.Literal(target - _aligned(ROW_HEADER) - sum(max(column.length, 0) for column in own)),
            chunk=sql.Literal(most),
        )
        [(bytes_, chunks)] = query.rows(self.conn)
        return bytes_ / chunks if chunks else None

    def _seen(self, query: str, oid: int) -> dict[str, Any]:
        slots = {"schema": sql.Identifier(self.extension or ""), "relation": sql.Literal(oid)}
        found = SQL[query].with_slots(**slots).records(self.conn)
        if not found:
            raise _GoneError
        return found[0]


def _scaled(noted: int, noted_pages: int, pages: float) -> int | None:
    """Rows or chunks, as dense as they were at the last VACUUM or ANALYZE; None: there was none."""
    if noted < 0 or not noted_pages:
        return None if pages else 0
    return int(noted * pages / noted_pages)


def _are_known(columns: Iterable[Column]) -> bool:
    return all(column.length > 0 or column.width is not None for column in columns)


def _aligned(size: float) -> int:
    return math.ceil(size / 8) * 8


def _stored(columns: Sequence[Column], bare: int, with_nulls: int) -> tuple[float, bool]:
    """Average bytes of a row or entry without its pointer, header and padding included, and whether all have so many.

    The header is `bare`, or `with_nulls` if a value is null.
    """
    offset, is_fixed, without_nulls = 0.0, True, 1.0
    for column in columns:
        width, part = column.width or max(column.length, 0), 1 - (column.null_part or 0)
        is_short = column.length < 0 and (column.length == -2 or (width < 127 and column.storage != "p"))
        align = 1 if is_short else column.align
        padding = -offset % align if is_fixed else (align - 1) / 2
        offset += part * (padding + width)
        without_nulls *= part
        is_fixed = is_fixed and column.length > 0 and part in (0, 1)
    size = with_nulls + (bare - with_nulls) * without_nulls + offset
    return (_aligned(size), True) if is_fixed else (size + PADDING, False)


def _pages(rows: int, row: tuple[float, bool], usable: float) -> float:
    """Pages that so many rows fill, of (bytes, whether all are as wide): a page's last row ends before its end."""
    per_page = usable / max(row[0], 1)
    full = math.floor(per_page) if row[1] else min(math.floor(per_page), per_page - 0.5)
    return rows / max(full, 1)


def _distinct(column: Column, entries: float) -> float:
    values = column.distinct_values or -1.0  # 0: not known
    return (values if values > 0 else -values * entries) + (1 if column.null_part else 0)


def _btree_pages(page: int, entries: float, groups: float, size: float, fillfactor: int) -> float:
    """Pages of a btree that was built anew: `groups` of equal keys, `size` bytes an entry with its pointer."""
    repeated = entries - groups
    shared = (repeated + min(groups, repeated)) * ROW_POINTER
    size_of_all = groups * size + shared + shared / (page / POSTING_PART) * size
    room = page - PAGE_HEADER - BTREE_SPECIAL
    leaves = size_of_all / (room - page * (100 - fillfactor) / 100)
    inner = leaves * size / (room * INNER_FILLED) if leaves > 1 else 0
    return 1 + leaves + inner

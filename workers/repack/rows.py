"""Rows: the statements that copy, replay and compare them. Parameters are positions and limits, never identifiers.

Every text here is to be executed with a list of parameters, even an empty one: a % in a name is doubled.
"""

from __future__ import annotations

from workers.repack.shapes import PARAMETER, Keys, Place, Shape

# A statement of a fraction of a second is not worth compiling, and one processor of the server's is enough for us.
_MODEST = "SET LOCAL jit = off; SET LOCAL max_parallel_workers_per_gather = 0"
# Every chunk and batch finds its rows by an index: what the planner believes of a bloated table must not make it read
# the whole of it for each.
BY_INDEX = f"SET LOCAL enable_seqscan = off; {_MODEST}"
BY_KEY = f"SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; {_MODEST}"


def last_of_chunk(shape: Shape, *, after: bool) -> str:
    """The position of the last row of a chunk; no row when fewer are left. Parameters: position, its rows - 1."""
    # Two levels: beside `id::text`, which is called id as well, ORDER BY id would be the order of the texts.
    return _ready(
        f"SELECT {_texts(shape.order)} FROM (SELECT {shape.order.listed('s')} FROM ONLY {shape.source} s"
        f"{_after(shape.order, after)} ORDER BY {shape.order_text} OFFSET {PARAMETER} LIMIT 1) s"
    )


def copy_chunk(place: Place, shape: Shape, *, after: bool, until: bool) -> str:
    """Copy the rows between two positions. Parameters: position before (if `after`), last position (if `until`)."""
    conditions = []
    if after:
        conditions.append(f"{shape.order.row('s')} > {shape.order.values()}")
    if until:
        conditions.append(f"{shape.order.row('s')} <= {shape.order.values()}")
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    order = f" ORDER BY {shape.order_text}" if shape.is_sorted else ""
    return _ready(f"{_insert(place, shape)} FROM ONLY {shape.source} s{where}{order}")


def take_batch(place: Place, shape: Shape, *, whole: bool) -> str:
    """Move log rows into the batch, each key once; gives how many log rows. Parameter unless `whole`: at most so many.

    In one REPEATABLE READ transaction with what follows: the rows are read as of the same moment as the log.
    """
    rows = "" if whole else f" WHERE ctid = ANY (ARRAY(SELECT l.ctid FROM {place.log} l LIMIT {PARAMETER}))"
    return _ready(
        f"WITH taken AS (DELETE FROM {place.log}{rows} RETURNING {shape.key.listed()}),"
        f" kept AS (INSERT INTO {place.batch} SELECT DISTINCT {shape.key.listed()} FROM taken)"
        f" SELECT pg_catalog.count(*) FROM taken"
    )


def take_truncations(place: Place) -> str:
    """Whether the table was truncated: how many times."""
    return _ready(f"WITH taken AS (DELETE FROM {place.truncation} RETURNING at) SELECT pg_catalog.count(*) FROM taken")


def delete_batch(place: Place, shape: Shape) -> str:
    """Take the batch's keys out of the copy."""
    return _ready(f"DELETE FROM ONLY {place.new} c USING {place.batch} b WHERE {shape.key.same('c', 'b')}")


def insert_batch(place: Place, shape: Shape) -> str:
    """Bring the batch's keys into the copy as the rows are now."""
    return _ready(
        f"{_insert(place, shape)} FROM {place.batch} b JOIN ONLY {shape.source} s ON {shape.key.same('s', 'b')}"
    )


def empty_batch(place: Place) -> str:
    """Forget the batch's keys."""
    return _ready(f"DELETE FROM {place.batch}")


def backlog(place: Place, most: int) -> str:
    """How many rows the log has, counted up to a limit: it must not be read in whole every time."""
    return _ready(f"SELECT pg_catalog.count(*) FROM (SELECT FROM {place.log} LIMIT {most}) l")


def compare(place: Place, shape: Shape, *, after: bool, until: bool) -> str:
    """Count and checksum of a range of keys in the old and the new table, without keys changed since the swap.

    Parameters: position before (if `after`) and last position (if `until`), twice. Columns: rows and sum of the old
    one, rows and sum of the new one. What the copy transforms, the old side is read through.
    """
    conditions = []
    if after:
        conditions.append(f"{shape.key.row('s')} > {shape.key.values()}")
    if until:
        conditions.append(f"{shape.key.row('s')} <= {shape.key.values()}")
    conditions.append(f"NOT EXISTS (SELECT FROM {place.log} l WHERE {shape.key.same('l', 's')})")
    where = " AND ".join(conditions)

    def side(table: str, values: str, name: str) -> str:
        digest = f"pg_catalog.hashtextextended(ROW({values})::text, 0)"  # their sum is numeric: it cannot overflow
        return (
            f"(SELECT pg_catalog.count(*) AS rows, coalesce(pg_catalog.sum({digest}), 0) AS total"
            f" FROM ONLY {table} s WHERE {where}) {name}"
        )

    old = side(place.old, ", ".join(shape.expressions), "o")
    new = side(shape.source, ", ".join(f"s.{name}" for name in shape.columns), "n")
    return _ready(f"SELECT o.rows, o.total, n.rows, n.total FROM {old} CROSS JOIN {new}")


def last_to_compare(place: Place, shape: Shape, *, after: bool) -> str:
    """The key of the last row of a range of the old table. Parameters: position, rows - 1."""
    return _ready(
        f"SELECT {_texts(shape.key)} FROM ONLY {place.old} s{_after(shape.key, after)}"
        f" ORDER BY {shape.key.listed('s')} OFFSET {PARAMETER} LIMIT 1"
    )


def _insert(place: Place, shape: Shape) -> str:
    return (
        f"INSERT INTO {place.new} ({', '.join(shape.columns)}) OVERRIDING SYSTEM VALUE"
        f" SELECT {', '.join(shape.expressions)}"
    )


def _after(keys: Keys, after: bool) -> str:
    return f" WHERE {keys.row('s')} > {keys.values()}" if after else ""


def _texts(keys: Keys) -> str:
    return ", ".join(f"s.{name}::text" for name in keys.columns)


def _ready(text: str) -> str:
    return text.replace("%", "%%").replace(PARAMETER, "%s")

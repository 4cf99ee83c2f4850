"""A table's fingerprint: everything that belongs to it or refers to it, as lines that a true twin has, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from psycopg2 import sql

from workers.database import Connection
from workers.sql_files import queries

SQL = queries("repack_fingerprint")


def lines(conn: Connection, schema: str, table: str) -> list[str]:
    """Every fact of a table, sorted, `<thing>: <fact>` each; none where there is no table of this name.

    No fact is a number that PostgreSQL gave (of an object, of a column after a dropped one), nor the value of a
    sequence; log triggers and whatever is in the schemas of a request are left out.

    One query, planned by the session's first call: whoever holds a lock meanwhile calls it once before that. It takes
    ACCESS SHARE on what views, rules, policies and functions mention beside this table, and may wait for that. For the
    rest of the transaction the search path is ours, jit is off and plans are generic.
    """
    *_, is_prepared = SQL["ready"].row(conn) or (False,)
    if not is_prepared:
        text = SQL["lines"].text.replace("%(schema)s", "$1").replace("%(table)s", "$2")
        SQL["prepare"].with_slots(lines=sql.SQL(text)).run(conn)
    asked = SQL["prepared_lines"].with_slots(schema=sql.Literal(schema), table=sql.Literal(table))
    return sorted(row[0] for row in asked.rows(conn))


def differences(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """What the second has not (`- line`) and what it has in addition (`+ line`), in the lines' order."""
    gone, new = Counter(before) - Counter(after), Counter(after) - Counter(before)
    marked = [(line, "-") for line in gone.elements()] + [(line, "+") for line in new.elements()]
    return [f"{mark} {line}" for line, mark in sorted(marked, key=lambda pair: (pair[0].partition(": ")[0], pair[1]))]

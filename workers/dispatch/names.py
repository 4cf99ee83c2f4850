"""Names of tables, as two parts that are never joined for the server."""

from __future__ import annotations

from typing import NamedTuple


class Table(NamedTuple):
    """A table's schema and name, unquoted."""

    schema: str
    name: str

    def __str__(self) -> str:
        """For people; ambiguous where a name has a dot."""
        return f"{self.schema}.{self.name}"


def table(text: str) -> Table:
    """`schema.name` or `name` (of public), cut at the first dot: what settings and PgQ's ev_extra1 have."""
    schema, dot, name = text.partition(".")
    return Table(schema, name) if dot else Table("public", text)

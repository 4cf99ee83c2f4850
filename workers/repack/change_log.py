"""The change log: which keys were changed since it began; written by triggers at the user's table, read by the replay.

Only keys are kept, in no order: the replay reads the rows as they are by then. The triggers fire for each row and
ALWAYS: statement triggers see neither the changes of a partition through its parent nor those of logical replication.
"""

from __future__ import annotations

from workers.repack.shapes import Place, Shape, literal
from workers.repack.statements import Statement


def creation(place: Place, shape: Shape) -> list[Statement]:
    """The log's schema, its tables and the functions of its triggers."""
    # Out of the table itself, so that the keys have its types and collations.
    keys = f"SELECT {shape.key.listed('s')} FROM ONLY {shape.source} s WITH NO DATA"
    return [
        Statement(f"CREATE SCHEMA {place.log_schema}", "none", "a place for the log of this request"),
        Statement(f"CREATE TABLE {place.log} AS {keys}", "none", "the keys of changed rows"),
        Statement(
            f"CREATE TABLE {place.truncation} (at timestamptz NOT NULL DEFAULT clock_timestamp())", "none",
            "a row for each TRUNCATE",
        ),
        Statement(f"CREATE UNLOGGED TABLE {place.batch} AS {keys}", "none", "the keys in hand"),
        Statement(
            f"GRANT ALL ON {place.log}, {place.truncation}, {place.batch} TO CURRENT_USER", "none",
            "whatever ALTER DEFAULT PRIVILEGES took away: everybody's writes would fail",
        ),
        _function(place, "old_key", place.log, _key_of("OLD", shape), "of the row as it was"),
        _function(place, "new_key", place.log, _key_of("NEW", shape), "of the row as it is"),
        _function(place, "truncated", place.truncation, "DEFAULT VALUES", "that all rows went"),
    ]  # fmt: skip


def grants(place: Place, shape: Shape) -> list[Statement]:
    """What the owner needs, with whose rights the rows of a batch are copied."""
    if not shape.role:
        return []
    why = "rows are copied with the owner's rights"
    return [
        Statement(f"GRANT USAGE ON SCHEMA {place.log_schema} TO {shape.role}", "none", why),
        Statement(f"GRANT SELECT ON {place.batch} TO {shape.role}", "none", why),
    ]


def triggers(place: Place, shape: Shape, table: str) -> list[Statement]:
    """The triggers that write the log. After they are committed, no change is missed: CREATE TRIGGER waited for all
    writers that began before.
    """
    prefix, found = place.trigger_prefix, []
    for name, event, when, function in (
        ("insert", "INSERT", "", "new_key"),
        ("update", "UPDATE", "", "old_key"),
        ("key", "UPDATE", f" WHEN ({shape.key.changed()})", "new_key"),
        ("delete", "DELETE", "", "old_key"),
    ):
        found.append(
            Statement(
                f"CREATE TRIGGER {prefix}{name} AFTER {event} ON {table} FOR EACH ROW{when}"
                f" EXECUTE FUNCTION {place.log_schema}.{function}()",
                f"SHARE ROW EXCLUSIVE on {table}", f"the log of {event}",
            )
        )  # fmt: skip
    found.append(
        Statement(
            f"CREATE TRIGGER {prefix}truncate AFTER TRUNCATE ON {table} FOR EACH STATEMENT"
            f" EXECUTE FUNCTION {place.log_schema}.truncated()",
            f"SHARE ROW EXCLUSIVE on {table}", "the log of TRUNCATE",
        )
    )  # fmt: skip
    names = (f"{prefix}{name}" for name in ("insert", "update", "key", "delete", "truncate"))
    return [
        *found,
        Statement(
            f"ALTER TABLE {table} {', '.join(f'ENABLE ALWAYS TRIGGER {name}' for name in names)}",
            f"SHARE ROW EXCLUSIVE on {table}", "also for changes that replication brings",
        )
    ]  # fmt: skip


def drop_triggers(place: Place, table: str) -> list[Statement]:
    """Take the triggers away."""
    return [
        Statement(
            f"DROP TRIGGER IF EXISTS {place.trigger_prefix}{name} ON {table}",
            f"ACCESS EXCLUSIVE on {table}", "nothing is logged any more",
        )
        for name in ("insert", "update", "key", "delete", "truncate")
    ]  # fmt: skip


def drop(place: Place) -> list[Statement]:
    """Take the log away, when no trigger calls its functions any more."""
    tables = ", ".join((place.log, place.truncation, place.batch))
    functions = ", ".join(f"{place.log_schema}.{name}()" for name in ("old_key", "new_key", "truncated"))
    return [
        Statement(f"DROP TABLE IF EXISTS {tables}", "none", "the log has done its work"),
        Statement(f"DROP FUNCTION IF EXISTS {functions}", "none", "its triggers are gone"),
        Statement(f"DROP SCHEMA IF EXISTS {place.log_schema}", "none", "nothing is left in it"),
    ]


def _key_of(row: str, shape: Shape) -> str:
    """The key of a trigger's row.

    By its columns' places where it stands first, as it mostly does: by name, everybody's writes would fail from the
    moment that somebody renames one of them until the request is given up.
    """
    if not shape.key_places:
        return f"VALUES ({shape.key.listed(row)})"
    names = ", ".join(f"c{place}" for place in range(1, len(shape.key_places) + 1))
    wanted = ", ".join(f"r.c{place}" for place in shape.key_places)
    return f"SELECT {wanted} FROM (SELECT {row}.*) AS r ({names})"


def _function(place: Place, name: str, table: str, values: str, why: str) -> Statement:
    # SECURITY DEFINER: those who may write the user's table need no right on the log. The search path is pinned, or
    # they could choose what the function calls.
    return Statement(
        f"CREATE FUNCTION {place.log_schema}.{name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
        f" SET search_path = pg_catalog, pg_temp AS {literal(f'BEGIN INSERT INTO {table} {values}; RETURN NULL; END')}",
        "none", why,
    )  # fmt: skip

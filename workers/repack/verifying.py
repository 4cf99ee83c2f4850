"""Verifying: after the swap, foreign keys are validated again, and old and new are compared, range by range.

The old table is as the swap left it. What people change since is in the log, which goes on until this is done: rows
whose keys are in it are left out on both sides, in the same snapshot.
"""

from __future__ import annotations

import time
from dataclasses import replace

from workers import database, logs
from workers.repack import change_log, rows, store, twin_catalog
from workers.repack.statements import run
from workers.repack.work import Later, Work, execute, hold, row, transaction

log = logs.get(__name__)

FIRST_RANGE_ROWS = 20_000
_RANGE_SECONDS = 2.0


class Different(Exception):
    """Old and new table are not the same; the old one is kept for a person."""


def verify(work: Work) -> Later | None:
    """Validate, compare, take the log away; None: done. Raises Different, Busy."""
    validate(work)
    if work.limits.verify:
        later = _compare(work)
        if later is not None:
            return later
    stop_logging(work)
    store.next_step(work.conn, work.request.id, "drop")
    return None


def stop_logging(work: Work) -> None:
    """Take triggers, log and the copy's empty schema away. Raises Busy."""
    conn, place = work.conn, work.place
    with transaction(conn, lock_seconds=work.limits.lock_timeout_seconds):
        if work.limits.verify:
            run(conn, change_log.drop_triggers(place, twin_catalog.facts(conn, work.request.new_oid or 0).qualified))
        run(conn, change_log.drop(place))
        drop_schema(work, place.new_schema)


def drop_schema(work: Work, schema: str) -> None:
    """Drop a schema of this request with its tables, in the caller's transaction; nothing else goes with them."""
    if tables := store.relations_in(work.conn, schema):
        execute(work.conn, f"DROP TABLE {', '.join(tables)}")
    execute(work.conn, f"DROP SCHEMA IF EXISTS {schema}")


def validate(work: Work) -> None:
    """Make foreign keys valid again that were so before the swap; one that cannot be is written down. Raises Busy."""
    conn = work.conn
    for one in store.not_validated(conn, work.request.id):
        work.check()
        problem = None
        try:
            with transaction(conn, lock_seconds=work.limits.lock_timeout_seconds):
                execute(conn, f"ALTER TABLE {one['qualified']} VALIDATE CONSTRAINT {one['quoted']}")
                store.validated(conn, work.request.id, one, None)
        except database.DatabaseError as error:
            if database.sqlstate(error) not in ("23503", "42704", "42P01", "42501"):
                raise
            problem = (
                f"{one['qualified']}: {one['quoted']} was valid and cannot be validated: {database.first_line(error)}"
            )
            store.validated(conn, work.request.id, one, problem)
            log.error("repack.constraint_stays_invalid", table=one["qualified"], reason=problem)


def _compare(work: Work) -> Later | None:
    conn, place = work.conn, work.place
    # By the name that the new table has now: somebody may have renamed it since.
    shape = replace(work.shape, source=twin_catalog.facts(conn, work.request.new_oid or 0).qualified)
    position, size = work.request.verify_position, FIRST_RANGE_ROWS
    while True:
        work.check()
        began = time.monotonic()
        with transaction(conn, lock_seconds=10, repeatable=True, durable=False):
            hold(work, shape.source, work.request.new_oid or 0)
            execute(conn, f"SET LOCAL search_path = {shape.search_path}")
            execute(conn, rows.BY_INDEX)
            found = row(conn, f"SELECT FROM {place.truncation} LIMIT 1")
            if found is not None:
                log.warning("repack.not_compared", table=work.request.name, reason="it was truncated since the swap")
                return None
            before = list(position or [])
            last = row(conn, rows.last_to_compare(place, shape, after=bool(position)), [*before, size - 1])
            ends = [*before, *map(str, last or ())]
            text = rows.compare(place, shape, after=bool(position), until=last is not None)
            counts = row(conn, text, [*ends, *ends])
            assert counts is not None
            if counts[:2] != counts[2:]:
                where = f"after {', '.join(before)}" if before else "from the first row"
                raise Different(
                    f"{work.request.name}: {where} on, old and new table differ: {counts[0]} rows, checksum {counts[1]}"
                    f" in {place.old}; {counts[2]} rows, checksum {counts[3]} now; the old table is kept: compare them,"
                    f" then DROP TABLE {place.old}"
                )
            position = [str(value) for value in last] if last else None
            store.verified(conn, work.request.id, position, int(str(counts[0])))
        work.run.count(verified=int(str(counts[0])))
        if position is None:
            return None
        seconds = time.monotonic() - began
        size = max(1, int(size * min(2.0, max(0.5, _RANGE_SECONDS / max(seconds, 0.001)))))
        if work.is_over:
            return Later()

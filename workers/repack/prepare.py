"""Prepare: refuse, rehearse, then make the copy, its change log and the triggers that fill it, in one transaction.

Before its COMMIT nothing of it exists for anybody; after it every change of the table is in the log.
"""

from __future__ import annotations

from collections import Counter

from workers import logs
from workers.errors import PermanentFailure
from workers.repack import (
    change_log,
    disk,
    fingerprint_catalog,
    pacing,
    pacing_catalog,
    preflight,
    preflight_catalog,
    store,
    swapping,
    twin_catalog,
)
from workers.repack.shapes import Keys, Shape
from workers.repack.statements import Statement, run
from workers.repack.twin_catalog import Facts
from workers.repack.work import Busy, GiveUp, Later, Work, transaction

log = logs.get(__name__)


def prepare(work: Work) -> Later | None:
    """Make everything that copying needs; the next step is copy."""
    conn, request = work.conn, work.request
    seen = fingerprint_catalog.lines(conn, request.schema, request.table)
    table, shape = look(work)
    room = disk.problem(
        work.disk_rules, disk.needed_bytes(table.table_bytes, table.index_bytes, table.toast_bytes, _bloat(work)),
        pacing_catalog.used_bytes(conn),
    )  # fmt: skip
    if trouble := room or pacing.preflight(conn, work.limits):
        raise GiveUp("refused", f"{request.name}: {trouble}")
    statements = creation(work, table, shape)
    indexes = twin_catalog.indexes(conn, table, work.place, key=shape.key_index, tablespace=work.rules.index_tablespace)
    if work.limits.rehearse:
        swapping.rehearse(work, table, shape, statements, indexes)
    with transaction(conn, lock_seconds=work.limits.lock_timeout_seconds):
        run(conn, twin_catalog.give_way(conn, [table.qualified], lock_seconds=work.limits.lock_timeout_seconds))
        run(conn, statements)
        run(conn, change_log.triggers(work.place, shape, table.qualified))
        marks = twin_catalog.trigger_marks(conn, table.oid, work.place)
        new_oid = store.table_oid(conn, work.place.new_schema, table.table_name)
        assert marks is not None and new_oid is not None
        for number, index in enumerate(indexes):
            store.add_index(conn, request.id, number, index, is_key=index["name"] == shape.key_index)
        lines = fingerprint_catalog.lines(conn, request.schema, request.table)
        if Counter(lines) != Counter(seen):
            raise Busy("it was changed while its copy was made")
        store.prepared(
            conn, request.id, shape=shape, fingerprint=lines, marks=marks, new_oid=new_oid, rows=table.rows_estimated
        )
    log.info("repack.prepared", table=request.name, rows=table.rows_estimated, key=shape.key_index)
    return None


def look(work: Work) -> tuple[Facts, Shape]:
    """The table as it is now, and what is to be copied of it. Raises GiveUp with every reason against it."""
    conn, request = work.conn, work.request
    found = preflight_catalog.facts(conn, request.schema, request.table)
    reasons = preflight.refusals(found, work.rules)
    if reasons or found.key is None or found.subject is None:
        raise GiveUp("refused", "; ".join(reasons))
    if found.subject.oid != work.oid:
        raise GiveUp("refused", f"{request.name} is another table than the one that was asked for; ask again")
    for warning in preflight.warnings(found):
        log.warning("repack.warning", table=request.name, warning=warning)
    table = twin_catalog.facts(conn, work.oid)
    key = Keys(found.key.quoted, found.key.types, found.key.equals)
    try:
        shape = twin_catalog.shape(conn, table, found.key.index, key, work.rules)
    except PermanentFailure as error:
        raise GiveUp("refused", str(error)) from error
    return table, shape


def creation(work: Work, table: Facts, shape: Shape) -> list[Statement]:
    """The copy and the log, without the triggers."""
    fillfactor = work.rules.fillfactor
    return [
        *twin_catalog.creation(work.conn, table, work.place, fillfactor=fillfactor, tablespace=work.rules.tablespace),
        *change_log.creation(work.place, shape),
        *twin_catalog.revokes(work.conn, work.place.log_schema),
        *change_log.grants(work.place, shape),
    ]


def _bloat(work: Work) -> int | None:
    found = work.request.options.get("bloat_bytes")
    return int(found) if found is not None else None

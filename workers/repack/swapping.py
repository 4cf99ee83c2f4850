"""Swapping: under an ACCESS EXCLUSIVE lock the rest of the log is replayed and the copy takes the table's place.

The whole of it is one transaction in the session that holds the lock, READ COMMITTED, so that every statement after
the lock sees what was committed before it was granted. The plan is made before the lock; under the lock it is only
made sure that nothing changed since. Whatever goes wrong, everything is rolled back and the table is as it was.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from workers import database, logs
from workers.repack import change_log, fingerprint_catalog, replaying, store, twin_catalog
from workers.repack.shapes import Place, Shape
from workers.repack.statements import Statement, run
from workers.repack.twin_catalog import Facts
from workers.repack.work import Busy, GiveUp, Work, execute, resolving, transaction, who_holds

log = logs.get(__name__)


_TOO_LONG = "57014"  # PostgreSQL's own code for statement_timeout


@dataclass(frozen=True, slots=True)
class Plan:
    """A swap, complete: whom to lock, what to do then, and how the table looks before and after it."""

    locks: Sequence[Statement]
    moves: Sequence[Statement]
    validate: Sequence[dict[str, Any]]
    before: Sequence[str]
    after: Sequence[str]


def plan(work: Work, table: Facts, shape: Shape) -> Plan:
    """The swap of a table as its catalogs are now; changes nothing."""
    conn, place = work.conn, work.place
    with transaction(conn, lock_seconds=max(work.limits.lock_timeout_seconds, 10), repeatable=True):
        before = fingerprint_catalog.lines(conn, work.request.schema, work.request.table)
        validate = twin_catalog.to_validate(conn, table)
        return Plan(
            locks=twin_catalog.locks(conn, table, place, lock_seconds=work.limits.lock_timeout_seconds),
            moves=moves(work, table, shape, place, twin_catalog.swap(conn, table, place)),
            validate=validate,
            before=before,
            after=expected(before, [one["line"] for one in validate], work),
        )


def moves(work: Work, table: Facts, shape: Shape, place: Place, found: Sequence[Statement]) -> list[Statement]:
    """What is done after the final replay, in order."""
    statements = [
        Statement(f"CREATE SCHEMA {place.old_schema}", "none", "a place for the old table"),
        *change_log.drop_triggers(place, table.qualified),
        *found,
    ]
    if work.limits.verify:
        # The log goes on, so that old and new can be compared without what people changed since.
        statements += change_log.triggers(place, shape, table.qualified)
    return statements


def expected(before: Sequence[str], not_valid: Sequence[str], work: Work) -> list[str]:
    """The fingerprint after the swap: as before, but for what was asked for and foreign keys not validated yet."""
    found = [*before, *not_valid]
    rules = work.rules
    if rules.fillfactor is not None:
        found = [line for line in found if not line.startswith("table: option fillfactor=")]
        found.append(f"table: option fillfactor={rules.fillfactor}")
    return found


def rehearse(
    work: Work, table: Facts, shape: Shape, creation: Sequence[Statement], indexes: Sequence[dict[str, Any]]
) -> None:
    """Do all of it with an empty copy and roll it back. Raises GiveUp, naming what the swap would lose or cannot do.

    So whatever is beyond the swap is known before the first row is copied.
    """
    conn = work.conn
    planned = plan(work, table, shape)
    try:
        with transaction(conn, lock_seconds=work.limits.lock_timeout_seconds):
            run(conn, creation)
            for index in indexes:
                for statement in index["statements"]:
                    execute(conn, statement)
            with resolving(work):
                run(conn, planned.locks)
            began = time.monotonic()
            execute(conn, _budget(work))
            run(conn, change_log.triggers(work.place, shape, table.qualified))
            run(conn, planned.moves)
            check(work, planned)
            _within(began, work.limits.hold_seconds)
            raise _RolledBack
    except Busy as reason:
        # No lock, but work that the swap would do under it, such as reading a default partition: not the once.
        if reason.sqlstate == _TOO_LONG and work.request.lock_attempts >= 2:
            raise GiveUp(
                "refused", f"{work.request.name}: its swap takes longer than hold_seconds though nothing is copied yet"
            ) from reason
        raise
    except _RolledBack:
        log.info("repack.rehearsed", table=work.request.name)
    except database.DatabaseError as error:
        if conn.closed:
            raise
        raise GiveUp("refused", f"{work.request.name}: its swap would fail: {database.first_line(error)}") from error


class _RolledBack(Exception):
    """The rehearsal went well."""


def check(work: Work, planned: Plan) -> None:
    """Raises GiveUp when the table is not what it was, or when something still needs the old one."""
    now = fingerprint_catalog.lines(work.conn, work.request.schema, work.request.table)
    if lost := differences(planned.after, now, work):
        raise GiveUp("schema", f"{work.request.name}: the swap would change it: {'; '.join(lost[:5])}")
    if still := twin_catalog.still_refer(work.conn, work.oid):
        raise GiveUp("refused", f"{work.request.name}: {'; '.join(still[:5])} cannot be bound to the new table")


def differences(before: Sequence[str], after: Sequence[str], work: Work) -> list[str]:
    """What is another way than it should be; tablespaces that were asked for do not count."""
    found = fingerprint_catalog.differences(before, after)
    if work.rules.tablespace is not None:
        found = [line for line in found if not line[2:].startswith("table: tablespace ")]
    if work.rules.index_tablespace is not None:
        found = [line for line in found if not (line[2:].startswith("index ") and ": tablespace " in line)]
    return found


def swap(work: Work) -> None:
    """One attempt. Raises Busy when a lock was not to be had or held too long, GiveUp when it can never be done."""
    conn, request, shape, limits = work.conn, work.request, work.shape, work.limits
    table = twin_catalog.facts(conn, work.oid)
    if (table.schema_name, table.table_name) != (request.schema, request.table):
        raise GiveUp("schema_changed", f"{request.name} is called {table.qualified} now; ask for that one")
    planned = plan(work, table, shape)
    drift = hard(fingerprint_catalog.differences(request.fingerprint, planned.before))
    if drift:
        raise GiveUp("schema_changed", f"{request.name} was changed since its copy was made: {'; '.join(drift[:5])}")
    replaying.replay_once(work)  # what the plan's making left: so much less is replayed while everybody waits
    oids = [table.oid]
    size = store.relation_bytes(conn, request.new_oid or 0)
    try:
        with transaction(conn, lock_seconds=limits.lock_timeout_seconds):
            with resolving(work):
                run(conn, planned.locks)
            began = time.monotonic()
            execute(conn, _budget(work))
            replaying.check_triggers(work)
            replayed = replaying.apply(work, whole=True)
            _within(began, limits.hold_seconds)
            if Counter(fingerprint_catalog.lines(conn, request.schema, request.table)) != Counter(planned.before):
                raise Busy("the table was changed just before it was locked; planned anew")
            for move in planned.moves:
                run(conn, [move])
                _within(began, limits.hold_seconds)
            check(work, planned)
            _within(began, limits.hold_seconds)
            store.to_be_validated(conn, request.id, planned.validate)
            is_ours = store.swapped(
                conn, request.id, hold=time.monotonic() - began, keys=replayed,
                keep=timedelta(hours=limits.keep_old_hours), bytes_after=size,
            )  # fmt: skip
            if not is_ours:
                raise GiveUp("aborted", f"{request.name}: somebody ended this request")
    except Busy as reason:
        holders = who_holds(conn, oids)
        raise Busy(f"{reason}" + (f"; {holders}" if holders else "")) from reason
    log.info("repack.swapped", table=request.name, hold_seconds=round(time.monotonic() - began, 4), replayed=replayed)
    work.run.count(hold_ms=round((time.monotonic() - began) * 1000, 1))


def hard(drift: Sequence[str]) -> list[str]:
    """Of what changed since the copy was made, that which the copy cannot get any more: columns, checks, storage.

    All else is read anew for the swap: grants, triggers, rules, policies, views, foreign keys, publications, and
    indexes were carried over.
    """
    mild = (" granted to ", "row level security", "table: replica identity", "table: parent ")
    return [
        line
        for line in drift
        if line[2:].startswith(("column ", "table: ", "statistics ", "sequence "))
        and not any(one in line for one in mild)
    ]


def _budget(work: Work) -> str:
    """No statement under the lock may take longer than all of them together, nor COMMIT wait for a standby."""
    milliseconds = max(1, int(work.limits.hold_seconds * 1000))
    return f"SET LOCAL statement_timeout = {milliseconds}; SET LOCAL synchronous_commit = local"


def _within(began: float, budget: float) -> None:
    if time.monotonic() - began > budget:
        raise Busy(f"it took longer than hold_seconds ({budget:g} s)", _TOO_LONG)

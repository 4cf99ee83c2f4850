"""Reindexing: the indexes of a table rebuilt one by one beside their use, where the table itself is not bloated.

REINDEX CONCURRENTLY waits, by its nature, for every transaction of the database that could still see the old index.
So each statement has a bound; one that did not make it leaves an invalid twin behind, which is dropped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from workers import logs
from workers.database import Connection, DatabaseError, first_line, sqlstate
from workers.errors import Cancelled, PermanentFailure, RetryLater
from workers.repack import reindex_catalog, statements
from workers.repack.reindex_catalog import Index, Leftover, Table, Transaction
from workers.repack.statements import Statement

log = logs.get(__name__)

Done = Callable[[str, int, int], None]

CLEAN_UP_SECONDS = 30.0  # a leftover that cannot be dropped in this time waits for the next run
POLL_SECONDS = 0.1
AGAIN = timedelta(minutes=1)
NAMED_AT_MOST = 5  # transactions in a message
STOPPED, NOT_UNIQUE = "57014", "23505"
BLOCKED = ("55P03", STOPPED, "40P01")  # a lock was not had in time, the statement's time was up, a deadlock
# PostgreSQL 14.0 to 14.3 could leave rows out of an index that was built or rebuilt concurrently.
BROKEN_VERSIONS = range(140000, 140004)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long one statement may take, one wait for somebody else's transaction in it, and how often it is tried.

    A short `lock_seconds` throws a whole rebuild away for a transaction that lasts a little longer. While it waits,
    a rebuild hinders no reader and no writer, only VACUUM and DDL of the table.
    """

    statement_seconds: float
    lock_seconds: float
    attempts: int = 3
    pause_seconds: float = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does: leftovers to drop, indexes to rebuild, and notes on what is left as it is."""

    table: Table
    drops: tuple[tuple[Leftover, Statement], ...]
    rebuilds: tuple[tuple[Index, Statement], ...]
    notes: tuple[str, ...]

    @property
    def statements(self) -> list[Statement]:
        """Every statement in its order."""
        return [statement for _, statement in (*self.drops, *self.rebuilds)]


def plan(
    conn: Connection, schema: str, table: str, *, names: Sequence[str] | None = None, tablespace: str | None = None
) -> Plan:
    """What is to be done for these indexes of a table (None: all); with no names, only leftovers are dropped.

    Raises PermanentFailure for what can never be reindexed: no such table, partitioned, somebody else's; a tablespace
    that the login may not use; a PostgreSQL whose REINDEX CONCURRENTLY is broken.
    """
    facts = reindex_catalog.table(conn, schema, table)
    if facts is None:
        raise PermanentFailure(f"there is no table {schema}.{table}: check its name, and the database")
    if problem := refusal(facts, f"{schema}.{table}"):
        raise PermanentFailure(problem)
    if tablespace is not None:
        _check_tablespace(conn, tablespace, facts.login)
    left = reindex_catalog.leftovers(conn, facts)
    chosen, notes = choose(reindex_catalog.indexes(conn, facts), left, names)
    return Plan(
        facts,
        tuple((one, reindex_catalog.drop(conn, schema, one)) for one in left),
        tuple((one, reindex_catalog.reindex(conn, schema, one, tablespace)) for one in chosen),
        notes,
    )


def refusal(table: Table, name: str) -> str | None:
    """Why the indexes of this table cannot be rebuilt concurrently; None: they can."""
    if table.kind == "p":
        return f"{name} is partitioned and has no index of its own to rebuild: name its partitions"
    if table.kind != "r":
        return f"{name} is no ordinary table: name one"
    if table.is_temporary:
        return f"{name} is a temporary table: leave it to its session"
    if not table.is_ours:
        owner = table.owner
        return f"{name} belongs to {owner}, and {table.login} is no member of it: GRANT {owner} TO {table.login}"
    if table.server_version in BROKEN_VERSIONS:
        return "PostgreSQL 14.0 to 14.3 can leave rows out when it reindexes concurrently: update it to 14.4 or later"
    return None


def choose(
    indexes: Sequence[Index], leftovers: Sequence[Leftover], names: Sequence[str] | None
) -> tuple[list[Index], tuple[str, ...]]:
    """Which of the indexes can be rebuilt, and a note for each one asked for that cannot."""
    left = {one.name for one in leftovers}
    there = {one.name: one for one in indexes if one.name not in left}
    chosen, notes = [], []
    for name in names if names is not None else there:
        if name not in there:
            notes.append(f"index {name} is no more")
        elif there[name].is_exclusion:
            notes.append(f"index {name} belongs to an exclusion constraint, which cannot be reindexed concurrently")
        elif not there[name].is_valid:
            notes.append(f"index {name} is invalid: drop it, or REINDEX it yourself")
        else:
            chosen.append(there[name])
    return chosen, tuple(notes)


def run(
    conn: Connection,
    schema: str,
    table: str,
    bounds: Bounds,
    *,
    names: Sequence[str] | None = None,
    tablespace: str | None = None,
    done: Done,
) -> tuple[str, ...]:
    """Do what `plan` says, on a connection in autocommit; the notes. When it returns, no leftover is there.

    `done(name, bytes before, bytes after)` is called after each index; what it raises ends the run there.
    Raises PermanentFailure as `plan` does, and for an index whose rows are not unique; RetryLater when other
    transactions were in the way at every attempt, or a leftover could not be dropped; Cancelled when somebody
    cancelled the statement. Those that are done stay done: go on with the names that are left, also if none is.
    """
    planned = plan(conn, schema, table, names=names, tablespace=tablespace)
    _drop(conn, planned.drops, bounds)
    for index, statement in planned.rebuilds:
        _rebuild(conn, schema, planned.table, index.name, statement, bounds, done)
    return planned.notes


def _rebuild(
    conn: Connection, schema: str, table: Table, name: str, statement: Statement, bounds: Bounds, done: Done
) -> None:
    for attempt in range(1, bounds.attempts + 1):
        before = reindex_catalog.index_bytes(conn, table, name)
        if before is None:
            return  # somebody dropped it meanwhile, as is his right
        problem, reason, others = None, "its table is in use", _users_that_stay(conn, table, bounds.lock_seconds)
        if not others:
            open_before = reindex_catalog.open_transactions(conn)
            began = time.monotonic()
            problem = _attempt(conn, statement, bounds)
            is_timeout = time.monotonic() - began >= bounds.statement_seconds
            others = [one for one in reindex_catalog.open_transactions(conn) if one in open_before]
            left = [one for one in reindex_catalog.leftovers(conn, table) if one.index == name]
            # Once the new one is in use and only the old one could not go in time, building again would be in vain.
            is_rebuilt = problem is None or any(one.is_old for one in left)
            if is_rebuilt:
                done(name, before, reindex_catalog.index_bytes(conn, table, name) or 0)
            _drop(conn, [(one, reindex_catalog.drop(conn, schema, one)) for one in left], bounds)
            if problem is None or is_rebuilt:
                return
            _raise_unless_blocked(problem, name, is_timeout=is_timeout)
            reason = first_line(problem)
        log.warning("reindex.attempt_failed", index=name, attempt=attempt, reason=reason)
        if attempt == bounds.attempts:
            raise RetryLater(_gave_up(f"{schema}.{name}", attempt, reason, others), after=AGAIN) from problem
        time.sleep(random.uniform(0.5, 1) * bounds.pause_seconds)


def _users_that_stay(conn: Connection, table: Table, seconds: float) -> list[Transaction]:
    """Wait for the transactions that use the table now; those that are still there after so long.

    They would be waited for in the rebuild anyway, and, worse, in dropping what it left when it gave up.
    """
    deadline = time.monotonic() + seconds
    users = reindex_catalog.table_users(conn, table)
    while users and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        now = reindex_catalog.table_users(conn, table)
        users = [one for one in users if one in now]
    return users


def _attempt(conn: Connection, statement: Statement, bounds: Bounds) -> DatabaseError | None:
    try:
        _execute(conn, statement, bounds.lock_seconds, bounds.statement_seconds)
    except DatabaseError as error:
        if conn.closed:
            raise  # the next run drops what is left
        return error
    return None


def _raise_unless_blocked(error: DatabaseError, name: str, *, is_timeout: bool) -> None:
    code = sqlstate(error)
    if code == STOPPED and not is_timeout:
        raise Cancelled(f"rebuilding index {name} was cancelled: {first_line(error)}") from error
    if code == NOT_UNIQUE:
        raise PermanentFailure(f"index {name} is damaged: {first_line(error)}; remove the double rows") from error
    if code not in BLOCKED:
        raise error


def _gave_up(index: str, attempts: int, reason: str, others: Sequence[Transaction]) -> str:
    named = ", ".join(
        f"pid {one.pid} ({one.application or 'unnamed'})" if one.pid is not None else "a prepared transaction"
        for one in others[:NAMED_AT_MOST]
    )
    return (
        f"index {index} could not be rebuilt in {attempts} attempts: {reason}; open all the time:"
        f" {named or 'no transaction'}; wait for its end, or allow more time"
    )


def _drop(conn: Connection, drops: Sequence[tuple[Leftover, Statement]], bounds: Bounds) -> None:
    seconds = min(bounds.statement_seconds, CLEAN_UP_SECONDS)
    for leftover, statement in drops:
        try:
            _execute(conn, statement, seconds, seconds)
        except DatabaseError as error:
            if sqlstate(error) not in BLOCKED:
                raise
            raise RetryLater(
                f"index {leftover.name}, which a broken REINDEX of {leftover.index} left, could not be dropped within"
                f" {seconds:g} seconds: {first_line(error)}; a transaction uses its table: end it",
                after=AGAIN,
            ) from error


def _execute(conn: Connection, statement: Statement, lock_seconds: float, statement_seconds: float) -> None:
    with reindex_catalog.bounded(conn, lock_seconds=lock_seconds, statement_seconds=statement_seconds):
        statements.run(conn, [statement])


def _check_tablespace(conn: Connection, name: str, login: str) -> None:
    may_use = reindex_catalog.may_use_tablespace(conn, name)
    if may_use is None:
        raise PermanentFailure(f"there is no tablespace {name}: check index_tablespace")
    if not may_use:
        raise PermanentFailure(f"{login} may not use tablespace {name}: GRANT CREATE ON TABLESPACE {name} TO {login}")

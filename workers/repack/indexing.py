"""Indexing: the key's index first, then the whole log in one snapshot, then all others side by side.

A chunked copy is no state that the table was ever in: until the whole log is replayed in one transaction, two of its
rows may have the same value of a secondary unique key. Of the key itself each value is there once, as chunks are
disjoint ranges of it. Nothing is replayed while the others are built, so every one of them finds the same state.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

from workers import database, logs
from workers.errors import NothingToDo, RetryLater
from workers.messages import BuildIndex, Message
from workers.repack import replaying, store, twin_catalog
from workers.repack.copying import watch_disk
from workers.repack.store import Index
from workers.repack.work import Busy, GiveUp, Later, Stopped, Work, execute, transaction

log = logs.get(__name__)

TEMPORARY = "headrace_repack_key"  # an index on the key while rows may be there twice
_WAIT_SECONDS = 2.0


def index(work: Work) -> tuple[Later | None, Sequence[Message]]:
    """Build the key's index and bring the copy to one state; then messages for the others; (None, []): all done."""
    conn, request, shape, place = work.conn, work.request, work.shape, work.place
    watch_disk(work)
    found = store.indexes(conn, request.id)
    if not all(one.is_built for one in found if one.is_key):
        if not shape.is_key_order and shape.in_chunks:
            execute(conn, f"CREATE INDEX IF NOT EXISTS {TEMPORARY} ON {place.new} ({shape.key.listed()})")
            if not replaying.replay_all(work):
                return Later(), []
        for one in found:
            if one.is_key and not one.is_built:
                build(work.conn, request.id, one)
        execute(conn, f"DROP INDEX IF EXISTS {place.new_schema}.{TEMPORARY}")
    # Until another index is begun with, whatever came in between: a message that ended after the key's, a pause.
    if not any(one.is_begun for one in found if not one.is_key) and not replaying.replay_all(work):
        return Later(), []
    waiting = [one for one in found if not one.is_key and not one.is_built]
    if broken := [one for one in waiting if one.problem]:
        raise GiveUp("index", f"{request.name}: index {broken[0].name}: {broken[0].problem}")
    if len(waiting) == 1 and store.try_lock_index(conn, request.id, waiting[0].number):  # not worth a message
        if not next(one.is_built for one in store.indexes(conn, request.id) if one.number == waiting[0].number):
            build(conn, request.id, waiting[0])
        waiting = []
    if waiting:
        again = timedelta(seconds=work.settings.repack.requeue_seconds)
        messages = [
            BuildIndex(database=work.name, repack=request.id, number=one.number, table=request.name)
            for one in waiting
            if store.index_sent(conn, request.id, one.number, again)
        ]
        return Later(_WAIT_SECONDS, f"{len(waiting)} indexes are being built"), messages
    if work.limits.analyze:
        execute(conn, f"ANALYZE {place.new}")
    store.next_step(conn, request.id, "replay")
    log.info("repack.indexed", table=request.name, indexes=len(found))
    return None, []


def build(conn: database.Connection, repack: int, one: Index) -> None:
    """Build one index and mark it, in one transaction: killed, neither is there."""
    began = time.monotonic()
    with transaction(conn, lock_seconds=60):
        for statement in one.statements:
            execute(conn, statement)
        store.index_built(conn, repack, one.number, time.monotonic() - began)


def claim(conn: database.Connection, repack: int, number: int) -> Index:
    """An index of a copy, this session's alone. Raises NothingToDo when it is built, being built, or not wanted now."""
    request = store.read(conn, repack)
    if request is None or request.state != "active" or request.step != "index" or request.goal == "abort":
        raise NothingToDo(f"repack {repack} has no index to be built")
    if request.is_paused:
        raise NothingToDo(f"{request.name} is paused by {request.paused_by}")
    if not store.try_lock_index(conn, repack, number):
        raise NothingToDo(f"index {number} of repack {repack} is being built")
    one = next((one for one in store.indexes(conn, repack) if one.number == number), None)
    if one is None or one.is_built:
        raise NothingToDo(f"index {number} of repack {repack} is built")
    return one


def build_claimed(conn: database.Connection, repack: int, one: Index) -> bool:
    """Build it; whether it was the last one. Raises RetryLater for a held lock, Stopped when nobody wants it now."""
    try:
        build(conn, repack, one)
    except Busy as reason:
        wishes = store.wishes(conn, repack)
        if wishes is None or wishes[0] == "abort" or wishes[1]:
            raise Stopped("a person stopped its request") from reason
        raise RetryLater(str(reason), after=timedelta(seconds=5)) from reason
    except database.DatabaseError as error:
        if database.sqlstate(error) not in ("57P01", None):
            store.index_failed(conn, repack, one.number, database.first_line(error))
        raise
    return all(other.is_built for other in store.indexes(conn, repack))


def carry_over(work: Work) -> bool:
    """Give the copy the indexes that the table got since, and drop those that it lost; whether some are to be built."""
    conn, request, place = work.conn, work.request, work.place
    table = twin_catalog.facts(conn, work.oid)
    wanted = twin_catalog.indexes(conn, table, place, key=work.shape.key_index, tablespace=work.rules.index_tablespace)
    have = store.indexes(conn, request.id)
    definitions = {(one["name"], tuple(one["statements"])) for one in wanted}
    gone = [one for one in have if (one.name, one.statements) not in definitions]
    known = {(one.name, one.statements) for one in have}
    new = [one for one in wanted if (one["name"], tuple(one["statements"])) not in known]
    if any(one.is_key for one in gone):
        raise GiveUp("schema_changed", f"{request.name}: its key {work.shape.key_index} was changed meanwhile")
    if not gone and not new:
        return any(not one.is_built for one in have)
    with transaction(conn, lock_seconds=60):
        for one in gone:
            twin_catalog.drop_index(conn, place, one.name)
            store.forget_index(conn, request.id, one.number)
        last = max((one.number for one in have), default=0)
        for number, index in enumerate(new, last + 1):
            store.add_index(conn, request.id, number, index, is_key=False)
    log.info("repack.indexes_changed", table=request.name, gone=len(gone), new=len(new))
    return bool(new)

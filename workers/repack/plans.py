"""Plans: every statement that a rewrite would run, in order, out of the very functions that its steps run them from.

Nothing is changed and nobody is kept waiting: the catalogs are read, under ACCESS SHARE at most. Left out is only what
is written into Headrace's own tables.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from workers import database
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.repack import (
    change_log,
    preflight,
    preflight_catalog,
    prepare,
    reindexing,
    requests,
    rows,
    statements,
    store,
    swapping,
    twin_catalog,
)
from workers.repack.indexing import TEMPORARY
from workers.repack.pacing import Pace
from workers.repack.requests import Wish
from workers.repack.shapes import Place, Shape
from workers.repack.statements import Statement
from workers.repack.store import Request
from workers.repack.twin_catalog import Facts
from workers.repack.work import Work, settings_of
from workers.runs import Run
from workers.settings import Settings

_NO_LOCK = "none"
_COMMIT = Statement("COMMIT", _NO_LOCK, "all of it, or nothing")
_CHUNK, _BATCH, _RANGE = "repeated per chunk", "repeated per batch", "repeated per range"


@dataclass(frozen=True, slots=True)
class Section:
    """The statements of one step. `step` is as in `status`, or `rehearsal`."""

    step: str
    statements: Sequence[Statement]


def plan(settings: Settings, database_name: str, schema: str, table: str, wish: Wish) -> list[Section]:
    """What a rewrite of a table would run. Raises PermanentFailure with every reason against it, a line each."""
    rules = wish.rules or requests.rules_of(settings, database_name, schema, table)
    limits = wish.limits or settings.repack.limits
    target = settings.target(database_name)
    with (
        closing(database.connect(target, purpose="repack plan", autocommit=True)) as conn,
        database.translated(target, conn),
    ):
        settings_of(conn)
        found = preflight_catalog.facts(conn, schema, table)
        reasons = preflight.refusals(found, rules)
        if reasons or found.subject is None:
            raise PermanentFailure("\n".join(reasons))
        if wish.engine == "reindex":
            planned = reindexing.plan(conn, schema, table, tablespace=rules.index_tablespace)
            return [Section("index", planned.statements)]
        work = Work(
            settings=settings, name=database_name, target=target, conn=conn,
            request=_request(conn, schema, table, found.subject.oid, wish), limits=limits, rules=rules,
            run=Run(0, "repack", f"{database_name}:{schema}.{table}"), pace=Pace(conn, limits),
            deadline=time.monotonic(),
        )  # fmt: skip
        return _sections(work)


def script(sections: Iterable[Section]) -> str:
    """The same as text: each statement below its lock and reason."""
    return "\n\n".join(f"-- {one.step}\n{statements.script(one.statements)}" for one in sections)


def _sections(work: Work) -> list[Section]:
    conn, limits, place = work.conn, work.limits, work.place
    table, shape = prepare.look(work)
    creation = prepare.creation(work, table, shape)
    tablespace = work.rules.index_tablespace
    indexes = twin_catalog.indexes(conn, table, place, key=shape.key_index, tablespace=tablespace)
    triggers = change_log.triggers(place, shape, table.qualified)
    swap = swapping.plan(work, table, shape)
    way = twin_catalog.give_way(conn, [table.qualified], lock_seconds=limits.lock_timeout_seconds)
    short, long = limits.lock_timeout_seconds, max(limits.lock_timeout_seconds, 10)
    sections = []
    if limits.rehearse:
        rehearsal = [
            *_begin(short), *creation, *_index_statements(indexes, place), *swap.locks, *_budget(work), *triggers,
            *swap.moves, Statement("ROLLBACK", _NO_LOCK, "it was a rehearsal, with an empty copy: nothing is changed"),
        ]  # fmt: skip
        sections.append(Section("rehearsal", rehearsal))
    sections += [
        Section("prepare", [*_begin(short), *way, *creation, *triggers, _COMMIT]),
        Section("copy", _copy(place, shape, long)),
        Section("index", _index(work, place, shape, indexes, long)),
        Section("replay", [*_replay(place, shape, long, whole=False), *_tidy(place)]),
    ]
    if work.request.goal == "ready":  # the swap is left to a person
        return sections
    in_swap = [
        *_begin(short), *swap.locks, *_budget(work), *_batch(place, shape, whole=True), *swap.moves, _COMMIT,
    ]  # fmt: skip
    return [
        *sections,
        Section("swap", in_swap),
        Section("verify", _verify(work, table, shape, swap)),
        Section("drop", [*_begin(short), *_drop_old(place), _COMMIT]),
    ]


def _begin(lock_seconds: float, level: str = "READ COMMITTED") -> list[Statement]:
    return [
        Statement(f"BEGIN ISOLATION LEVEL {level} READ WRITE", _NO_LOCK, "one transaction"),
        Statement(f"SET LOCAL lock_timeout = {int(lock_seconds * 1000)}", _NO_LOCK, "others wait so long, ms"),
    ]


def _hold(shape: Shape) -> Statement:
    text = f"LOCK TABLE ONLY {shape.source} IN ACCESS SHARE MODE"
    return Statement(text, f"ACCESS SHARE on {shape.source}", "not truncated or renamed while its rows are read")


def _budget(work: Work) -> list[Statement]:
    milliseconds = max(1, int(work.limits.hold_seconds * 1000))
    return [Statement(f"SET LOCAL statement_timeout = {milliseconds}", _NO_LOCK, "the budget of the lock, ms")]


def _index_statements(indexes: Sequence[dict[str, Any]], place: Place) -> list[Statement]:
    return [
        Statement(text, f"SHARE on {place.new}", f"index {one['name']}, under its final name")
        for one in indexes
        for text in one["statements"]
    ]


def _copy(place: Place, shape: Shape, lock_seconds: float) -> list[Statement]:
    source = f"ACCESS SHARE on {shape.source}"
    found = [
        *_begin(lock_seconds),
        _hold(shape),
        Statement(f"SET LOCAL search_path = {shape.search_path}", _NO_LOCK, "types of the table's columns"),
    ]
    if shape.in_chunks:
        found += [
            Statement(rows.BY_INDEX, _NO_LOCK, "a chunk is found by the index"),
            Statement(_numbered(rows.last_of_chunk(shape, after=True)), source, f"where a chunk ends; {_CHUNK}"),
        ]
    text = rows.copy_chunk(place, shape, after=shape.in_chunks, until=shape.in_chunks)
    why = f"its rows; {_CHUNK}, without a condition where there is nothing before or after it"
    return [*found, Statement(_numbered(text), source, why if shape.in_chunks else "all rows, in this order"), _COMMIT]


def _index(
    work: Work, place: Place, shape: Shape, indexes: Sequence[dict[str, Any]], lock_seconds: float
) -> list[Statement]:
    whole = _replay(place, shape, lock_seconds, whole=True)
    found: list[Statement] = []
    if not shape.is_key_order and shape.in_chunks:
        text = f"CREATE INDEX IF NOT EXISTS {TEMPORARY} ON {place.new} ({shape.key.listed()})"
        found += [Statement(text, f"SHARE on {place.new}", "rows may be there twice until the log is replayed"), *whole]
    keys = [one for one in indexes if one["name"] == shape.key_index]
    for one in keys:
        found += [*_begin(60), *_index_statements([one], place), _COMMIT]
    gone = f"DROP INDEX IF EXISTS {place.new_schema}.{TEMPORARY}"
    found += [Statement(gone, _NO_LOCK, "the key's own index serves from here on"), *whole]
    for one in indexes:
        if one not in keys:
            found += [*_begin(60), *_index_statements([one], place), _COMMIT]
    if work.limits.analyze:
        found.append(Statement(f"ANALYZE {place.new}", f"SHARE UPDATE EXCLUSIVE on {place.new}", "statistics"))
    return found


def _replay(place: Place, shape: Shape, lock_seconds: float, *, whole: bool) -> list[Statement]:
    batch = _batch(place, shape, whole=whole)
    return [*_begin(lock_seconds, "REPEATABLE READ"), _hold(shape), *batch, _COMMIT]


def _batch(place: Place, shape: Shape, *, whole: bool) -> list[Statement]:
    log, source = f"ROW EXCLUSIVE on {place.log}", f"ACCESS SHARE on {shape.source}"
    how = "the whole log" if whole else _BATCH
    return [
        Statement(_numbered(rows.take_truncations(place)), _NO_LOCK, "was it truncated? then the copy is, too"),
        Statement(_numbered(rows.take_batch(place, shape, whole=whole)), log, f"keys out of the log; {how}"),
        Statement(rows.BY_KEY, _NO_LOCK, "rows are found by their key"),
        Statement(_numbered(rows.delete_batch(place, shape)), _NO_LOCK, "these rows out of the copy"),
        Statement(_numbered(rows.insert_batch(place, shape)), source, "and into it as they are now"),
        Statement(_numbered(rows.empty_batch(place)), _NO_LOCK, "done with these keys"),
    ]


def _tidy(place: Place) -> list[Statement]:
    why = "the space of what was replayed; after many rows"
    return [
        Statement(f"VACUUM (TRUNCATE false) {one}", f"SHARE UPDATE EXCLUSIVE on {one}", why)
        for one in (place.log, place.batch)
    ]


def _verify(work: Work, table: Facts, shape: Shape, swap: swapping.Plan) -> list[Statement]:
    limits, place, found = work.limits, work.place, []
    for one in swap.validate:
        name = store.quoted_constraint(work.conn, one)
        text = f"ALTER TABLE {name[0]} VALIDATE CONSTRAINT {name[1]}"
        lock = f"SHARE UPDATE EXCLUSIVE on {name[0]}, ROW SHARE on the table it refers to"
        found += [*_begin(limits.lock_timeout_seconds), Statement(text, lock, "valid again, as it was"), _COMMIT]
    if limits.verify:
        compare = _numbered(rows.compare(place, shape, after=True, until=True))
        found += [
            *_begin(10, "REPEATABLE READ"),
            _hold(shape),
            Statement(f"SET LOCAL search_path = {shape.search_path}", _NO_LOCK, "types of the table's columns"),
            Statement(rows.BY_INDEX, _NO_LOCK, "a range is found by the index"),
            Statement(_numbered(rows.last_to_compare(place, shape, after=True)), _NO_LOCK, f"its end; {_RANGE}"),
            Statement(compare, f"ACCESS SHARE on {shape.source}", f"old and new are the same; {_RANGE}"),
            _COMMIT,
        ]
    ending = [*_begin(limits.lock_timeout_seconds)]
    if limits.verify:
        ending += change_log.drop_triggers(place, table.qualified)
    ending += change_log.drop(place)
    if table.has_inherited_columns:
        ending.append(Statement(f"DROP TABLE {place.new_schema}.headrace_parent_1", _NO_LOCK, "and each stand-in"))
    ending.append(Statement(f"DROP SCHEMA IF EXISTS {place.new_schema}", _NO_LOCK, "the copy has left it"))
    return [*found, *ending, _COMMIT]


def _drop_old(place: Place) -> list[Statement]:
    why = "the old table and its indexes; keep_old_hours after the swap"
    return [
        Statement(f"DROP TABLE {place.old}", f"ACCESS EXCLUSIVE on {place.old}", why),
        Statement(f"DROP SCHEMA IF EXISTS {place.old_schema}", _NO_LOCK, "nothing is left in it"),
    ]


def _request(conn: Connection, schema: str, table: str, oid: int, wish: Wish) -> Request:
    """The table's active request, else one that is not written down, under the id that it would get."""
    is_set_up = store.is_set_up(conn)
    active = store.active_of(conn, schema, table) if is_set_up else None
    known = store.read(conn, active) if active is not None else None
    facts = twin_catalog.facts(conn, oid)
    repack = known.id if known is not None else store.next_id(conn) if is_set_up else 1
    return Request(
        id=repack, schema=schema, table=table, oid=oid, new_oid=None, engine=wish.engine, goal=wish.goal,
        step="prepare", state="active", problem=None, options={}, plan=wish.plan, run=None, shape=None, fingerprint=[],
        marks=None, position=None, verify_position=None, chunk_rows=None, rows_copied=0, rows_estimated=0,
        bytes_before=facts.bytes,
        paused_by=None, is_paused=False, is_early=False, due_at=datetime.now(UTC), backlog_rows=None, reason=None,
        lock_attempts=0, keep_until=None, is_swapped=False, quoted=facts.quoted,
    )  # fmt: skip


def _numbered(text: str) -> str:
    """A statement with $1, $2, ... for its parameters, and a % that is a %."""
    numbers = iter(range(1, text.count("%s") + 1))
    return re.sub(r"%%|%s", lambda found: "%" if found.group() == "%%" else f"${next(numbers)}", text)

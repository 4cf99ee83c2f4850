"""The triggers that put a source table's changes into a PgQ queue, and the form that they write values in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Literal

from workers import database
from workers.database import Connection
from workers.dispatch import setup_catalog
from workers.dispatch.names import Table
from workers.dispatch.setup_catalog import Function, Source, Step, Trigger
from workers.errors import PermanentFailure
from workers.targets import Target

Kind = Literal["logutriga", "jsontriga"]

OURS = "headrace"
NAME_BYTES = 63  # PostgreSQL cuts longer names, and two cut names can be one
# Without these a value reads as the application's session has it: 21.11.2026 for one, 11/21/2026 for another.
PINS: Mapping[str, str] = {
    "datestyle": "'ISO,YMD'",
    "timezone": "'UTC'",
    "bytea_output": "'hex'",
    "extra_float_digits": "1",
    "intervalstyle": "'postgres'",
}
_OPTION = re.compile(r"(?:backup|deny|(?:ignore|pkey|when|ev_type|ev_extra[1-4])=.+)", re.DOTALL)
# pg_trigger.tgtype
_ROW, _INSERT, _DELETE, _UPDATE, _TRUNCATE = 1, 4, 8, 16, 32
_KEYWORDS = {_INSERT: "INSERT", _UPDATE: "UPDATE", _DELETE: "DELETE", _TRUNCATE: "TRUNCATE"}


def plan(
    conn: Connection,
    *,
    schema: str,
    queue: str,
    tables: Iterable[Table],
    kind: Kind = "logutriga",
    truncate: bool = True,
    pin: bool = True,
    options: Sequence[str] = (),
    insert_only: bool = False,
    lock_wait: timedelta = timedelta(seconds=10),
) -> list[Step]:
    """What is missing for these tables' changes to go into the queue; what cannot be done is a note among the steps.

    `options` are the trigger's own, such as `ignore=seen_at` or `pkey=a,b`. Nothing is changed.
    Raises PermanentFailure when PgQ or a table is missing, for a table that cannot be logged, for an unknown option.
    """
    for option in options:
        if not _OPTION.fullmatch(option):
            raise PermanentFailure(
                f"{option!r} is no option of {kind} after a change: with it every change of the table would fail; "
                "there are ignore=, pkey=, when=, ev_type=, ev_extra1= to ev_extra4=, backup and deny"
            )
    pgq = setup_catalog.function(conn, schema, kind)
    if pgq is None or pgq.insert_event is None:
        raise PermanentFailure(
            f"there is no {schema}.{kind}() in the database {conn.info.dbname}; run `headrace dispatch install-pgq`, "
            "or name the schema that PgQ is in (pgq_schema)"
        )
    events = _INSERT if insert_only else _INSERT | _UPDATE | _DELETE
    steps = _pins(conn, schema, kind, pgq) if pin else []
    for table in tables:
        steps += _triggers(conn, table, pgq, (schema, kind), queue, options, events, truncate)
    if any(not step.is_note for step in steps):
        steps.insert(0, Step("wait for locks no longer than this", setup_catalog.lock_timeout(conn, lock_wait)))
    return steps


def apply(target: Target, steps: Sequence[Step]) -> None:
    """Run a plan in one transaction: every trigger, or none.

    Raises PermanentFailure when the login may not, RetryLater when a table is locked for too long.
    """
    with database.connection(target, purpose="dispatch triggers") as conn:
        for step in steps:
            if step.is_note:
                continue
            try:
                with conn.cursor() as cursor:
                    cursor.execute(step.statement)
            except database.DatabaseError as error:
                if database.sqlstate(error) != "42501":
                    raise
                raise PermanentFailure(
                    f"{target.name}: {step.what}: {database.first_line(error)}; nothing was changed; a trigger takes "
                    "TRIGGER on the table and EXECUTE on the function (GRANT pgq_writer)"
                ) from error
        conn.commit()


def script(steps: Sequence[Step]) -> str:
    """A plan as a script for psql, in one transaction; only comments where there is nothing to run."""
    lines = [step.script() for step in steps]
    return "\n".join(["BEGIN;", *lines, "COMMIT;"] if any(not step.is_note for step in steps) else lines)


def trigger_name(queue: str, suffix: str = "") -> str:
    """`headrace_<queue><suffix>`; a name that PostgreSQL would cut ends in a hash of the queue's instead."""
    name = f"headrace_{queue}{suffix}"
    if len(name.encode()) <= NAME_BYTES:
        return name
    tail = f"_{hashlib.sha256(queue.encode()).hexdigest()[:8]}{suffix}"
    head = f"headrace_{queue}".encode()[: NAME_BYTES - len(tail)].decode(errors="ignore")
    return head + tail


def _pins(conn: Connection, schema: str, kind: str, pgq: Function) -> list[Step]:
    what = f"{schema}.{kind}()"
    steps = [
        Step(
            f"note: {what} has {name} set to {pgq.config[name]}, where {value} is expected; values that are written "
            f"otherwise than in ISO form cannot be read: ALTER FUNCTION {what} SET {name} = {value}"
        )
        for name, value in PINS.items()
        if name in pgq.config and _plain(pgq.config[name]) != _plain(value)
    ]
    unset = {name: value for name, value in PINS.items() if name not in pgq.config}
    if not unset:
        return steps
    step = Step(
        f"{what} writes dates, times and bytes in one form, whatever the application's session has set",
        setup_catalog.pin_function(conn, schema, kind, unset),
    )
    if not pgq.is_ours:
        step = Step(
            f"note: {what} belongs to {pgq.owner}, who alone can fix the form of its values; until then sessions with "
            f"another DateStyle, time zone or bytea_output write what cannot be read; have them run: {step.statement}"
        )
    return [*steps, step]


def _plain(value: str) -> str:
    return value.replace("'", "").replace('"', "").replace(" ", "").lower()


def _triggers(
    conn: Connection, table: Table, pgq: Function, calls: tuple[str, str], queue: str, options: Sequence[str],
    events: int, truncate: bool,
) -> list[Step]:  # fmt: skip
    if table.schema in (calls[0], OURS):
        raise PermanentFailure(
            f"{table} is a table of PgQ's or Headrace's own: its events would make events; leave it out"
        )
    found = setup_catalog.source(conn, table, pgq)
    if found is None:
        raise PermanentFailure(f"there is no table {table} in the database {conn.info.dbname}; check its name")
    if found.kind not in ("r", "p"):
        raise PermanentFailure(f"{table} is no table whose changes can be logged; leave it out")
    if not found.has_key and events & (_UPDATE | _DELETE) and not any(o.startswith("pkey=") for o in options):
        return [
            Step(
                f"note: {table} has no primary key, and with the trigger each UPDATE and DELETE of it would fail; it "
                "gets none: add a primary key, name its columns by the option pkey=a,b, or log its inserts only"
            )
        ]
    wanted = [(trigger_name(queue), events | _ROW, "ROW", [queue, *options])]
    if truncate:
        # Any other option fails in C when TRUNCATE comes, and the application's statement with it.
        wanted.append(
            (trigger_name(queue, "_truncate"), _TRUNCATE, "STATEMENT", [queue, *(o for o in options if o == "deny")])
        )
    steps = []
    for name, type_, each, arguments in wanted:
        there = setup_catalog.triggers(conn, found, pgq, schema=calls[0], queue=queue, arguments=arguments)
        covered = _note(table, name, type_, there)
        if covered is not None:
            steps.append(Step(covered))
            continue
        words = " OR ".join(word for bit, word in _KEYWORDS.items() if type_ & bit)
        statement = setup_catalog.create_trigger(conn, name, table, words, each, calls, arguments)
        steps.append(Step(f"{words} of {table} into the queue {queue}", statement))
    if any(not step.is_note for step in steps):
        steps += _warnings(table, found, calls[0], truncate)
    return steps


def _note(table: Table, name: str, type_: int, there: Sequence[Trigger]) -> str | None:
    """Why no such trigger is made: it is there, or another one is in its way; None where it is to be made."""
    events = type_ & ~_ROW
    alike = [t for t in there if t.is_of_queue and t.type & _ROW == type_ & _ROW and t.type & events]
    for trigger in alike:
        if trigger.is_same and trigger.is_unconditional and trigger.type & events == events:
            return f"{table} has it already: trigger {trigger.name}"
    if alike:
        return (
            f"note: {table} has the trigger {alike[0].name} into the same queue, but it is disabled, conditional, or "
            "has other arguments or events; with one more, changes could be logged twice: drop it, or leave it as it is"
        )
    if name in (trigger.name for trigger in there):
        return f"note: {table} has a trigger {name} that does something else; rename or drop it, then run this again"
    return None


def _warnings(table: Table, found: Source, schema: str, truncate: bool) -> list[Step]:
    notes = []
    if found.unable:
        logins = ", ".join(found.unable)
        notes.append(
            Step(
                f"note: what {logins} changes in {table} will fail from then on: permission denied for {schema}."
                f"insert_event; GRANT pgq_writer TO {logins} before"
            )
        )
    if found.kind == "p" and truncate:
        notes.append(Step(f"note: TRUNCATE of a single partition of {table} makes no event; of {table} itself it does"))
    return notes

"""Ending: what a request made is taken away, when it is done or failed or a person wants it gone; people are told."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from workers import alerts, logs
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.repack import bloat_catalog, change_log, store, twin_catalog
from workers.repack.statements import run
from workers.repack.store import Request
from workers.repack.verifying import drop_schema, validate
from workers.repack.work import Later, Work, transaction

log = logs.get(__name__)


def drop(work: Work) -> Later | None:
    """Drop the old table once it has been kept long enough; the request is done then. Raises Busy."""
    conn, request = work.conn, work.request
    if request.keep_until is not None and (wait := (request.keep_until - datetime.now(UTC)).total_seconds()) > 0:
        return Later(wait, None)
    after = store.relation_bytes(conn, request.new_oid or 0)
    with transaction(conn, lock_seconds=work.limits.lock_timeout_seconds):
        drop_schema(work, work.place.old_schema)
        problems = store.unvalidated_problems(conn, request.id)
        problem = "; ".join(problems) or None
        store.finish(
            conn, request.id, "done", reason="constraints" if problem else None, problem=problem, bytes_after=after
        )
        gained = (request.bytes_before or 0) - after
        bloat_catalog.gained(conn, request.id, gained)
        facts = {
            "gained_bytes": gained,
            "bytes_before": request.bytes_before,
            "bytes_after": after,
            "plan": request.plan,
        }
        tell(conn, request, "success" if problem is None else "failure", problem or "repacked", facts)
    log.info("repack.done", table=request.name, bytes_before=request.bytes_before, bytes_after=after)
    return None


def clean(work: Work) -> None:
    """Take away what a request left, whatever step it was in; the table itself stays as it is. Raises Busy.

    After the swap that is the log and the old table: the new one is the table.
    """
    conn, request, place = work.conn, work.request, work.place
    if request.is_swapped:
        validate(work)
    oid = request.new_oid if request.is_swapped else request.oid
    with transaction(conn, lock_seconds=work.limits.lock_timeout_seconds):
        try:
            qualified: str | None = twin_catalog.facts(conn, oid or 0).qualified
        except PermanentFailure:
            qualified = None  # dropped meanwhile, and its triggers with it
        if qualified is not None and twin_catalog.trigger_marks(conn, oid or 0, place) is not None:
            run(conn, change_log.drop_triggers(place, qualified))
        run(conn, change_log.drop(place))
        for schema in (place.new_schema, place.old_schema):
            drop_schema(work, schema)
        state = "aborted" if request.reason is None else "failed"
        store.finish(conn, request.id, state, reason=request.reason, problem=request.problem)
        if state == "failed":
            tell(conn, request, "failure", request.problem or "", {"reason": request.reason})
    log.info("repack.cleaned", table=request.name, state=state, reason=request.reason)


def keep(work: Work, problem: str, why: str = "different") -> None:
    """End a request whose tables differ: the log goes, the old table stays for a person. Raises Busy."""
    conn, request, place = work.conn, work.request, work.place
    with transaction(conn, lock_seconds=work.limits.lock_timeout_seconds):
        run(conn, change_log.drop_triggers(place, twin_catalog.facts(conn, request.new_oid or 0).qualified))
        run(conn, change_log.drop(place))
        drop_schema(work, place.new_schema)
        store.finish(conn, request.id, "failed", reason=why, problem=problem)
        tell(conn, request, "failure", problem, {"reason": why})


def tell(conn: Connection, request: Request, event: str, message: str, facts: Mapping[str, object]) -> None:
    """Put an alert into the outbox, in the transaction of what it tells."""
    alerts.raise_alert(
        conn, room="repack", event=event, subject=f"table {request.name}",
        facts={"message": message, "next": "headrace repack status", **facts},
    )  # fmt: skip


def finish_indexes(work: Work, note: str | None) -> None:
    """End a request that rebuilt indexes only."""
    conn, request = work.conn, work.request
    after = store.relation_bytes(conn, request.oid)
    gained = (request.bytes_before or 0) - after
    with transaction(conn, lock_seconds=work.limits.lock_timeout_seconds):
        store.finish(conn, request.id, "done", reason=None, problem=note, bytes_after=after)
        bloat_catalog.gained(conn, request.id, gained)
        facts: dict[str, object] = {"gained_bytes": gained, "bytes_before": request.bytes_before, "bytes_after": after}
        tell(conn, request, "success", note or "indexes rebuilt", facts)

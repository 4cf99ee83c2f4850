"""Candidates: what was, or would be, decided on each table of a database; and what rewrites gained in the end."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from workers import database
from workers.repack import bloat_catalog, store
from workers.repack.choice import choose
from workers.repack.choosing import plan_of, verdicts
from workers.repack_settings import Plan
from workers.settings import Settings

_LIMIT = 500


def candidates(settings: Settings, database_name: str, plan_name: str | None, *, refresh: bool) -> list[dict[str, Any]]:
    """What a plan (None: default thresholds) would do with each table of a database, the most wasteful first.

    The newest look that is remembered; with `refresh`, or where there is none, the tables are looked at now, and that
    is remembered if our tables are there.
    """
    with database.connection(settings.target(database_name), purpose="repack candidates", autocommit=True) as conn:
        is_set_up = store.is_set_up(conn)
        if is_set_up and not refresh and plan_name is None and (known := bloat_catalog.latest(conn, _LIMIT)):
            return [_candidate(one, one.verdict, one.looked_at) for one in known]
        plan = plan_of(settings, plan_name) if plan_name is not None else Plan(databases=(database_name,))
        if is_set_up:
            found = verdicts(settings, database_name, plan_name or "", plan)
        else:
            looked = bloat_catalog.estimates(conn, plan.schemas, plan.tables, plan.skip_tables)
            found = choose(looked, plan.thresholds)
        now = datetime.now(UTC)
        if is_set_up and refresh:
            for one in found:
                bloat_catalog.remember(conn, one.estimate, one)
    return [
        {**_candidate(one.estimate, one.text, now), "rows": one.estimate.rows, "note": one.estimate.note}
        for one in found
    ]


def history(settings: Settings, database_name: str) -> list[dict[str, Any]]:
    """Estimates that led to a rewrite, each beside what it gave back, newest first."""
    with database.connection(settings.target(database_name), purpose="repack candidates", autocommit=True) as conn:
        if not store.is_set_up(conn):
            return []
        return [
            {**_candidate(one, one.verdict, one.looked_at), "repack": one.repack, "gained_bytes": one.gained_bytes}
            for one in bloat_catalog.rewritten(conn, _LIMIT)
        ]


def _candidate(one: Any, verdict: str, looked_at: datetime) -> dict[str, Any]:
    parts = ("table_bytes", "index_bytes", "toast_bytes", "table_bloat_bytes", "index_bloat_bytes", "toast_bloat_bytes")
    sizes = {name: getattr(one, name) for name in parts}
    whole = one.table_bytes + one.index_bytes + one.toast_bytes
    bloat = one.table_bloat_bytes + one.index_bloat_bytes + one.toast_bloat_bytes
    return {
        "schema": one.schema, "table": one.table, "verdict": verdict, "method": one.method, "bytes": whole,
        "bloat_bytes": bloat, "bloat_percent": round(100 * bloat / whole, 1) if whole else 0.0, **sizes,
        "looked_at": looked_at,
    }  # fmt: skip

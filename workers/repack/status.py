"""How requests stand, for people: how far, how fast, how long still, what waits, and what needs somebody."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from workers import database
from workers.repack import pacing, store
from workers.settings import Settings

WINDOW = timedelta(days=7)  # failures older than this have been seen or do not matter any more
STUCK = timedelta(minutes=10)  # due for so long without anybody at it
_WAIT = "SET lock_timeout = '250ms'"
_LIMIT = 500


def status(settings: Settings, database_name: str) -> dict[str, Any]:
    """How every request of a database stands, and what needs somebody. Reads only, and waits for no lock.

    Raises ServerUnavailable when the database cannot be reached.
    """
    conn = database.connect(settings.target(database_name), purpose="repack status", autocommit=True)
    try:
        if not store.is_set_up(conn):
            return {"database": database_name, "set_up": False, "requests": [], "needs": []}
        with conn.cursor() as cursor:
            cursor.execute(_WAIT)
        try:
            found = store.listing(conn, since=WINDOW, limit=_LIMIT)
        except database.DatabaseError as error:
            if database.sqlstate(error) != "55P03":
                raise
            found = store.listing(conn, since=WINDOW, limit=_LIMIT, sizes=False)
    finally:
        conn.close()
    now = datetime.now(UTC)
    shown = [progress(row, _opens(settings, row["plan"], now), now) for row in found]
    return {"database": database_name, "set_up": True, "requests": shown, "needs": needs(database_name, shown)}


def progress(row: Mapping[str, Any], opens: datetime | None, now: datetime) -> dict[str, Any]:
    """A row of the listing with what follows from it: `is`, `percent`, `rows_per_second`, `eta_seconds`, `bytes`.

    `opens` is when the window of its plan opens; None: it is open.
    """
    done, whole = _counted(row)
    elapsed = row["step_seconds"] if row["state"] == "active" else None
    rate = done / elapsed if elapsed and done and row["step"] in ("copy", "verify") else None
    eta = max(whole - done, 0) / rate if rate and whole else None
    percent = round(min(100.0, 100 * done / whole), 1) if whole else None
    kept = ("paused_at", "paused_by", "requested_at", "step_at", "swapped_at", "keep_until", "finished_at", "due_at")
    names = (
        "id", "engine", "goal", "step", "state", "reason", "problem", "plan", "requested_by", "rows_estimated",
        "rows_copied", "rows_verified", "keys_replayed", "backlog_rows", "lock_attempts", "failures", "hold_seconds",
        "bytes_before", "bytes_after", "estimated_gain_bytes", "copy_bytes", "log_bytes", "old_bytes", "indexes",
        "indexes_built", "is_running",
    )  # fmt: skip
    return {
        "schema": row["schema_name"],
        "table": row["table_name"],
        "is": _is(row, opens, now),
        **{name: row[name] for name in names},
        "percent": percent,
        "rows_per_second": round(rate, 1) if rate else None,
        "eta_seconds": round(eta, 1) if eta is not None else None,
        "step_seconds": round(row["step_seconds"], 1),
        "window_opens_at": opens,
        **{name: row[name] for name in kept},
    }


def _counted(row: Mapping[str, Any]) -> tuple[int, int]:
    """How much of the step in hand is done, of how much."""
    if row["state"] == "done":
        return 1, 1
    if row["engine"] == "reindex" or row["step"] == "index":
        return row["indexes_built"], row["indexes"]
    if row["step"] == "copy":
        return row["rows_copied"], max(row["rows_estimated"], row["rows_copied"])
    if row["step"] == "verify":
        return row["rows_verified"], max(row["rows_copied"], row["rows_verified"])
    return 0, 0


def _is(row: Mapping[str, Any], opens: datetime | None, now: datetime) -> str:
    """One word for what a request is: what people look for first."""
    if row["state"] != "active":
        return str(row["state"])
    if row["goal"] == "abort":
        return "being given up"
    if row["paused_at"] is not None:
        return "paused"
    if row["is_running"]:
        return "running"
    if row["step"] == "drop" and row["keep_until"] is not None and row["keep_until"] > now:
        return "swapped"
    backlog, least = row["backlog_rows"], row["swap_below_rows"]
    if row["step"] == "replay" and row["goal"] == "ready" and backlog is not None and backlog <= (least or 0):
        return "ready"
    return "waiting" if opens is None or row["step"] == "replay" else "outside its window"


def needs(database_name: str, shown: list[dict[str, Any]]) -> list[str]:
    """Every reason to wake somebody up because of a database's requests, with what to do."""
    found, seen = [], set()
    now = datetime.now(UTC)
    for one in sorted(shown, key=lambda one: -one["id"]):
        name = f"{one['schema']}.{one['table']}"
        what = f"{database_name}: {name}"
        is_newest = name not in seen
        seen.add(name)
        problem = str(one["problem"] or one["reason"] or "").removeprefix(f"{name}: ")
        if one["state"] == "failed" and is_newest:
            found.append(f"{what}: repack {one['id']} failed: {problem}; `headrace repack run {name}` begins anew")
        elif one["state"] == "done" and one["reason"] and is_newest:
            found.append(f"{what}: repacked, but {problem}")
        elif one["is"] == "ready" and one["problem"]:
            found.append(f"{what}: waits for somebody: {problem}")
        elif one["is"] == "waiting" and now - one["due_at"] > STUCK:
            minutes = (now - one["due_at"]).total_seconds() / 60
            found.append(f"{what}: repack {one['id']} is due for {minutes:.0f} min; are beat and a worker up?")
    return found


def _opens(settings: Settings, plan_name: str | None, now: datetime) -> datetime | None:
    plan = settings.repack.plans.get(plan_name or "")
    return pacing.window_hold(plan.windows, plan.timezone, now) if plan is not None else None

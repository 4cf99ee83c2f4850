"""How the room stands: what is due, runs, waits and failed, and what needs a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers import database
from workers.database import Connection
from workers.products import room, store
from workers.settings import Settings
from workers.sql_files import queries

SQL = queries("products_status")

MOST = 20
LATE_SECONDS = 3600.0


def status(settings: Settings) -> dict[str, Any]:
    """Missions, running builds, troubles, and `needs`: each reason to wake somebody up, with what to do.

    `{"set_up": False, "needs": []}` where no product was ever loaded. Raises ServerUnavailable.
    """
    with database.connection(room.target(settings), purpose="products status", autocommit=True) as conn:
        if not store.is_set_up(conn):
            return {"set_up": False, "missions": [], "running": [], "troubles": [], "needs": []}
        document: dict[str, Any] = {
            "set_up": True,
            "missions": SQL["missions"].records(conn),
            "running": SQL["running"].records(conn),
            "troubles": SQL["troubles"].records(conn, {"limit": MOST}),
            "held_codes": SQL["held_codes"].records(conn),
            "left_in_incoming": SQL["left_in_incoming"].records(conn, {"limit": MOST}),
            "connections": SQL["connections"].value(conn),
        }
    document["needs"] = _needs(document, settings)
    return document


def builds(
    conn: Connection, *, mission: str | None = None, product: str | None = None, build: int | None = None,
    failed: bool = False, limit: int = 50,
) -> list[dict[str, Any]]:  # fmt: skip
    """The history of builds, newest first."""
    facts = {"mission": mission, "product": product, "id": build, "failed": failed, "limit": limit}
    return SQL["builds"].records(conn, facts)


def _needs(document: Mapping[str, Any], settings: Settings) -> list[str]:
    needs = []
    for one in document["troubles"]:
        what = " ".join(str(word) for word in (one["product"], one["day"], one["key"]) if word)
        needs.append(
            f"{one['mission']}: {what} failed ({one['kind']}): {one['problem']}; mend it, then `headrace products retry"
            f" {one['product']} --day {one['day']}`"
        )
    for one in document["missions"]:
        name = one["mission"]
        if one["quarantined"]:
            needs.append(f"{name}: {one['quarantined']} files in quarantine; `headrace products quarantine` says why")
        if one["broken"]:
            needs.append(f"{name}: {one['broken']} files are missing or damaged; `headrace products fsck` lists them")
        if one["due"] and (one["oldest_due_seconds"] or 0) > LATE_SECONDS and not one["building"]:
            needs.append(
                f"{name}: {one['due']} outputs are due, the oldest for {one['oldest_due_seconds']:.0f} s, and nobody"
                f" builds; start `headrace worker` on {' or '.join(one['hosts']) or 'a host that sees its files'}"
            )
    for one in document["held_codes"]:
        needs.append(
            f"{one['mission']}: code {one['version']} of {one['process']} waits; `headrace products approve"
            f" {one['process']} {one['version']}` shows what it would rebuild"
        )
    needs += [f"{one['host']}: {one['path']}: {one['problem']}" for one in document["left_in_incoming"]]
    if document["connections"] > settings.products.connections_alarm:
        needs.append(
            f"{document['connections']} open connections of Headrace, alarm at {settings.products.connections_alarm}:"
            " lower worker.concurrency, or raise products.connections_alarm"
        )
    return needs

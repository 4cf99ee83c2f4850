"""What is due in the room: messages for folders, plans, idle lanes, hosts with something dead, disks, and alerts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from workers import alerts, database
from workers.messages import CheckFiles, DeliverAlerts, IngestIncoming, Message, PlanProducts, TendProducts
from workers.products import lanes, plan_store, room, store, tending
from workers.settings import Settings
from workers.sql_files import queries

SQL = queries("products")


def due(settings: Settings, awake: Sequence[str]) -> list[Message]:
    """Messages for these hosts, which have a worker that is not paused. Nothing where the room is not in use.

    Folders, plans and checks count as asked with this; a message that is lost is sent again by a later look.
    Raises ServerUnavailable.
    """
    rules = settings.products
    with database.connection(room.target(settings), purpose="products look") as conn:
        if not store.is_set_up(conn):
            return []
        found: list[Message] = []
        if awake:
            found += [TendProducts(host=host) for host in tending.needs(conn, list(awake))]
            every = timedelta(seconds=rules.sweep_seconds)
            for name, sees in SQL["missions_to_look_at"].rows(conn, {"every": every}):
                found += [IngestIncoming(host=host, mission=name) for host in _seers(awake, sees)]
            again = timedelta(seconds=rules.requeue_seconds)
            for name, sees in SQL["missions_to_plan"].rows(conn, {"sweep": every, "again": again}):
                found += [PlanProducts(host=host, mission=name) for host in _seers(awake, sees)[:1]]
            if rules.check_hours is not None:
                for name, sees in SQL["missions_to_check"].rows(conn, {"every": timedelta(hours=rules.check_hours)}):
                    found += [CheckFiles(host=host, mission=name) for host in _seers(awake, sees)[:1]]
            conn.commit()
            for host in awake:
                found += lanes.wake(conn, settings, host)
        if alerts.waiting(conn):
            found.append(DeliverAlerts(database=rules.database))
        conn.rollback()
    return found


def incoming_folders(settings: Settings) -> dict[str, str]:
    """Incoming folders that this host sees, by mission; none where the room is not in use. Raises ServerUnavailable."""
    with database.connection(room.target(settings), purpose="products watch", autocommit=True) as conn:
        if not store.is_set_up(conn):
            return {}
        return {one.name: one.incoming for one in plan_store.missions(conn) if one.is_seen_by(settings.host)}


def forget_old(settings: Settings) -> int:
    """Delete builds beyond `products.history_days` that nothing comes from; how many. Raises ServerUnavailable."""
    with database.connection(room.target(settings), purpose="products retention") as conn:
        if not store.is_set_up(conn):
            return 0
        count = SQL["forget_builds"].run(conn, {"age": timedelta(days=settings.products.history_days)})
        conn.commit()
    return count


def _seers(awake: Sequence[str], sees: Sequence[str]) -> list[str]:
    return [host for host in awake if not sees or host in sees]

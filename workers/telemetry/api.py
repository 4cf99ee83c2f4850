"""Questions about the telemetry room that others may ask: what is due, what stands where, what is wrong."""

from __future__ import annotations

import os
import stat
import time
from datetime import datetime
from typing import Any

from workers import database, migrations, paths
from workers.settings import Settings
from workers.sql_files import queries
from workers.targets import Target
from workers.telemetry import adopt as adopt_module
from workers.telemetry import inventory_store, store
from workers.telemetry.folders import walk
from workers.telemetry.legacy import settings_from_xtelemdb
from workers.telemetry.readers import SUFFIXES
from workers.telemetry.schema import plan

SQL = queries("telemetry")

__all__ = ["settings_from_xtelemdb"]


def setup(settings: Settings, *, dry_run: bool = False, target: Target | None = None) -> list[str]:
    """Make or widen the tables; the statements that were (or would be) run. Twice is harmless."""
    work = target or settings.target(settings.telemetry.database)
    with database.connection(work, purpose="telemetry setup") as conn:
        steps = list(plan(store.read_facts(conn)))
        texts = store.statements(conn, steps)
        if not dry_run:
            migrations.migrate(conn, "telemetry")
            store.run_steps(conn)
            conn.commit()
    return texts


def adopt(settings: Settings) -> dict[str, int]:
    """Count files as read that xtelemdb has read: how many are `adopted`, `changed` since, `absent` here."""
    work = settings.target(settings.telemetry.database)
    with database.connection(work, purpose="telemetry adopt") as conn:
        store.ensure_schema(conn, work.dsn)
        count = adopt_module.adopt(conn, settings.host)
    return {"adopted": count.adopted, "changed": count.changed, "absent": count.absent}


def find_files(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(text forms of the telemetry files that shell arguments name, one problem per argument that names none).

    A folder stands for every telemetry file below it.
    """
    found: list[str] = []
    problems: list[str] = []
    for argument in arguments:
        path = os.path.abspath(argument)
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            problems.append(f"{paths.to_text(path)}: {error.strerror}")
            continue
        if not stat.S_ISDIR(mode):
            found.append(paths.to_text(path))
            continue
        for listing in walk(path, problems):
            found += sorted(
                paths.to_text(f"{listing.folder.rstrip('/')}/{name}")
                for name in listing.names
                if name.endswith(SUFFIXES)
            )
    return found, problems


def due_hosts(settings: Settings, hosts: list[str]) -> list[str]:
    """Hosts whose folders are to be looked at now; they count as asked."""
    work = settings.target(settings.telemetry.database)
    telemetry = settings.telemetry
    with database.connection(work, purpose="telemetry sweep") as conn:
        store.ensure_schema(conn, work.dsn)
        return inventory_store.due_hosts(conn, hosts, telemetry.sweep_seconds, telemetry.requeue_seconds)


def due_files(settings: Settings, host: str) -> list[str]:
    """Paths of telemetry files of a host to read now; they count as asked."""
    work = settings.target(settings.telemetry.database)
    with database.connection(work, purpose="telemetry sweep") as conn:
        return inventory_store.due_files(conn, host, settings.telemetry.requeue_seconds, settings.telemetry.in_flight)


def status(settings: Settings) -> dict[str, Any]:
    """Files per host and state, what waits since when, lag per device, and what a person has to look at."""
    work = settings.target(settings.telemetry.database)
    with database.connection(work, purpose="telemetry status", autocommit=True) as conn:
        if not store.read_facts(conn).telem_is_ours:
            return {"set_up": False}
        return {
            "set_up": True,
            "files": SQL["file_states"].records(conn),
            "pending": SQL["oldest_pending"].records(conn),
            "devices": SQL["device_lag"].records(conn),
            "troubles": SQL["troubles"].records(conn, {"limit": 50}),
            "dead_letters": SQL["dead_letters"].records(conn, {"limit": 20}),
            "missing_files": SQL["missing_files"].value(conn),
            "hosts": SQL["inventory_problems"].records(conn),
        }


def lag(settings: Settings, since: datetime) -> dict[str, Any]:
    """Files, records, dead letters and lag quantiles in seconds of what was read since a moment."""
    work = settings.target(settings.telemetry.database)
    with database.connection(work, purpose="telemetry status", autocommit=True) as conn:
        return SQL["lag_quantiles"].records(conn, {"since": since})[0]


def standing_trouble(settings: Settings, path: str) -> str | None:
    """Why an unchanged file of this host counts as damaged or failed, if it does."""
    work = settings.target(settings.telemetry.database)
    with database.connection(work, purpose="telemetry status") as conn:
        store.ensure_schema(conn, work.dsn)
        known = store.checkpoint(conn, settings.host, path)
    if known is None or known.state not in ("damaged", "failed"):
        return None
    return f"{path}: {known.state}: {known.error or f'{known.dead_letters} dead letters'}"


def dead_letters(settings: Settings, limit: int) -> list[dict[str, Any]]:
    """The newest dead letters: where in which file, and why."""
    work = settings.target(settings.telemetry.database)
    with database.connection(work, purpose="telemetry status", autocommit=True) as conn:
        store.ensure_schema(conn, work.dsn)
        return SQL["dead_letters"].records(conn, {"limit": limit})


def settled(settings: Settings, keys: list[str]) -> set[str]:
    """Those of the runs' keys (`host:path`) whose files are in order now, so that an old failure is history."""
    pairs = [key.split(":", 1) for key in keys if ":/" in key]
    work = settings.target(settings.telemetry.database)
    with database.connection(work, purpose="telemetry status", autocommit=True) as conn:
        if not pairs or not store.read_facts(conn).telem_is_ours:
            return set()
        facts = {"hosts": [host for host, _path in pairs], "paths": [path for _host, path in pairs]}
        return {row[0] for row in SQL["settled_files"].rows(conn, facts)}


def accept(settings: Settings, path: str, by: str, reason: str | None) -> int | None:
    """Settle a damaged or failed file of this host; how many dead letters it has, or None if it is neither."""
    work = settings.target(settings.telemetry.database)
    with database.connection(work, purpose="telemetry accept") as conn:
        store.ensure_schema(conn, work.dsn)
        return store.accept(conn, settings.host, path, by, reason)


def check_reachable(target: Target) -> None:
    """Raise ServerUnavailable unless the database answers now."""
    with database.connection(target, purpose="check", autocommit=True):
        pass


def new_slot() -> str:
    """A slot for an event that nothing else numbers."""
    return str(time.time_ns())

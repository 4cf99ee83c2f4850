"""Tending a host: what dead workers left is ended, finished or undone, so that nobody has to clear anything.

A build is dead when the process that was responsible for it is: on its own machine that is seen at once. A worker
that lives may still have lost a build (its connection broke as it wanted to write the end): then its lane is free and
the code's processes are gone. Of a host that has fallen silent, nobody can end the processes; they may write into
their scratch folder only, and what a worker does not publish is nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

from workers import database, hosts, logs, paths, runs
from workers.database import Connection
from workers.errors import HeadraceError, NothingToDo
from workers.messages import Message, TendProducts
from workers.products import (
    build_store,
    failing,
    lanes,
    ownership,
    plan_store,
    planning,
    recovery,
    room,
    running,
    store,
)
from workers.products.build_store import RunningBuild
from workers.products.failing import Making
from workers.products.places import scratch_root
from workers.products.plan_store import Mission, Pending
from workers.settings import Settings
from workers.sql_files import queries

log = logs.get(__name__)
SQL = queries("products")

LOST_IN_A_ROW = 5  # so many workers died of one build: it is given up
GRACE = timedelta(seconds=30)  # a build that lives in no lane may have begun just now
LEFT_OVER_SECONDS = 3600.0  # scratch folders without a build
_OURS = re.compile(rb"[0-9]+-[0-9a-f]{16}")  # tokens of builds


def tend(message: TendProducts, settings: Settings) -> list[Message]:
    """End what is dead on this host, and on hosts that have fallen silent; messages for what is due therefore.

    Raises NothingToDo when nothing was left behind.
    """
    with room.connection(settings, purpose="tend") as conn:
        dead = [one for one in build_store.running_builds(conn) if _is_dead(conn, settings, one)]
        told = [host.name for host in hosts.listing(settings.target()) if host.name == settings.host or not host.alive]
        halves = any(
            store.half_placed(conn, one.id, host)
            for one in plan_store.missions(conn)
            for host in {settings.host, *told}
        )
        conn.rollback()
        if not dead and not halves:
            _sweep_scratch(conn, settings)
            raise NothingToDo("nothing was left behind")
        with runs.running(
            message, control=settings.target(), work=room.target(settings), conn=conn, host=settings.host
        ) as run:
            conn.rollback()
            run.count(**settle_all(conn, settings))
        return lanes.wake(conn, settings)


def settle_all(conn: Connection, settings: Settings) -> dict[str, int]:
    """End, finish or undo everything that is dead here; how many `finished`, `lost` and `files`. It commits."""
    counts: Counter[str] = Counter()
    for one in build_store.running_builds(conn):
        if _is_dead(conn, settings, one):
            counts[_settle(conn, settings, one)] += 1
    silent = [host.name for host in hosts.listing(settings.target()) if not host.alive and host.name != settings.host]
    for mission in plan_store.missions(conn):
        if mission.is_seen_by(settings.host):
            counts["files"] += sum(_half_placed(conn, mission, host) for host in (settings.host, *silent))
    conn.rollback()
    _sweep_scratch(conn, settings)
    return dict(counts)


def needs(conn: Connection, alive: list[str]) -> list[str]:
    """Hosts that are to tend: those with builds or half-placed files of their own; anyone for hosts that are silent."""
    wanted: set[str] = set()
    for host, sees in SQL["needs_tending"].rows(conn):
        if host in alive:
            wanted.add(host)
        else:
            wanted.update([one for one in alive if not sees or one in sees][:1])
    return sorted(wanted)


def _is_dead(conn: Connection, settings: Settings, one: RunningBuild) -> bool:
    if one.host != settings.host:
        silent = {host.name for host in hosts.listing(settings.target()) if not host.alive}
        return one.host in silent
    if not ownership.is_here(one.worker):
        return True  # of this host before it was started anew
    can_be_seen = ownership.can_be_seen(one.worker)
    if can_be_seen and not ownership.is_alive(one.worker):
        return True
    has_processes = can_be_seen and one.group is not None and running.is_alive(one.group, one.group_started or 0)
    is_young = datetime.now(UTC) - one.started_at < GRACE
    return not has_processes and not is_young and one.lane is not None and _is_free(conn, one.host, one.lane)


def _is_free(conn: Connection, host: str, lane: int) -> bool:
    if not lanes.enter(conn, host, lane):
        return False
    lanes.leave(conn, host, lane)
    return True


def abandon(settings: Settings, making: Making, error: BaseException) -> None:
    """End a build whose worker was interrupted; by a connection of its own, as the build's may be broken.

    What is on its way into its place comes there: built again beside it, the output would find its name taken.
    """
    try:
        with room.connection(settings, purpose="abandon") as conn:
            mine = [one for one in build_store.running_builds(conn, settings.host) if one.id == making.build]
            halves = store.half_placed(conn, making.mission.id, settings.host)
            if failing.is_bug(error) and not any(half.build == making.build for half in halves):
                failing.failed(conn, settings.products, making, kind="bug", problem=repr(error), outcome=None)
                conn.commit()
                return
            for one in mine:
                _settle(conn, settings, one, problem=f"interrupted: {database.first_line(error)}")
    except HeadraceError as reason:
        # The host's tending ends it: the lane is free, and the code's processes are gone.
        log.warning("build.not_ended", build=making.build, reason=str(reason))


def _settle(conn: Connection, settings: Settings, one: RunningBuild, problem: str | None = None) -> str:
    """End a dead build: `finished` when its output had come to its place, else `lost`."""
    if one.host == settings.host:
        # First of all: nobody may build this again while an old code still runs.
        running.kill_survivors([one.token])
    mission = plan_store.mission_of(conn, one.mission)
    half = next((file for file in store.half_placed(conn, mission.id, one.host) if file.build == one.id), None)
    slot = build_store.slot(conn, one.slot)
    finished = half is not None and recovery.settle(conn, mission, half)
    is_ours = build_store.end_build(
        conn, one.id, "succeeded", output=half.id, output_name=half.filename, exit_status=0
    ) if finished and half is not None else build_store.end_build(
        conn, one.id, "lost", kind="worker", problem=problem or f"its worker on {one.host} died"
    )  # fmt: skip
    if not is_ours:
        conn.rollback()
        return "lost"  # another host has tended it meanwhile
    if finished and half is not None:
        build_store.link(conn, half.id, one.inputs)
        if slot is not None and one.code is not None:
            seen = build_store.as_of(slot, one.started_at)
            build_store.slot_done(conn, seen, inputs=one.inputs, code=one.code, build=one.id)
    elif problem is None:
        _give_up_killers(conn, mission, one)
    conn.commit()
    if finished and half is not None:
        planning.mark_after(conn, mission, [recovery.pending(half)])
    log.warning("build.recovered", build=one.id, host=one.host, finished=finished)
    if one.scratch is not None and one.host == settings.host:
        shutil.rmtree(paths.to_bytes(one.scratch), ignore_errors=True)
    return "finished" if finished else "lost"


def _give_up_killers(conn: Connection, mission: Mission, one: RunningBuild) -> None:
    """A build that takes its worker along each time must not do so for ever."""
    if one.code is None or build_store.lost_in_a_row(conn, one.slot, one.inputs, one.code) < LOST_IN_A_ROW:
        return
    build_store.slot_failed(
        conn, one.slot, inputs=one.inputs, code=one.code, kind="worker", build=one.id, wait=timedelta(0), counts=True,
        problem=f"its worker died {LOST_IN_A_ROW} times in a row; does it take all memory? declare `memory` for it",
    )  # fmt: skip
    build_store.slot_given_up(conn, one.slot, one.id)
    conn.commit()
    if one.output_product is not None:
        day = datetime(one.day.year, one.day.month, one.day.day, tzinfo=UTC)
        planning.mark_after(conn, mission, [Pending(one.output_product, one.day, one.key, day, day)])


def _half_placed(conn: Connection, mission: Mission, host: str) -> int:
    """Settle files of ended builds, and of an ingest that nobody goes on with."""
    count = 0
    halves = [half for half in store.half_placed(conn, mission.id, host) if half.build_state != "running"]
    conn.rollback()
    for half in (one for one in halves if one.build is not None):
        if recovery.settle(conn, mission, half):
            build_store.settled_late(conn, half.id)
            conn.commit()
            planning.mark_after(conn, mission, [recovery.pending(half)])
        conn.commit()
        count += 1
    if any(half.build is None for half in halves):
        with store.folder(conn, mission.incoming) as is_ours:
            count += recovery.recover(conn, mission, host) if is_ours else 0
    return count


def _sweep_scratch(conn: Connection, settings: Settings) -> None:
    """Remove scratch folders that no build has any more."""
    roots = {scratch_root(mission, settings) for mission in plan_store.missions(conn)}
    conn.rollback()
    for root in roots:
        try:
            names = os.listdir(root)
        except OSError:
            continue
        live = build_store.tokens(conn)
        conn.rollback()
        for name in names:
            path = os.path.join(root, name)
            is_old = time.time() - _changed(path) > LEFT_OVER_SECONDS
            # The folder may be one that others use as well.
            if is_old and _OURS.fullmatch(name) and paths.to_text(name) not in live:
                shutil.rmtree(path, ignore_errors=True)


def _changed(path: bytes) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return time.time()

"""The safe foot: a mission is looked over as a whole, and whatever is stale is due, whoever forgot to say so."""

from __future__ import annotations

import time

from workers import logs, runs
from workers.errors import NothingToDo
from workers.messages import Message, PlanProducts
from workers.products import lanes, plan_store, planning, requests, room, store
from workers.settings import Settings

log = logs.get(__name__)


def sweep(message: PlanProducts, settings: Settings) -> list[Message]:
    """Mark what is stale in a mission; messages for this host's lanes. Raises NothingToDo when nothing is."""
    with room.connection(settings, purpose="plan") as conn:
        mission = plan_store.mission(conn, message.mission)
        began = time.monotonic()
        waiting = requests.idle(conn, mission)  # before the plan: what is asked for after this is not in it
        steps = planning.plan(conn, mission)
        conn.rollback()  # a plan of everything reads for seconds: what it saw is marked in a transaction of its own
        due = planning.mark(conn, steps)
        requests.settle(conn, waiting, steps)
        store.SQL["planned"].run(conn, {"id": mission.id, "seconds": time.monotonic() - began})
        conn.commit()
        if message.run is None:
            woken = lanes.wake(conn, settings)
            if not woken:
                raise NothingToDo(f"nothing of {mission.name} is to be built here now")
            return woken
        with runs.running(
            message, control=settings.target(), work=room.target(settings), conn=conn, host=settings.host
        ) as run:
            conn.rollback()
            run.count(due=due)
        return lanes.wake(conn, settings)

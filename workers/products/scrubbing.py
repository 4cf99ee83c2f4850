"""The check that comes by itself: once in a while every file of a mission is compared with its row."""

from __future__ import annotations

from workers import logs, runs
from workers.errors import NothingToDo
from workers.messages import CheckFiles, Message, PlanProducts
from workers.products import checking, plan_store, room
from workers.runs import Run
from workers.settings import Settings
from workers.sql_files import queries

log = logs.get(__name__)
SQL = queries("products")


def scrub(message: CheckFiles, settings: Settings) -> list[Message]:
    """Write down what is missing, damaged or there again, and have outputs built for it; raw files are told of.

    Raises NothingToDo for a mission that this host does not see, RetryLater when its disk is not mounted.
    """
    with room.connection(settings, purpose="check") as conn:
        mission = plan_store.mission(conn, message.mission)
        if not mission.is_seen_by(settings.host):
            raise NothingToDo(f"mission {mission.name} has its files on {', '.join(mission.hosts)}")
        with runs.running(
            message, control=settings.target(), work=room.target(settings), conn=conn, host=settings.host
        ) as run:
            conn.rollback()
            report = checking.check(
                conn, mission.id, fix=True, deep=settings.products.deep_check, progress=lambda *done: _tell(run, *done)
            )
            for kind, count in report.counts.items():
                run.count(**{kind.replace(" ", "_").replace("-", "_"): count})
            SQL["checked"].run(conn, {"id": mission.id})
            conn.commit()
    log.info("products.checked", mission=mission.name, files=report.files, found=dict(report.counts))
    return [PlanProducts(host=settings.host, mission=mission.name)] if report.fixed else []


def _tell(run: Run, done: int, _total: int) -> None:
    run.counters["files"] = done
    run.check()

"""One job's trouble, undone alone: within one transaction over many jobs, a savepoint around each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from workers import database, logs
from workers.database import Connection
from workers.errors import RetryLater
from workers.postprocessing import endings, store
from workers.postprocessing.jobs import Plan
from workers.postprocessing.scope import Scope
from workers.sql_files import queries

log = logs.get(__name__)
SQL = queries("postprocessing")

PUT_OFF = timedelta(minutes=10)  # a job that we cannot make sense of is tried again after this


@contextmanager
def alone(conn: Connection, where: Scope, job: int | None = None, *, replanned: bool = False) -> Iterator[None]:
    """What goes wrong with one job is undone and said, and costs no other job its look.

    A row that somebody holds, and passing trouble of the server's, is left to the next look, with nothing written.
    """
    SQL["savepoint"].run(conn)
    try:
        yield
    except RetryLater:
        raise
    except Exception as bug:
        if conn.closed:
            raise
        SQL["undo_one"].run(conn)
        if (database.sqlstate(bug) or "").startswith(endings.PASSING):
            log.info("look.later", database=where.name, job=job, reason=database.first_line(bug))
            return
        log.exception("look.job", database=where.name, job=job)
        problem = f"cannot be scheduled: {database.first_line(bug)}; please report this"
        if job is not None and replanned:
            store.set_plan(conn, job, Plan(), problem=problem)
        elif job is not None:
            store.hold(conn, job, store.now(conn) + PUT_OFF, problem)
    else:
        SQL["keep_one"].run(conn)

"""Index-only: the engine for tables of which only the indexes are bloated; each index done is marked at once."""

from __future__ import annotations

from workers.errors import RetryLater
from workers.repack import ending, reindexing, store
from workers.repack.reindexing import Bounds
from workers.repack.work import Busy, Later, Work


def step(work: Work) -> Later | None:
    """Rebuild the indexes that are not done yet; the request is done then. Raises PermanentFailure, Busy, Cancelled."""
    conn, request, limits = work.conn, work.request, work.limits
    if request.step == "prepare":
        planned = reindexing.plan(conn, request.schema, request.table, tablespace=work.rules.index_tablespace)
        for number, (index, statement) in enumerate(planned.rebuilds):
            facts = {"name": index.name, "is_unique": False, "statements": [statement.text]}
            store.add_index(conn, request.id, number, facts, is_key=False)
        store.next_step(conn, request.id, "index")
        return None
    left = {one.name: one.number for one in store.indexes(conn, request.id) if not one.is_built}

    def done(name: str, before: int, after: int) -> None:
        store.index_built(conn, request.id, left[name], 0)
        work.run.count(indexes=1, gained_bytes=before - after)
        work.check()

    bounds = Bounds(
        statement_seconds=limits.reindex_hours * 3600, lock_seconds=limits.reindex_wait_seconds, attempts=1,
        pause_seconds=limits.lock_pause_seconds,
    )  # fmt: skip
    try:
        notes = reindexing.run(
            conn, request.schema, request.table, bounds, names=list(left), tablespace=work.rules.index_tablespace,
            done=done,
        )  # fmt: skip
    except RetryLater as reason:
        raise Busy(str(reason)) from reason
    store.next_step(conn, request.id, "drop")
    ending.finish_indexes(work, "; ".join(notes) or None)
    return None

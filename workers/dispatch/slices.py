"""Applying one slice of a big batch, beside the others: rows whose keys hash to it, in a transaction of its own.

All slices share the position's row, so that nobody applies the batch whole meanwhile; a row of their own each keeps a
doubled message out. The position moves when all of them have committed, by whoever sees that first; if that one dies,
by the batch's message, which the pump sends again. The next batch begins only then: a row's events keep their order.
"""

from __future__ import annotations

from workers import database, logs, runs
from workers.database import Connection
from workers.dispatch import batches, consumers, store
from workers.dispatch.consumers import Scope
from workers.dispatch.source_store import Batch, Pgq
from workers.dispatch.verdicts import verdict
from workers.errors import NothingToDo
from workers.messages import DispatchSlice, Message
from workers.settings import Settings

log = logs.get(__name__)


def dispatch_slice(message: DispatchSlice, settings: Settings) -> list[Message]:
    """Apply one slice; the last one moves the position, finishes the batch and goes on.

    Raises NothingToDo when the slice is applied already, RetryLater for locks and lost servers.
    """
    scope = consumers.of(settings, message.consumer)
    with (
        database.connection(scope.source, purpose=f"dispatch {scope.name}") as source,
        database.connection(scope.target, purpose=f"dispatch {scope.name}") as target,
    ):
        pgq = Pgq(source, scope.consumer.pgq_schema)
        batch = batches.open_batch(pgq, scope, message.batch_id)
        if _is_mine(target, scope, message, batch):
            _apply(message, settings, scope, pgq, target, batch)
        target.rollback()
        if len(store.slices_done(target, scope.name, batch.tick)) < message.slices:
            return []
        target.rollback()
        position = batches.locked(target, scope)
        if verdict(scope.name, position, batch).what == "apply":
            batches.conclude(target, scope, batch)
        return batches.finish(scope, pgq, target, batch)


def _is_mine(target: Connection, scope: Scope, message: DispatchSlice, batch: Batch) -> bool:
    """Take the slice in the open transaction; False when it is applied. Raises NothingToDo for a stale message."""
    store.begin(target, lock_seconds=scope.room.lock_seconds)
    position = store.share(target, scope.name)
    if position is None or verdict(scope.name, position, batch).what != "apply":
        raise NothingToDo(f"the batch of {message.key()} is not to be applied any more")
    if (position.sliced_tick, position.slices) != (batch.tick, message.slices):
        raise NothingToDo(f"the batch is not applied in {message.slices} slices")
    return store.take_slice(target, scope.name, batch.tick, message.slice)


def _apply(
    message: DispatchSlice, settings: Settings, scope: Scope, pgq: Pgq, target: Connection, batch: Batch
) -> None:
    with runs.running(
        message, control=settings.target(), work=scope.target, conn=target, host=settings.host,
        same_run=batches.ONE_LINE_FOR,
    ) as run:  # fmt: skip
        loaded = batches.loader(target, pgq.conn, scope, batch=batch)
        batches.load(loaded, run, scope, pgq, target, batch, (message.slice, message.slices))
        waiting = batches.keep_failures(loaded, target, pgq, scope, batch)
        store.count_slice(
            target, scope.name, batch.tick, message.slice, events=loaded.events, failed=len(loaded.failures)
        )
        target.commit()
        run.count(batches=1, ignored=loaded.ignored, failed=len(loaded.failures))
        if waiting:
            run.problems.append(batches.problem(scope, loaded, waiting))
    log.info("dispatch.slice", consumer=scope.name, tick=batch.tick, slice=message.slice, events=loaded.events)

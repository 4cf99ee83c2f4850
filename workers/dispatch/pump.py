"""The pump: which batch of a consumer is open at the source, and whether its message must go out now."""

from __future__ import annotations

from workers import alerts, database
from workers.database import Connection
from workers.dispatch import consumers, rules, store
from workers.dispatch.consumers import Scope
from workers.dispatch.source_store import Batch, Pgq
from workers.dispatch.verdicts import verdict
from workers.messages import DeliverAlerts, DispatchBatch, Message
from workers.settings import Settings

QUEUED_FACTOR = 60  # so many times `requeue_seconds` for a message that may just wait for its turn


def look(settings: Settings, name: str, *, resend: bool = False) -> list[Message]:
    """The message of a consumer's open batch, if it has one that nobody is at.

    `resend` when the room's queue is empty, so that what was sent a few seconds ago must have got lost; otherwise
    it may just wait for its turn, and is sent again only much later.
    Raises ServerUnavailable, PermanentFailure when the queue or the consumer is not there.
    """
    scope = consumers.of(settings, name)
    consumers.ensure(scope)
    with database.connection(scope.target, purpose="dispatch pump") as target:
        parked = store.is_parked(target, scope.name)
        target.rollback()
        if parked:
            return []
        with database.connection(scope.source, purpose="dispatch pump") as source:
            pgq = Pgq(source, scope.consumer.pgq_schema)
            again_after = scope.room.requeue_seconds if resend else None
            return next_message(scope, pgq, target, again_after=again_after)


def alerts_waiting(settings: Settings, name: str) -> list[Message]:
    """The message that has a consumer's alerts told, if any waits."""
    scope = consumers.of(settings, name)
    consumers.ensure(scope)
    with database.connection(scope.target, purpose="dispatch pump", autocommit=True) as target:
        return [DeliverAlerts(database=scope.consumer.target)] if alerts.waiting(target) else []


def next_message(scope: Scope, pgq: Pgq, target: Connection, *, again_after: float | None = None) -> list[Message]:
    """The message of the open batch, or of the next one opened; [] when it is on its way, or there is no new tick."""
    if not scope.consumer.enabled:
        return []
    batch = _next_batch(scope, pgq)
    pgq.conn.commit()
    if batch is None:
        return []
    if not store.exists(target, scope.name):
        consumers.park(target, scope, verdict(scope.name, None, batch).why)
        return []
    if again_after is None:
        # It most likely waits in the room's queue, behind the batches of others.
        again_after = scope.room.requeue_seconds * QUEUED_FACTOR
    goes_out = store.mark_sent(target, scope.name, batch.tick, again_after=again_after)
    target.commit()
    return [_message(scope, batch)] if goes_out else []


def _next_batch(scope: Scope, pgq: Pgq) -> Batch | None:
    merge = scope.consumer.merge_events if rules.merges(scope.consumer) else None
    with consumers.asking(scope, pgq.conn):
        return pgq.next_batch(scope.queue, scope.registered_as, merge_events=merge)


def _message(scope: Scope, batch: Batch) -> DispatchBatch:
    return DispatchBatch(
        consumer=scope.name,
        queue_name=scope.queue,
        registered_as=scope.registered_as,
        batch_id=batch.id,
        prev_tick=batch.prev_tick,
        tick=batch.tick,
    )

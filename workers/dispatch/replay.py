"""Trying failed events again: each goes where it would have gone, unless a newer event of its row was applied since.

Portions of events are applied, and marked, in one transaction each, under the position's lock: a batch that is applied
meanwhile could otherwise overtake an event of the same row.
"""

from __future__ import annotations

from itertools import groupby

from workers import database, runs
from workers.database import Connection
from workers.dispatch import batches, consumers, source_store, store
from workers.dispatch.consumers import Scope
from workers.dispatch.events import UnknownEvent, kind_of
from workers.dispatch.loader import Loader
from workers.dispatch.plans import Record
from workers.dispatch.source_store import Batch
from workers.dispatch.store import FailedEvent
from workers.errors import PermanentFailure
from workers.messages import Message, ReplayEvents
from workers.settings import Settings

PORTION = 1000
_NO_SECOND_TRUNCATE = (
    "a truncate is not replayed, as rows that came after it would go, too; delete what must go yourself, then"
    " `headrace dispatch drop` the event"
)


def replay_events(message: ReplayEvents, settings: Settings) -> list[Message]:
    """Apply failed events again, in their order; those that fail again stay, with the newest reason.

    Raises NothingToDo while a batch is being applied, PermanentFailure for a consumer without a position.
    """
    scope = consumers.of(settings, message.consumer)
    consumers.ensure(scope)
    with (
        database.connection(scope.source, purpose=f"dispatch replay {scope.name}") as source,
        database.connection(scope.target, purpose=f"dispatch replay {scope.name}") as target,
        runs.running(
            message, control=settings.target(), work=scope.target, conn=target, host=settings.host
        ) as run,
    ):  # fmt: skip
        last, again = 0, 0
        while True:
            _lock(target, scope)
            events = store.failed_to_replay(target, scope.name, message.events, after=last, limit=PORTION)
            if not events:
                break
            last = events[-1].id
            failed = _portion(target, source, scope, events)
            target.commit()
            source.rollback()
            again += failed
            run.count(events=len(events), failed=failed)
            run.check()
        target.rollback()
        if again:
            run.problems.append(f"{scope.name}: {again} events failed again; `headrace dispatch failed {scope.name}`")
    return []


def _lock(target: Connection, scope: Scope) -> None:
    store.begin(target, lock_seconds=scope.room.lock_seconds)
    if store.lock(target, scope.name) is None:
        target.rollback()
        raise PermanentFailure(f"{scope.name} has no position at {scope.target.name}; nothing of it can have failed")


def _portion(target: Connection, source: Connection, scope: Scope, events: list[FailedEvent]) -> int:
    """Apply some failed events and mark them; how many failed again. The caller commits."""
    failed = 0
    for (tick, end), same in groupby(events, key=lambda event: (event.tick, event.batch_end)):
        batch = Batch(0, scope.queue, scope.registered_as, 0, tick, end, end, 0)
        loaded = batches.loader(target, source, scope, batch=batch)
        for event in same:
            failed += _one(target, scope, loaded, event)
    return failed


def _one(target: Connection, scope: Scope, loaded: Loader, event: FailedEvent) -> bool:
    """Apply one event; whether it failed again."""
    record = [
        str(event.ev_id), event.ev_type or "", event.ev_data or "", event.ev_extra1 or "", event.ev_extra2 or "",
        source_store.time_text(event.ev_time),
    ]  # fmt: skip
    loaded.failures.clear()
    if _would_empty(loaded, record):
        store.wait_again(target, event.id, _NO_SECOND_TRUNCATE, None)
        return True
    loaded.replayed = event.id
    store.settle_failed(target, scope.name, [event.id], "replayed")
    loaded.load_records([record])
    failure = loaded.failures.get(event.ev_id)
    if failure is None:
        return False
    store.wait_again(target, event.id, failure.error, failure.sqlstate)
    return True


def _would_empty(loaded: Loader, record: Record) -> bool:
    """Whether this is a truncate that takes rows away."""
    try:
        kind = kind_of(record[1], record[3], record[4] or None, record[2])
    except UnknownEvent:
        return False
    _source, own = loaded.context.tables.rules(kind.table)
    return kind.op == "R" and own is not None and own.on_truncate in ("delete", "delete_all")

"""Applying one batch: the position's lock, the rows, the position, the commit; only then `finish_batch`.

Who holds what, and what a death leaves (S is the session at the source, T the one at the target):

- the pump opened the batch and died before it sent the message: the batch stays open; the next look sends it.
- the message is lost: no worker holds the position's row, so the look sends it again after a while.
- the message is doubled: the second worker waits for T's row lock, or gives up; then it finds the tick applied.
- T dies before its commit: PostgreSQL rolls the rows, the failed events and the position back together.
- killed between T's commit and S's finish_batch: the batch comes again, `verdict` says finish, nothing is applied.
- finish_batch twice: PgQ answers 0, and nothing happens.
- T restored to an older position, or the source to an older tick: parked, with the way to repair it.
- the registration is moved meanwhile: PgQ does not know the batch any more; the message comes to nothing.
"""

from __future__ import annotations

from datetime import timedelta

from billiard.exceptions import SoftTimeLimitExceeded

from workers import alerts, database, logs, runs
from workers.database import Connection
from workers.dispatch import catalog, consumers, pump, shapes, source_store, store, urlencoded
from workers.dispatch.consumers import Scope
from workers.dispatch.context import Context, Tables
from workers.dispatch.loader import Loader, TooManyFailures
from workers.dispatch.source_store import Batch, Pgq
from workers.dispatch.store import Position
from workers.dispatch.verdicts import verdict
from workers.errors import Cancelled, NothingToDo, PermanentFailure, RetryLater
from workers.messages import DispatchBatch, DispatchSlice, Message
from workers.settings import Settings

log = logs.get(__name__)

LOCK_SECONDS = 2  # how long a second worker waits for the first one's batch before it leaves it alone
HOLD_BACK_SECONDS = 60.0
ONE_LINE_FOR = timedelta(hours=1)  # batches of an hour are one line of history


def dispatch_batch(message: DispatchBatch, settings: Settings) -> list[Message]:
    """Apply a consumer's open batch, finish it, and go on with the next one.

    Raises NothingToDo when the batch is finished or another worker is at it, RetryLater for locks and lost servers,
    PermanentFailure when the consumer is, or is now, parked.
    """
    scope = consumers.of(settings, message.consumer)
    consumers.ensure(scope)
    with (
        database.connection(scope.source, purpose=f"dispatch {scope.name}") as source,
        database.connection(scope.target, purpose=f"dispatch {scope.name}") as target,
    ):
        pgq = Pgq(source, scope.consumer.pgq_schema)
        batch = open_batch(pgq, scope, message.batch_id)
        position = locked(target, scope)
        # Asked again under the lock: while it was waited for, another worker may have finished this very batch.
        batch = open_batch(pgq, scope, message.batch_id)
        said = verdict(scope.name, position, batch)
        if said.what == "wait":
            raise PermanentFailure(said.why)
        if said.what == "park":
            consumers.park(target, scope, said.why)
            raise PermanentFailure(said.why)
        if said.what == "apply":
            assert position is not None
            slices = _slices(pgq, target, scope, position, batch)
            if slices is None:
                _apply(message, settings, scope, pgq, target, batch)
            elif left := _left(target, scope, batch, slices):
                target.commit()
                return left
            else:
                conclude(target, scope, batch)
        return finish(scope, pgq, target, batch)


def finish(scope: Scope, pgq: Pgq, target: Connection, batch: Batch) -> list[Message]:
    """Tell PgQ that an applied batch is done with, and look for the next one."""
    target.rollback()
    with database.translated(scope.source, pgq.conn):
        pgq.finish(batch.id)
        pgq.conn.commit()
    return pump.next_message(scope, pgq, target)


def conclude(target: Connection, scope: Scope, batch: Batch) -> None:
    """All slices of a batch are applied: the position moves, under the lock that the caller holds; commits."""
    done = store.slices_done(target, scope.name, batch.tick).values()
    _move(target, scope, batch, events=sum(one[0] for one in done), failed=sum(one[1] for one in done))
    target.commit()


def locked(conn: Connection, scope: Scope) -> Position | None:
    """The position under its lock, in a transaction that is ready for rows. Raises NothingToDo if it is taken."""
    try:
        store.begin(conn, lock_seconds=LOCK_SECONDS)
        found = store.lock(conn, scope.name)
    except database.DatabaseError as error:
        if database.sqlstate(error) != "55P03":
            raise
        conn.rollback()
        raise NothingToDo(f"another worker is at the batch of {scope.name}") from error
    store.wait_for_locks(conn, scope.room.lock_seconds)
    return found


def loader(conn: Connection, source: Connection, scope: Scope, *, batch: Batch) -> Loader:
    """A loader for a batch in the target's open transaction."""
    zone, encoding = source_store.source_facts(source)
    context = Context(
        name=scope.name,
        consumer=scope.consumer,
        target=scope.target,
        tick=batch.tick,
        end=batch.end,
        zone=zone,
        lock=timedelta(seconds=scope.room.lock_seconds),
        decode=urlencoded.decoder(encoding),
        tables=Tables(scope.source, scope.consumer, zone, name=scope.name, memory=conn),
    )
    return Loader(conn, context)


def load(
    loaded: Loader,
    run: runs.Run,
    scope: Scope,
    pgq: Pgq,
    target: Connection,
    batch: Batch,
    slice_of: tuple[int, int] | None = None,
) -> None:
    """Stream the events of a batch, or of a slice of it, into the target's transaction.

    When more fail than may, the consumer is parked and TooManyFailures raised.
    """

    def sink(lines: list[str]) -> None:
        # An error of the target is named as such, though it ends the source's COPY, too.
        with database.translated(scope.target, target):
            loaded.load(lines)
        run.count(events=len(lines))
        run.check()

    try:
        with database.translated(scope.source, pgq.conn):
            pgq.read(batch.id, sink, chunk_bytes=scope.room.chunk_bytes, with_time=scope.reads_time, slice_of=slice_of)
        with database.translated(scope.target, target):
            loaded.try_references_again()
    except database.DatabaseError as error:
        if database.sqlstate(error) == "P0001":  # the target's are their events' fault
            raise RetryLater(f"{scope.name}: PgQ does not give the batch: {database.first_line(error)}") from error
        refused = _refused(scope, error)
        _hold_back(target, scope, str(refused))
        raise refused from error
    except (RetryLater, SoftTimeLimitExceeded):
        raise
    except Cancelled as reason:
        # Otherwise the pump would send it again in a moment, and nothing would be cancelled.
        target.rollback()
        consumers.park(target, scope, f"{reason}; `headrace dispatch resume {scope.name}` goes on")
        raise
    except TooManyFailures as error:
        target.rollback()
        consumers.park(target, scope, str(error))
        raise
    except PermanentFailure as reason:
        _hold_back(target, scope, str(reason))
        raise
    except Exception as bug:
        _hold_back(target, scope, f"{scope.name}: {bug!r}; please report this, with the traceback in the log")
        raise


def keep_failures(loaded: Loader, conn: Connection, pgq: Pgq, scope: Scope, batch: Batch) -> int:
    """Write what failed into failed_event, whole; how many of them wait. The caller commits."""
    if not loaded.failures:
        return 0
    store.keep_failed(conn, loaded.rows_failed(pgq.whole(batch.id, list(loaded.failures))))
    waiting = [failure for failure in loaded.failures.values() if failure.state == "waiting"]
    subject = f"consumer {scope.name}"
    if waiting and not store.was_told_lately(conn, "failure", subject):
        alerts.raise_alert(
            conn, room="dispatch", event="failure", subject=subject,
            facts={
                "message": f"{len(waiting)} events could not be applied, the last one because: {waiting[-1].error}",
                "sqlstate": waiting[-1].sqlstate,
                "database": scope.target.name,
                "next": f"headrace dispatch failed {scope.name}",
            },
        )  # fmt: skip
    return len(waiting)


def _refused(scope: Scope, error: database.DatabaseError) -> PermanentFailure:
    """What the server does not let us do for a reason that no event is to blame for, such as a missing right."""
    return PermanentFailure(
        f"{scope.name}: {scope.target.name} does not take the batch: {database.first_line(error)} (SQLSTATE"
        f" {database.sqlstate(error)}); nothing of it is applied, and it is tried again every minute"
    )


def _hold_back(target: Connection, scope: Scope, why: str) -> None:
    if not target.closed:
        target.rollback()
        store.hold_back(target, scope.name, HOLD_BACK_SECONDS, why)
        target.commit()


def problem(scope: Scope, loaded: Loader, waiting: int) -> str:
    """One line about what failed, for the run row."""
    last = [failure for failure in loaded.failures.values() if failure.state == "waiting"][-1]
    return (
        f"{scope.name}: {waiting} events could not be applied, the last one because: {last.error};"
        f" `headrace dispatch failed {scope.name}`"
    )


def open_batch(pgq: Pgq, scope: Scope, number: int) -> Batch:
    """The batch of a message, as PgQ knows it. Raises NothingToDo when it is finished or somebody else's."""
    try:
        batch = pgq.batch(number)
    except database.DatabaseError as error:
        # PgQ raises P0001 for a batch that it does not know in some versions, and gives no row in others.
        if database.sqlstate(error) != "P0001":
            raise
        pgq.conn.rollback()
        batch = None
    if batch is None or (batch.queue, batch.consumer) != (scope.queue, scope.registered_as):
        raise NothingToDo(f"batch {number} is not an open batch of {scope.name}: it is finished, or was moved")
    return batch


def _apply(
    message: DispatchBatch, settings: Settings, scope: Scope, pgq: Pgq, target: Connection, batch: Batch
) -> None:
    with runs.running(
        message, control=settings.target(), work=scope.target, conn=target, host=settings.host, same_run=ONE_LINE_FOR
    ) as run:
        loaded = loader(target, pgq.conn, scope, batch=batch)
        load(loaded, run, scope, pgq, target, batch)
        waiting = keep_failures(loaded, target, pgq, scope, batch)
        _move(target, scope, batch, events=loaded.events, failed=len(loaded.failures))
        # The source is told only after this: a crash in between brings the batch again, and its tick makes it a no-op.
        target.commit()
        run.count(batches=1, ignored=loaded.ignored, failed=len(loaded.failures))
        if waiting:
            run.problems.append(problem(scope, loaded, waiting))
    log.info(
        "dispatch.batch", consumer=scope.name, tick=batch.tick, events=loaded.events, failed=len(loaded.failures),
        ignored=loaded.ignored,
    )  # fmt: skip


def _move(target: Connection, scope: Scope, batch: Batch, *, events: int, failed: int) -> None:
    store.move(target, scope.name, tick=batch.tick, at=batch.end, events=events, failed=failed)
    if scope.consumer.sync_pgq_ext and store.has_pgq_ext(target):
        store.set_completed_tick(target, scope.registered_as, batch.tick)


def _slices(pgq: Pgq, target: Connection, scope: Scope, position: Position, batch: Batch) -> int | None:
    """In how many slices this batch is applied; None for whole. What was begun in slices goes on in as many."""
    if position.sliced_tick == batch.tick:
        return position.slices
    if (
        scope.consumer.slices == 1
        or batch.events < scope.consumer.slice_events
        or not _can_slice(target, scope, pgq, batch)
    ):
        return None
    store.plan_slices(target, scope.name, batch.tick, scope.consumer.slices)
    return scope.consumer.slices


def _can_slice(target: Connection, scope: Scope, pgq: Pgq, batch: Batch) -> bool:
    """Whether slices keep the order of each row's events: one column of its key decides, for all of a destination."""
    zone, _encoding = source_store.source_facts(pgq.conn)
    tables = Tables(scope.source, scope.consumer, zone, name=scope.name, memory=target)
    columns: dict[object, str | None] = {}
    for named, first, truncates in pgq.forms(batch.id):
        _table, own = tables.rules(named)
        if own is None:
            continue
        column = None if first is None else own.renamed(first) or first
        if truncates or (first is not None and own.key is not None and first not in own.key):
            return False
        if columns.setdefault(own.destination, column) != column:
            return False
        # Two texts of one key, such as 1.0 and 1.00, would be of two slices, and a parent of another than its children.
        there = catalog.relation(target, own.destination)
        slicing = there.columns.get(column) if there is not None and column is not None else None
        if slicing is not None and not shapes.has_one_text(slicing.type):
            return False
        if catalog.has_references(target, own.destination):
            return False
    return True


def _left(target: Connection, scope: Scope, batch: Batch, slices: int) -> list[Message]:
    done = store.slices_done(target, scope.name, batch.tick)
    return [
        DispatchSlice(consumer=scope.name, batch_id=batch.id, tick=batch.tick, slice=number, slices=slices)
        for number in range(slices)
        if number not in done
    ]

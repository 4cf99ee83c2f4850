"""The consumers of the settings: where each reads and writes, its tables made there if they are missing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from workers import alerts, database, logs, migrations
from workers.database import Connection
from workers.dispatch import rules, source_store, store
from workers.dispatch.names import Table, table
from workers.dispatch.source_store import Pgq
from workers.dispatch_settings import SOURCE_ZONE, Consumer, Dispatch, Partition
from workers.errors import PermanentFailure, SettingsError
from workers.settings import Settings, did_you_mean
from workers.targets import Target

log = logs.get(__name__)

ROOMS = ("alerts", "dispatch")
_NO_PGQ = ("3F000", "42883", "42P01")  # no such schema, function or table
_READY_LASTS_SECONDS = 300.0

_ready: dict[str, float] = {}


@dataclass(frozen=True, slots=True)
class Scope:
    """One consumer: its settings, its databases, and its name in PgQ."""

    name: str
    consumer: Consumer
    room: Dispatch
    source: Target
    target: Target

    @property
    def queue(self) -> str:
        """The PgQ queue."""
        return self.consumer.queue

    @property
    def registered_as(self) -> str:
        """The consumer's name in PgQ."""
        return self.consumer.registered_as or self.name

    @property
    def reads_time(self) -> bool:
        """Whether the events' times are needed to place or describe a row."""
        rules = [self.consumer.partition, *(own.partition for own in self.consumer.tables.values() if own.partition)]
        meta = [self.consumer.meta_columns, *(own.meta_columns or () for own in self.consumer.tables.values())]
        return any("_ev_time" in columns for columns in meta) or any(layout.by == "event_time" for layout in rules)


def names(settings: Settings) -> list[str]:
    """The consumers that are looked after."""
    return [name for name, consumer in settings.dispatch.consumers.items() if consumer.enabled]


def of(settings: Settings, name: str) -> Scope:
    """A consumer by its name in the settings. Raises PermanentFailure for an unknown one."""
    consumer = settings.dispatch.consumers.get(name)
    if consumer is None:
        known = did_you_mean(name, settings.dispatch.consumers) if settings.dispatch.consumers else "; there is none"
        raise PermanentFailure(f"the settings have no consumer {name!r} below dispatch.consumers{known}")
    try:
        return Scope(
            name, consumer, settings.dispatch, settings.target(consumer.source), settings.target(consumer.target)
        )
    except SettingsError as error:
        raise PermanentFailure(str(error)) from error


def ensure(scope: Scope) -> None:
    """Make our tables at the target if they are missing; asked again every few minutes.

    Raises PermanentFailure when the login may not, ServerUnavailable when the target cannot be reached.
    """
    if time.monotonic() < _ready.get(scope.target.dsn, 0):
        return
    with database.connection(scope.target, purpose="dispatch setup") as conn:
        migrate(conn, scope.target)
    _ready[scope.target.dsn] = time.monotonic() + _READY_LASTS_SECONDS


def migrate(conn: Connection, target: Target) -> list[str]:
    """Apply what is missing of our tables; the names of what was applied."""
    return migrations.ensure(conn, target, ROOMS, room="dispatch")


def park(conn: Connection, scope: Scope, why: str) -> None:
    """Stop a consumer until a person has looked, and tell people; commits."""
    if store.park(conn, scope.name, scope.queue, scope.registered_as, why):
        log.error("dispatch.parked", consumer=scope.name, reason=why)
        alerts.raise_alert(
            conn, room="dispatch", event="parked", subject=f"consumer {scope.name}",
            facts={"message": why, "database": scope.target.name, "next": f"headrace dispatch status {scope.name}"},
        )  # fmt: skip
    conn.commit()


def remember_leaves(scope: Scope, target: Connection) -> None:
    """Write down which partitions the source's tables have, for events that are read when one is gone; commits."""
    with database.connection(scope.source, purpose="dispatch tables", autocommit=True) as source:
        leaves = source_store.leaves_of_queue(source, scope.consumer.pgq_schema, scope.queue)
    for leaf, root in leaves:
        store.remember_leaf(target, scope.name, leaf, root)
    target.commit()


def parents(scope: Scope) -> dict[Table, Partition]:
    """The destinations that a consumer cuts by time: of the tables that write into its queue, and of those it names."""
    with database.connection(scope.source, purpose="dispatch tables", autocommit=True) as source:
        zone, _encoding = source_store.source_facts(source)
        sources = [one.table for one in Pgq(source, scope.consumer.pgq_schema).tables(scope.queue)]
    sources += [table(name) for name in scope.consumer.tables]
    found: dict[Table, Partition] = {}
    for one in sources:
        own = rules.of(scope.consumer, rules.stripped(scope.consumer, one))
        if own is not None and own.partition.kind != "none":
            layout = own.partition
            if layout.timezone == SOURCE_ZONE:
                layout = layout.model_copy(update={"timezone": zone})
            found.setdefault(own.destination, layout)
    return found


@contextmanager
def asking(scope: Scope, conn: Connection) -> Iterator[None]:
    """Turn PgQ's own complaints, or its absence, into a PermanentFailure that says what to do."""
    try:
        yield
    except database.DatabaseError as error:
        code = database.sqlstate(error)
        if code not in ("P0001", *_NO_PGQ):
            raise
        if not conn.autocommit:
            conn.rollback()
        said = database.first_line(error)
        if code == "P0001":
            raise PermanentFailure(
                f"{scope.name}: PgQ at {scope.source.name} says: {said}; `headrace dispatch register {scope.name}`"
                " registers the consumer (--create-queue: makes the queue, too)"
            ) from error
        raise PermanentFailure(
            f"{scope.name}: {scope.source.name} has no PgQ in schema {scope.consumer.pgq_schema!r}: {said};"
            " `headrace dispatch install-pgq`, or set pgq_schema"
        ) from error


def forget() -> None:
    """Ask every target anew."""
    _ready.clear()

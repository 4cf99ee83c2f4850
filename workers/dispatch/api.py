"""What others may ask of dispatch: what is due, how consumers stand, and what a person wants done."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from workers import database, migrations
from workers.dispatch import (
    consumers,
    cube_file,
    partitions,
    pgq_install,
    positions,
    pump,
    store,
    tending,
    triggers,
    verification,
    watch,
)
from workers.dispatch.cube_file import SWITCHES, CubeFile
from workers.dispatch.names import Table, table
from workers.dispatch.partitions import PartitionRow
from workers.dispatch.positions import Placed
from workers.dispatch.setup_catalog import Step as SetupStep
from workers.dispatch.source_store import Pgq
from workers.dispatch.verification import Comparison
from workers.errors import PermanentFailure
from workers.messages import Message, TendPartitions
from workers.settings import Settings
from workers.targets import Target

__all__ = ["SWITCHES", "Comparison", "CubeFile", "PartitionRow", "Placed", "SetupStep"]

adopt = positions.adopt
alerts_waiting = pump.alerts_waiting
begin_drop_in = positions.begin_drop_in
look = pump.look
maintain = watch.maintain
names = consumers.names
read_cube = cube_file.read
cube_as_yaml = cube_file.as_yaml
register = positions.register
resume = positions.resume
rewind = positions.rewind
status = watch.status
tick = watch.tick
unregister = positions.unregister
verify = verification.verify
watch_lag = watch.watch


def check_name(settings: Settings, name: str) -> str:
    """The name, if the settings have such a consumer. Raises PermanentFailure."""
    return consumers.of(settings, name).name


def migrations_of(settings: Settings) -> list[tuple[Target, str]]:
    """(database, migration room) of every database that events are dispatched into."""
    targets = {settings.dispatch.consumers[name].target for name in names(settings)}
    return [(settings.target(name), room) for name in sorted(targets) for room in consumers.ROOMS]


def set_up(settings: Settings, name: str, *, dry_run: bool = False) -> list[tuple[str, str]]:
    """Make our tables at a consumer's target; (name, statement) of what was, or would be, applied."""
    scope = consumers.of(settings, name)
    with database.connection(scope.target, purpose="dispatch setup") as target:
        missing = [one for room in consumers.ROOMS for one in migrations.status(target, room)[1]]
        target.rollback()
        if not dry_run:
            consumers.migrate(target, scope.target)
    return [(one.name, one.text) for one in missing]


def problems(settings: Settings, name: str) -> list[str]:
    """What is wrong with a consumer before anything has run: for `headrace validate`."""
    known = watch.status(settings, name)
    return [need for need in known["needs"] if "not registered" in need or "no PgQ" in need or "there is no" in need]


def failed(settings: Settings, name: str, *, every: bool = False, limit: int = 20) -> list[dict[str, Any]]:
    """Failed events of a consumer, newest first; with `every` those that are settled, too."""
    scope = consumers.of(settings, name)
    consumers.ensure(scope)
    with database.connection(scope.target, purpose="dispatch failed", autocommit=True) as target:
        return store.failed_events(target, scope.name, every=every, limit=limit)


def drop(settings: Settings, name: str, events: Sequence[int] | None) -> int:
    """Give failed events up: those with these ids, or (None) all that wait; how many."""
    scope = consumers.of(settings, name)
    consumers.ensure(scope)
    with database.connection(scope.target, purpose="dispatch drop", autocommit=True) as target:
        return store.drop_failed(target, scope.name, events)


def forget_settled(settings: Settings, older: timedelta) -> int:
    """Delete failed events that were settled longer ago than this, at every target; how many."""
    gone = 0
    for name in {settings.dispatch.consumers[one].target for one in names(settings)}:
        with database.connection(settings.target(name), purpose="dispatch forget", autocommit=True) as target:
            gone += store.forget_settled(target, older) if store.is_set_up(target) else 0
    return gone


def tables_of(settings: Settings, name: str) -> list[tuple[Table, tuple[str, ...]]]:
    """The source tables whose triggers write into a consumer's queue, with their keys."""
    scope = consumers.of(settings, name)
    with database.connection(scope.source, purpose="dispatch tables", autocommit=True) as source:
        return [(one.table, one.key) for one in Pgq(source, scope.consumer.pgq_schema).tables(scope.queue)]


def trigger_plan(
    settings: Settings,
    name: str,
    tables: Sequence[str],
    *,
    kind: Literal["logutriga", "jsontriga"] = "logutriga",
    truncate: bool = True,
    pin: bool = True,
    options: Sequence[str] = (),
    insert_only: bool = False,
) -> list[SetupStep]:
    """The statements that let tables' changes go into a consumer's queue, in order. Changes nothing."""
    scope = consumers.of(settings, name)
    with database.connection(scope.source, purpose="dispatch triggers", autocommit=True) as source:
        return triggers.plan(
            source, schema=scope.consumer.pgq_schema, queue=scope.queue, tables=[table(one) for one in tables],
            kind=kind, truncate=truncate, pin=pin, options=options, insert_only=insert_only,
        )  # fmt: skip


def apply_triggers(settings: Settings, name: str, steps: Sequence[SetupStep]) -> None:
    """Run what `trigger_plan` gave, in one transaction."""
    triggers.apply(consumers.of(settings, name).source, steps)


def trigger_script(steps: Sequence[SetupStep]) -> str:
    """The same as text for psql."""
    return triggers.script(steps)


def install_pgq(
    settings: Settings, database_name: str, *, source: Path | None = None, dry_run: bool = False
) -> list[SetupStep]:
    """Install PgQ into a database of the settings; what was, or would be, done."""
    return pgq_install.install(settings, database_name, source=source, dry_run=dry_run)


def partition_listing(settings: Settings, name: str) -> dict[str, list[PartitionRow]]:
    """The partitions of each destination of a consumer."""
    scope = consumers.of(settings, name)
    consumers.ensure(scope)
    with database.connection(scope.target, purpose="dispatch partitions", autocommit=True) as target:
        return {str(parent): partitions.listing(target, parent) for parent in consumers.parents(scope)}


def partition_plan(settings: Settings, name: str) -> tuple[list[str], list[str]]:
    """(statements that tending the partitions would run now, problems). Changes nothing."""
    scope = consumers.of(settings, name)
    consumers.ensure(scope)
    with database.connection(scope.target, purpose="dispatch partitions") as target:
        steps, trouble = tending.plan(scope, target)
    return [f"-- {step.what}\n{step.statement}" for step in steps], trouble


def due_for_tending(settings: Settings) -> list[Message]:
    """The messages that have partitions tended, one per consumer."""
    return [TendPartitions(consumer=name) for name in names(settings)]


def pump_until_dry(settings: Settings, name: str) -> list[Message]:
    """For a drain in this process: what to do now; [] when no new tick is there, or the consumer is parked.

    Raises PermanentFailure for a consumer that is parked.
    """
    scope = consumers.of(settings, name)
    consumers.ensure(scope)
    with database.connection(scope.target, purpose="dispatch drain", autocommit=True) as target:
        found = store.position(target, scope.name)
    if found is not None and found["state"] == "parked":
        raise PermanentFailure(f"{name} is parked: {found['problem']}")
    with database.connection(scope.target, purpose="dispatch drain") as target, database.connection(
        scope.source, purpose="dispatch drain"
    ) as source:  # fmt: skip
        return pump.next_message(scope, Pgq(source, scope.consumer.pgq_schema), target, again_after=0.0)


def has_ticks(settings: Settings, name: str) -> bool:
    """Whether the source has an open batch of a consumer, or a tick that it has not come to."""
    scope = consumers.of(settings, name)
    with database.connection(scope.source, purpose="dispatch drain", autocommit=True) as source:
        pgq = Pgq(source, scope.consumer.pgq_schema)
        standing, queue = pgq.registration(scope.queue, scope.registered_as), pgq.queue(scope.queue)
    if standing is None or queue is None:
        return False
    return standing.current_batch is not None or bool(queue["last_tick_id"] > standing.last_tick)


def source_names(settings: Settings) -> list[str]:
    """The databases of the settings that consumers read from."""
    return sorted({settings.dispatch.consumers[name].source for name in names(settings)})

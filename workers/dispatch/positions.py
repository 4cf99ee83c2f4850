"""Where a consumer begins, and how its place is found again: register, adopt, rewind, resume. Persons ask for these."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from workers import database
from workers.database import Connection
from workers.dispatch import consumers, store
from workers.dispatch.consumers import Scope
from workers.dispatch.source_store import Pgq
from workers.errors import PermanentFailure
from workers.settings import Settings


@dataclass(frozen=True, slots=True)
class Placed:
    """What was done, in words, and the tick that the target stands at now."""

    what: str
    tick: int


def register(settings: Settings, name: str, *, create_queue: bool = False) -> Placed:
    """Register a consumer with PgQ, at the newest tick, and give it its position. Twice is harmless.

    Raises PermanentFailure when there is no such queue, or cube_dispatcher has a mark here that must be adopted.
    """
    scope = consumers.of(settings, name)
    with _both(scope) as (pgq, target):
        if not pgq.queue_exists(scope.queue):
            if not create_queue:
                raise PermanentFailure(
                    f"{scope.source.name} has no queue {scope.queue!r}; make it with --create-queue, or correct `queue`"
                )
            pgq.create_queue(scope.queue)
        _refuse_cubes_own(scope, target)
        # Our row is there, and locked, before a worker can miss it; it says where only once PgQ knows. A death between
        # the two commits leaves a registration without a position: the next `register` gives it one.
        new = store.insert(target, scope.name, scope.queue, scope.registered_as, 0, None)
        made = pgq.register(scope.queue, scope.registered_as)
        tick = _registered_at(pgq, scope)
        pgq.conn.commit()
        if new:
            at = pgq.tick_time(scope.queue, tick)
            store.set_to(target, scope.name, scope.queue, scope.registered_as, tick, at)
        target.commit()
        consumers.remember_leaves(scope, target)
        found = store.position(target, scope.name)
        assert found is not None
        if new:
            return Placed("registered" if made else "was registered; its position begins there", tick)
        if found["tick"] is None:
            raise PermanentFailure(f"{name} is parked: {found['problem']}; `headrace dispatch rewind {name} --reset`")
        return Placed("was registered already", found["tick"])


def adopt(settings: Settings, name: str) -> Placed:
    """Go on where cube_dispatcher stopped: its mark at the target becomes the position. Twice is harmless.

    Raises PermanentFailure when there is no mark, it does not fit the registration, or the old program seems to run.
    """
    scope = consumers.of(settings, name)
    with _both(scope) as (pgq, target):
        standing = pgq.registration(scope.queue, scope.registered_as)
        if standing is None:
            raise PermanentFailure(
                f"{scope.registered_as} is not registered on queue {scope.queue} of {scope.source.name}; set"
                " registered_as to cube_dispatcher's consumer name, or `headrace dispatch register`"
            )
        mark = store.completed_tick(target, scope.registered_as) if store.has_pgq_ext(target) else None
        if mark is None:
            raise PermanentFailure(
                f"{scope.target.name} has no mark of {scope.registered_as} in pgq_ext.completed_tick; nothing to adopt"
            )
        known = {standing.last_tick: "its last batch is finished"}
        if standing.next_tick is not None:
            known[standing.next_tick] = "its last batch is applied, and will be finished"
        if mark not in known:
            raise PermanentFailure(
                f"cube_dispatcher's mark is tick {mark}, and its registration stands at {standing.last_tick}: it lost"
                " its place before; repair that with its own --rewind or --reset, then adopt"
            )
        at = pgq.tick_time(scope.queue, mark)
        if not store.insert(target, scope.name, scope.queue, scope.registered_as, mark, at):
            found = store.lock(target, scope.name)
            assert found is not None
            if found.tick == mark and found.state == "active":
                return Placed("was adopted already", mark)
            if found.tick is not None and found.tick > mark:
                raise PermanentFailure(
                    f"{name} stands at tick {found.tick} here, beyond cube_dispatcher's mark {mark}; nothing to adopt"
                )
            store.set_to(target, scope.name, scope.queue, scope.registered_as, mark, at)
        target.commit()
        consumers.remember_leaves(scope, target)
        return Placed(f"adopted from cube_dispatcher: {known[mark]}", mark)


def begin_drop_in(settings: Settings, name: str) -> Placed | None:
    """Before a drop-in run: register as cube_dispatcher did, and take its mark over where it has one.

    None when the consumer had its position already and the mark agrees.
    """
    scope = consumers.of(settings, name)
    with _both(scope) as (pgq, target):
        if not pgq.queue_exists(scope.queue):
            raise PermanentFailure(f"{scope.source.name} has no queue {scope.queue!r}; check pgq_queue_name")
        if pgq.registration(scope.queue, scope.registered_as) is None:
            pgq.register(scope.queue, scope.registered_as)
        pgq.conn.commit()
        standing = pgq.registration(scope.queue, scope.registered_as)
        assert standing is not None
        store.begin(target, lock_seconds=scope.room.lock_seconds)
        mark = store.completed_tick(target, scope.registered_as) if store.has_pgq_ext(target) else None
        tick = mark if mark is not None else standing.last_tick
        at = pgq.tick_time(scope.queue, tick)
        new = store.insert(target, scope.name, scope.queue, scope.registered_as, tick, at)
        if not new and mark is not None:
            found = store.lock(target, scope.name)
            assert found is not None
            # cube_dispatcher ran in between: its mark fits the registration, and ours does not.
            fits = (standing.last_tick, standing.next_tick)
            behind = found.tick is not None and found.tick < mark
            if found.state == "active" and mark in fits and (found.tick not in fits or behind):
                store.set_to(target, scope.name, scope.queue, scope.registered_as, mark, at)
                new = True
        target.commit()
        return Placed("begins at cube_dispatcher's mark" if mark is not None else "begins here", tick) if new else None


def rewind(settings: Settings, name: str, *, reset: bool = False, to_tick: int | None = None) -> Placed:
    """Bring source and target together again, and let the consumer go on.

    The source goes back (or forth) to the target's position, so that nothing is lost or doubled; with `to_tick` both
    go there; with `reset` the target's position is forgotten and it goes on where the source stands: what lies between
    is not applied. Raises PermanentFailure when the source does not have the tick any more.
    """
    scope = consumers.of(settings, name)
    with _both(scope) as (pgq, target):
        store.begin(target, lock_seconds=scope.room.lock_seconds)
        found = store.lock(target, scope.name)
        if reset:
            tick = _registered_at(pgq, scope)
        elif to_tick is not None:
            tick = to_tick
        elif found is None or found.tick is None:
            raise PermanentFailure(
                f"{name} has no position at {scope.target.name}; choose one: --to-tick N (`headrace dispatch status"
                f" {name}` shows the source's), or --reset to go on where the source stands"
            )
        else:
            tick = found.tick
        if found is not None and found.sliced_tick is not None and not reset and to_tick is None:
            standing = pgq.registration(scope.queue, scope.registered_as)
            if standing is not None and (standing.last_tick, standing.next_tick) == (found.tick, found.sliced_tick):
                store.resume(target, scope.name)
                target.commit()
                return Placed("goes on with the slices of the open batch", tick)
            if store.slices_done(target, scope.name, found.sliced_tick):
                raise PermanentFailure(
                    f"{name}: some slices of the batch up to tick {found.sliced_tick} are applied, and the source has"
                    " another batch open; choose --to-tick N or --reset, and compare afterwards (`headrace dispatch"
                    f" verify {name}`)"
                )
        at = pgq.tick_time(scope.queue, tick)
        if at is None:
            raise PermanentFailure(
                f"{scope.source.name} has no tick {tick} of queue {scope.queue} any more (or not yet): its events"
                " are gone. Bring the missing rows over yourself (`headrace dispatch verify` finds them), then"
                f" `headrace dispatch rewind {name} --reset`"
            )
        if not reset:
            pgq.register_at(scope.queue, scope.registered_as, tick)
            pgq.conn.commit()
        elif found is not None and found.tick is not None and _is_open(pgq, scope, found.tick):
            # The open batch is applied here already: going on before it would double it.
            tick, at = found.tick, pgq.tick_time(scope.queue, found.tick)
        if found is None:
            store.insert(target, scope.name, scope.queue, scope.registered_as, tick, at)
        else:
            store.set_to(target, scope.name, scope.queue, scope.registered_as, tick, at)
            if not reset:
                store.come_again(target, scope.name, tick)
        target.commit()
        return Placed("the target goes on where the source stands" if reset else "the source stands there now", tick)


def resume(settings: Settings, name: str) -> bool:
    """Let a parked consumer try again where it stands; False when it was not parked, or has no position."""
    scope = consumers.of(settings, name)
    with database.connection(scope.target, purpose="dispatch resume", autocommit=True) as target:
        return store.resume(target, scope.name)


def unregister(settings: Settings, name: str) -> bool:
    """Give a consumer up at the source, and forget its position; False when there was neither. Failed events stay."""
    scope = consumers.of(settings, name)
    with _both(scope) as (pgq, target):
        standing = pgq.registration(scope.queue, scope.registered_as) if pgq.queue_exists(scope.queue) else None
        # Under the position's lock: no worker is in the middle of a batch.
        store.begin(target, lock_seconds=scope.room.lock_seconds)
        store.lock(target, scope.name)
        if standing is not None:
            pgq.unregister(scope.queue, scope.registered_as)
            pgq.conn.commit()
        forgotten = store.forget(target, scope.name)
        target.commit()
        return standing is not None or forgotten


def _registered_at(pgq: Pgq, scope: Scope) -> int:
    standing = pgq.registration(scope.queue, scope.registered_as)
    if standing is None:
        raise PermanentFailure(
            f"{scope.registered_as} is not registered on queue {scope.queue} of {scope.source.name};"
            f" `headrace dispatch register {scope.name}`"
        )
    return standing.last_tick


def _is_open(pgq: Pgq, scope: Scope, tick: int) -> bool:
    standing = pgq.registration(scope.queue, scope.registered_as)
    return standing is not None and standing.next_tick == tick


def _refuse_cubes_own(scope: Scope, target: Connection) -> None:
    if not store.exists(target, scope.name) and store.has_pgq_ext(target):
        mark = store.completed_tick(target, scope.registered_as)
        if mark is not None:
            raise PermanentFailure(
                f"cube_dispatcher has been here as {scope.registered_as}, up to tick {mark}; stop it and"
                f" `headrace dispatch adopt {scope.name}`, or choose another registered_as"
            )


@contextmanager
def _both(scope: Scope) -> Iterator[tuple[Pgq, Connection]]:
    consumers.ensure(scope)
    with (
        database.connection(scope.source, purpose="dispatch position") as source,
        database.connection(scope.target, purpose="dispatch position") as target,
    ):
        pgq = Pgq(source, scope.consumer.pgq_schema)
        if not pgq.is_installed():
            raise PermanentFailure(
                f"{scope.source.name} has no PgQ in schema {pgq.schema!r}; `headrace dispatch install-pgq`, or set"
                " pgq_schema"
            )
        yield pgq, target

"""How consumers and queues stand: lag, ticker, rotation, failed events; and the ticker where no pgqd runs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from workers import alerts, database, logs
from workers.database import Connection
from workers.dispatch import catalog, consumers, store
from workers.dispatch.consumers import Scope
from workers.dispatch.source_store import Pgq, Registration
from workers.settings import Settings

log = logs.get(__name__)

TICKER_GRACE = timedelta(seconds=30)
MAINTENANCE_ROUNDS = 1000  # of one operation that wants to be called again: it moves ten events a call


def tick(settings: Settings, name: str) -> int | None:
    """Make a tick in a consumer's queue if one is due; its number. Only for consumers with `run_ticker`."""
    scope = consumers.of(settings, name)
    if not scope.consumer.run_ticker:
        return None
    with (
        database.connection(scope.source, purpose="dispatch ticker") as source,
        consumers.asking(scope, source),
    ):
        made = Pgq(source, scope.consumer.pgq_schema).tick(scope.queue)
        source.commit()
    return made


def maintain(settings: Settings, name: str) -> list[str]:
    """Rotate the queue's tables and bring retried events back, each step in a transaction of its own; what was done.

    Only for consumers with `run_ticker`; it serves every queue of their database, as pgqd does.
    """
    scope = consumers.of(settings, name)
    done: list[str] = []
    if not scope.consumer.run_ticker:
        return done
    with database.connection(scope.source, purpose="dispatch maintenance", autocommit=True) as source:
        pgq = Pgq(source, scope.consumer.pgq_schema)
        with consumers.asking(scope, source):
            wanted = pgq.maintenance()
        operations = [*wanted, (f"{pgq.schema}.maint_retry_events", None)]
        for function, argument in operations:
            try:
                for _ in range(MAINTENANCE_ROUNDS):
                    if not pgq.maintain(function, argument):
                        break
            except database.DatabaseError as error:
                if source.closed:
                    raise
                log.warning("dispatch.maintenance", function=function, argument=argument, reason=str(error).strip())
                continue
            done.append(f"{function} {argument or ''}".strip())
    return done


def status(settings: Settings, name: str) -> dict[str, Any]:
    """Everything about one consumer: PgQ's own figures, the position, what waits, and what needs a person.

    Raises ServerUnavailable when source or target cannot be reached.
    """
    scope = consumers.of(settings, name)
    document: dict[str, Any] = {
        "consumer": name,
        "queue": scope.queue,
        "registered_as": scope.registered_as,
        "source": scope.source.name,
        "target": scope.target.name,
        "mode": scope.consumer.mode,
    }
    with database.connection(scope.target, purpose="dispatch status", autocommit=True) as target:
        document |= _at_target(target, scope)
    with database.connection(scope.source, purpose="dispatch status", autocommit=True) as source:
        pgq = Pgq(source, scope.consumer.pgq_schema)
        document["pgq_installed"] = pgq.is_installed()
        queue = pgq.queue(scope.queue) if document["pgq_installed"] else None
        registration = pgq.registration(scope.queue, scope.registered_as) if queue is not None else None
    document |= _at_source(registration, queue)
    document["default_rows"] = _default_rows(scope) if registration is not None else []
    document["needs"] = _needs(scope, document)
    return document


def watch(settings: Settings, name: str) -> bool:
    """Tell people when a consumer begins to be late, and when it is in time again; whether it is late."""
    scope = consumers.of(settings, name)
    consumers.ensure(scope)
    known = status(settings, name)
    why = [need for need in known["needs"] if need.startswith(_LATE)]
    with database.connection(scope.target, purpose="dispatch watch") as target:
        if known["state"] == "active" and store.note_late(target, scope.name, is_late=bool(why)):
            event = "late" if why else "recovery"
            text = "; ".join(why) or f"{name} is in time again: {known['lag_seconds']:.0f} s"
            facts = {"message": text, "database": scope.target.name, "next": f"headrace dispatch status {name}"}
            alerts.raise_alert(target, room="dispatch", event=event, subject=f"consumer {name}", facts=facts)
        target.commit()
    return bool(why)


_LATE = "late: "


def _at_target(target: Connection, scope: Scope) -> dict[str, Any]:
    found: dict[str, Any] = {"state": "not registered", "tick": None, "tick_at": None, "problem": None}
    found |= {"batches": 0, "events": 0}
    if not store.is_set_up(target):
        return found | {"failed_events": 0, "failed_since": None, "newest_error": None}
    position = store.position(target, scope.name)
    if position is not None:
        names = ("state", "tick", "tick_at", "problem", "parked_at", "late_since", "batches", "events", "updated_at")
        found |= {key: position[key] for key in names}
    count, since, error = store.count_failed(target, scope.name)
    return found | {"failed_events": count, "failed_since": since, "newest_error": error}


def _default_rows(scope: Scope) -> list[str]:
    """The default partitions that have rows: of moments that no partition is for."""
    parents = [parent for parent, layout in consumers.parents(scope).items() if layout.kind == "native"]
    if not parents:
        return []
    with database.connection(scope.target, purpose="dispatch status", autocommit=True) as target:
        found = [catalog.default_with_rows(target, parent) for parent in parents]
    return [str(one) for one in found if one is not None]


def _at_source(registration: Registration | None, queue: dict[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"queue_exists": queue is not None, "registered": registration is not None}
    for name in ("lag_seconds", "last_seen_seconds", "last_tick", "current_batch", "next_tick", "pending_events"):
        found[name] = None
    if registration is not None:
        found |= {
            "lag_seconds": registration.lag.total_seconds(),
            "last_seen_seconds": registration.last_seen.total_seconds(),
            "last_tick": registration.last_tick,
            "current_batch": registration.current_batch,
            "next_tick": registration.next_tick,
            "pending_events": registration.pending_events,
        }
    # PgQ notes when the batch was opened as the time when the consumer was last seen.
    found["open_batch_seconds"] = found["last_seen_seconds"] if found["current_batch"] is not None else None
    if queue is not None:
        lag = queue["ticker_lag"]
        found |= {
            "ticker_lag_seconds": lag.total_seconds() if lag is not None else None,
            "ticker_paused": queue["ticker_paused"],
            "ticker_alive": is_ticker_alive(queue),
            "events_per_second": queue["ev_per_sec"],
            "rotation_blocked": bool(queue["rotation_blocked"]),
            "rotated_at": queue["switched_at"],
        }
    return found


def is_ticker_alive(queue: dict[str, Any]) -> bool:
    """Whether ticks come as the queue's settings promise: with events soon, without any once per idle period."""
    if queue["ticker_lag"] is None:
        return False
    if queue["external_ticker"]:
        return True
    promised = queue["ticker_max_lag"] if queue["ev_new"] else queue["ticker_idle_period"]
    alive: bool = queue["ticker_lag"] <= max(promised, timedelta(seconds=1)) + TICKER_GRACE
    return alive


def _needs(scope: Scope, known: dict[str, Any]) -> list[str]:
    """Every reason to wake somebody up because of this consumer, with what to do."""
    name, needs = scope.name, []
    where = f"queue {scope.queue} of {scope.source.name}"
    if not known["pgq_installed"]:
        schema = scope.consumer.pgq_schema
        return [f"{name}: {scope.source.name} has no PgQ in schema {schema!r}; `headrace dispatch install-pgq`"]
    if not known["queue_exists"]:
        return [f"{name}: there is no {where}; `headrace dispatch register {name} --create-queue`"]
    if known["state"] == "parked":
        needs.append(f"{name} is parked: {known['problem']}")
    elif known["state"] == "not registered" or not known["registered"]:
        needs.append(f"{name} is not registered; `headrace dispatch register {name}` (or `adopt`)")
    if known["state"] == "active" and known["problem"]:
        needs.append(str(known["problem"]))
    if known["failed_events"]:
        needs.append(
            f"{name}: {known['failed_events']} events could not be applied, the newest because:"
            f" {known['newest_error']}; `headrace dispatch failed {name}`, then `replay` or `drop`"
        )
    if known["ticker_paused"]:
        needs.append(f"{_LATE}{where}: the ticker is paused; see pgq.set_queue_config(..., 'ticker_paused', 'false')")
    elif not known["ticker_alive"]:
        lag = known["ticker_lag_seconds"]
        ago = "never" if lag is None else f"{lag:.0f} s ago"
        needs.append(f"{_LATE}{where}: the last tick was {ago}; start pgqd, or set run_ticker for {name}")
    elif known["lag_seconds"] is not None and known["lag_seconds"] > scope.consumer.max_lag_seconds:
        pending = known["pending_events"]
        needs.append(
            f"{_LATE}{name} is {known['lag_seconds']:.0f} s behind, about {pending} events wait; is a worker up?"
        )
    for table in known["default_rows"]:
        needs.append(
            f"{name}: the default partition {table} has rows, of moments that no partition is for; make the partitions"
            " (Headrace moves such rows when it makes theirs), or mend the dates"
        )
    if known["rotation_blocked"]:
        needs.append(
            f"{where}: its tables are not rotated since {known['rotated_at']:%Y-%m-%d %H:%M} UTC, so that it grows;"
            " some consumer is far behind or dead (pgq.get_consumer_info() shows them), or nothing runs its maintenance"
        )
    return needs

"""Requests: what people and plans ask for: a table rewritten, prepared, swapped, paused, given up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from workers import alerts, database, execution, logs, pauses
from workers.database import Connection
from workers.errors import HeadraceError, NothingToDo, Paused, PermanentFailure
from workers.messages import DeliverAlerts, Message, RepackStep
from workers.repack import bloat_catalog, machine, places, preflight, preflight_catalog, reindexing, store, twin_catalog
from workers.repack.store import Request
from workers.repack_settings import DatabaseRules, Goal, Limits, TableRules
from workers.settings import Settings

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person may say beside the settings; None: as they say."""

    goal: Goal = "swap"
    engine: str = "shadow"
    rules: TableRules | None = None
    limits: Limits | None = None
    plan: str | None = None
    by: str | None = None
    bloat_bytes: int | None = None


def rules_of(settings: Settings, database_name: str, schema: str, table: str) -> TableRules:
    """What a table gets by the settings: its own rules, and its schema's or database's fillfactor if they say none."""
    own = settings.repack.databases.get(database_name, DatabaseRules())
    found = own.tables.get(f"{schema}.{table}", TableRules())
    return found.model_copy(update={"fillfactor": own.fillfactor_of(schema, table)})


def tables(conn: Connection, text: str) -> list[tuple[str, str]]:
    """(schema, table) of what a person calls a table; of a partitioned one its leaf partitions.

    Raises PermanentFailure for a name that is none.
    """
    schema, table = preflight_catalog.find(conn, text)
    return preflight_catalog.leaves(conn, schema, table) or [(schema, table)]


def refusals(conn: Connection, found: preflight_catalog.Facts, rules: TableRules, engine: str) -> list[str]:
    """Every reason against a rewrite; to rebuild indexes only, a table needs no key, and nothing of it is swapped."""
    if engine != "reindex" or found.subject is None:
        return preflight.refusals(found, rules)
    try:
        reindexing.plan(conn, found.schema, found.table, tablespace=rules.index_tablespace)
    except PermanentFailure as reason:
        return [str(reason)]
    return []


def request(settings: Settings, database_name: str, schema: str, table: str, wish: Wish) -> int:
    """Begin to rewrite a table; the request's id. Nothing is made yet but its row.

    Raises PermanentFailure with every reason why the table is refused, or when it is being rewritten already.
    """
    target = settings.target(database_name)
    places.ensure(target)
    rules = wish.rules or rules_of(settings, database_name, schema, table)
    with database.connection(target, purpose="repack request") as conn:
        found = preflight_catalog.facts(conn, schema, table)
        if reasons := refusals(conn, found, rules, wish.engine):
            raise PermanentFailure("; ".join(reasons))
        assert found.subject is not None
        facts = twin_catalog.facts(conn, found.subject.oid)
        limits = wish.limits or settings.repack.limits
        repack = store.request(conn, {
            "schema": schema, "table": table, "oid": found.subject.oid, "engine": wish.engine, "goal": wish.goal,
            "options": {
                "rules": rules.model_dump(mode="json"), "limits": limits.model_dump(mode="json"),
                "bloat_bytes": wish.bloat_bytes,
            },
            "plan": wish.plan, "by": wish.by, "bytes": facts.bytes, "gain": wish.bloat_bytes,
        })  # fmt: skip
        if repack is None:
            active = store.active_of(conn, schema, table)
            raise PermanentFailure(
                f"{facts.qualified} is being rewritten already (repack {active}): see `headrace repack status`"
            )
        conn.commit()
    if wish.plan is None:
        _estimate(settings, database_name, schema, table, repack, wish)
    log.info("repack.requested", table=f"{schema}.{table}", repack=repack, goal=wish.goal, engine=wish.engine)
    return repack


def _estimate(settings: Settings, name: str, schema: str, table: str, repack: int, wish: Wish) -> None:
    """Remember what a person's rewrite should gain, to be compared with what it does; no reason not to begin."""
    try:
        with database.connection(settings.target(name), purpose="repack estimate", autocommit=True) as conn:
            for one in bloat_catalog.estimates(conn, (), (f"{schema}.{table}",), (), exact=False):
                if (one.schema, one.table) == (schema, table):
                    bloat_catalog.remember(conn, one, f"asked for by {wish.by or 'somebody'}", repack)
    except (HeadraceError, database.DatabaseError) as error:
        log.warning("repack.not_estimated", table=f"{schema}.{table}", reason=database.first_line(error))


def message(database_name: str, repack: int, schema: str, table: str) -> RepackStep:
    """What takes a request a step further."""
    return RepackStep(database=database_name, repack=repack, table=f"{schema}.{table}")


def follow(settings: Settings, database_name: str, repack: int, run: int | None) -> None:
    """Remember which run people follow, and that its message is on its way."""
    with database.connection(settings.target(database_name), purpose="repack request", autocommit=True) as conn:
        store.sent(conn, repack, run)


def finish(
    settings: Settings, messages: Sequence[Message], *, timeout: timedelta, until_ready: bool = True
) -> list[str]:
    """Do requests in this process until each is over, or ready and waits for a person; the problems that remain.

    Pauses between attempts are waited for. Gives up after `timeout` without a step that came further.
    """
    problems: list[str] = []
    for first in messages:
        if not isinstance(first, RepackStep):
            continue
        problems += _finish_one(settings, first, timeout, until_ready)
    _tell(settings, {first.database for first in messages if isinstance(first, RepackStep)})
    return problems


def _tell(settings: Settings, names: set[str]) -> None:
    """Deliver what people have to hear: where no worker runs, nobody else does."""
    configured = (settings.alerts.mail, settings.alerts.webhook, settings.alerts.sql)
    if all(channel is None for channel in configured):
        return
    for name in sorted(names):
        for reason in execution.run_here(alerts_waiting(settings, name), settings, timeout=timedelta(seconds=10)):
            log.warning("repack.not_told", database=name, reason=reason)


def _finish_one(settings: Settings, first: RepackStep, timeout: timedelta, until_ready: bool) -> list[str]:
    last, since = None, time.monotonic()
    while True:
        now, wait = _look(settings, first)
        if now is not None and now.state == "active" and not now.is_paused and wait <= 0:
            try:
                pauses.check(settings.target(), first.room, settings.host)
            except Paused as reason:
                return [f"{now.name}: {reason}"]
            if problems := execution.run_here([first], settings, timeout=timeout):
                return problems
            now, wait = _look(settings, first)
        end = ended(now, until_ready=until_ready)
        if end is not None:
            return end
        assert now is not None
        mark = (now.step, now.rows_copied, now.position, now.verify_position, now.backlog_rows, now.lock_attempts)
        if mark != last:
            last, since = mark, time.monotonic()
        if wait > timeout.total_seconds():
            return [f"{now.name} waits until {now.due_at:%Y-%m-%d %H:%M} UTC: {now.problem}; then it goes on"]
        if time.monotonic() - since > timeout.total_seconds():
            return [
                f"gave up after {timeout.total_seconds():.0f} s: {now.problem or now.name};"
                " it goes on when you ask again"
            ]
        time.sleep(min(max(wait, 0.05), 1.0))


def ended(now: Request | None, *, until_ready: bool = True) -> list[str] | None:
    """The problems of a request with which nothing more is to be done for now, [] if all is well; None: it goes on."""
    if now is None or now.state in ("done", "aborted"):
        return [] if now is None or not now.reason else [now.problem or now.reason]
    if now.state == "failed":
        return [now.problem or f"{now.name} failed"]
    if now.is_paused:
        return [f"{now.name} is paused by {now.paused_by}"]
    if now.goal != "abort" and now.keep_until is not None and now.step == "drop" and now.keep_until > datetime.now(UTC):
        log.info("repack.kept", table=now.name, until=now.keep_until.isoformat())
        return []
    return [] if machine.is_ready(now) and until_ready else None


def _look(settings: Settings, first: RepackStep) -> tuple[Request | None, float]:
    """A request, and how many seconds nothing can be done: it is not due, or somebody else is at it."""
    with database.connection(settings.target(first.database), purpose="repack here", autocommit=True) as conn:
        now = store.read(conn, first.repack)
        if now is None or now.state != "active":
            return now, 0.0
        found = store.whose(conn, first.repack)
        return now, max(store.seconds_until_due(conn, first.repack), 0.1 if found and found[0] else 0.0)


def due(settings: Settings, database_name: str, *, resend: bool) -> list[Message]:
    """The messages of a database's requests whose next step is due; none where nothing was ever asked for."""
    again = timedelta(seconds=settings.repack.requeue_seconds if resend else 86_400)
    with database.connection(settings.target(database_name), purpose="repack look", autocommit=True) as conn:
        if not store.is_set_up(conn):
            return []
        return [
            RepackStep(
                database=database_name,
                repack=row["id"],
                table=f"{row['schema_name']}.{row['table_name']}",
                run=row["run"],
            )
            for row in store.due(conn, again)
        ]


def alerts_waiting(settings: Settings, database_name: str) -> list[Message]:
    """The message that has a database's alerts told, if any waits."""
    with database.connection(settings.target(database_name), purpose="repack look", autocommit=True) as conn:
        if not store.is_set_up(conn) or not alerts.waiting(conn):
            return []
    return [DeliverAlerts(database=database_name)]


def forget_old(settings: Settings) -> int:
    """Delete requests and estimates beyond `repack.history_days`, in every database; how many."""
    older, gone = timedelta(days=settings.repack.history_days), 0
    for name in places.databases(settings):
        with database.connection(settings.target(name), purpose="repack forget", autocommit=True) as conn:
            if store.is_set_up(conn):
                gone += store.forget_old(conn, older) + bloat_catalog.forget(conn, older)
    return gone


def named(conn: Connection, text: str) -> list[int]:
    """The active requests of what a person calls a table, or of that number. Raises NothingToDo if there is none."""
    active = store.active(conn)
    if text.isdecimal():
        found = [one[0] for one in active if one[0] == int(text)]
    else:
        wanted = tables(conn, text)
        found = [one[0] for one in active if (one[1], one[2]) in wanted or f"{one[1]}.{one[2]}" == text]
    if not found:
        raise NothingToDo(f"{text} is not being rewritten; `headrace repack status` lists what is")
    return found

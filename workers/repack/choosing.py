"""Choosing: a plan's tables in one database are estimated, and those that are worth it are begun with."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from workers import database, logs
from workers.errors import HeadraceError, NothingToDo, PermanentFailure
from workers.messages import ChooseTables, Message
from workers.repack import bloat_catalog, choice, places, requests, store
from workers.repack.choice import Verdict
from workers.repack.pacing import window_hold
from workers.repack.requests import Wish
from workers.repack_settings import Plan
from workers.settings import Settings

log = logs.get(__name__)

AFTER_FAILURE = timedelta(days=1)
BUDGET_PERIOD = timedelta(days=1)  # without windows; with them, what was begun within a day is of one window


def plan_of(settings: Settings, name: str) -> Plan:
    """A plan of the settings. Raises PermanentFailure for an unknown one."""
    plan = settings.repack.plans.get(name)
    if plan is None:
        known = ", ".join(settings.repack.plans) or "none"
        raise PermanentFailure(f"the settings have no plan {name!r} below repack.plans (there: {known})")
    return plan


def verdicts(settings: Settings, database_name: str, name: str, plan: Plan) -> list[Verdict]:
    """What a plan would do in one database now; changes nothing."""
    target = settings.target(database_name)
    places.ensure(target)
    with database.connection(target, purpose="repack candidates") as conn:
        found = bloat_catalog.estimates(conn, plan.schemas, plan.tables, plan.skip_tables)
        live = {(schema, table) for _id, schema, table in store.active(conn)}
        # What failed just now would be chosen first again; the others have their turn, and a person time to look.
        live |= store.failed_of_plan(conn, name, AFTER_FAILURE)
        _running, used = store.plan_usage(conn, name, datetime.now(UTC) - BUDGET_PERIOD)
        return choice.choose(found, plan.thresholds, used_budget_bytes=used, live=live)


def choose(message: ChooseTables, settings: Settings) -> list[Message]:
    """Begin with as many tables as may be rewritten at once; their first messages.

    A table that is refused is remembered with the reason, and the next one has its place.
    """
    plan = plan_of(settings, message.plan)
    if not plan.enabled:
        raise NothingToDo(f"plan {message.plan} is not enabled")
    if (opens := window_hold(plan.windows, plan.timezone, datetime.now(UTC))) is not None:
        raise NothingToDo(f"plan {message.plan} waits for its window at {opens:%Y-%m-%d %H:%M} UTC")
    found = verdicts(settings, message.database, message.plan, plan)
    target = settings.target(message.database)
    with database.connection(target, purpose="repack choice", autocommit=True) as conn:
        # Two choices at once would both find the same places free.
        if not store.try_lock_choice(conn, message.plan):
            raise NothingToDo(f"plan {message.plan} is being looked at")
        try:
            running, _used = store.plan_usage(conn, message.plan, datetime.now(UTC))
            places_left = max(plan.at_once - running, 0)
            messages = begin(settings, message.database, message.plan, plan, found, places_left=places_left)
        finally:
            store.unlock_choice(conn, message.plan)
    log.info("repack.chosen", plan=message.plan, database=message.database, looked_at=len(found), begun=len(messages))
    return messages


def begin(
    settings: Settings, database_name: str, name: str, plan: Plan, found: Sequence[Verdict], *, places_left: int
) -> list[Message]:
    """Requests for the chosen ones, as many as there are places; every verdict is remembered."""
    messages: list[Message] = []
    waiting = 0
    with database.connection(settings.target(database_name), purpose="repack candidates", autocommit=True) as conn:
        for verdict in found:
            one, text, repack = verdict.estimate, verdict.text, None
            if verdict.is_chosen and len(messages) < places_left:
                wish = Wish(
                    goal=plan.goal, engine=verdict.engine if plan.engine == "auto" else plan.engine, plan=name,
                    bloat_bytes=one.bloat_bytes if not one.unknown else None, by=f"plan {name}",
                )  # fmt: skip
                try:
                    repack = requests.request(settings, database_name, one.schema, one.table, wish)
                    messages.append(requests.message(database_name, repack, one.schema, one.table))
                except HeadraceError as reason:
                    text = f"refused: {reason}"
                    log.warning("repack.refused", table=f"{one.schema}.{one.table}", reason=str(reason))
            elif verdict.is_chosen:
                text = f"waits for its turn ({text})"
                waiting += 1
            bloat_catalog.remember(conn, one, text, repack)
        store.chosen(conn, name, waiting)
    return messages


def due(settings: Settings, database_name: str) -> list[Message]:
    """The messages that have tables chosen: of each plan of this database whose window is open.

    A plan is looked at every `choose_minutes`, and as soon as a table that waits for its turn may have it.
    """
    now = datetime.now(UTC)
    wanted = [
        (name, plan)
        for name, plan in settings.repack.plans.items()
        if plan.enabled and database_name in plan.databases and window_hold(plan.windows, plan.timezone, now) is None
    ]
    if not wanted:
        return []
    target = settings.target(database_name)
    places.ensure(target)
    every = timedelta(minutes=settings.repack.choose_minutes)
    with database.connection(target, purpose="repack look", autocommit=True) as conn:
        return [
            ChooseTables(database=database_name, plan=name)
            for name, plan in wanted
            if store.choice_is_due(conn, name, every=every, at_once=plan.at_once)
        ]

"""Asking: what a person wants of tables: begun, gone on with, swapped, paused, given up, whatever is there already."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from workers import database
from workers.database import Connection
from workers.errors import NothingToDo, PermanentFailure, SettingsError
from workers.repack import (
    bloat_catalog,
    machine,
    pacing,
    places,
    preflight_catalog,
    requests,
    store,
)
from workers.repack.choice import Verdict, choose
from workers.repack.requests import Wish
from workers.repack.store import Request
from workers.repack_settings import Plan, TableRules
from workers.settings import Settings

# The session of a process that was killed in mid-statement lives until the server notices: see workers.database.
GONE_SECONDS = 8.0
_IDLE_GONE_SECONDS = 1.0  # of one that was not: at once
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Found:
    """A table that a person named: `problem` says why it cannot be what is meant; `exists`: here it is."""

    schema: str
    table: str
    exists: bool


def tables(settings: Settings, database_name: str, text: str) -> list[Found]:
    """The tables that a person calls so: one, or the leaf partitions of one; also one that is not there.

    Raises SettingsError for a name that is none, or does not say which.
    """
    with database.connection(settings.target(database_name), purpose="repack look", autocommit=True) as conn:
        try:
            schema, table = preflight_catalog.find(conn, text)
        except PermanentFailure as error:
            raise SettingsError([str(error)]) from error
        leaves = preflight_catalog.leaves(conn, schema, table)
        if leaves:
            return [Found(one, two, True) for one, two in leaves]
        return [Found(schema, table, preflight_catalog.facts(conn, schema, table).subject is not None)]


def check(settings: Settings, database_name: str, schema: str, table: str, wish: Wish) -> list[str]:
    """Why a table would be refused, a line each; nothing is changed. One that is half-way is not looked at again.

    Raises SettingsError when it is because of what its rules say: wrong columns, indexes, tablespaces.
    """
    rules = wish.rules or requests.rules_of(settings, database_name, schema, table)
    with database.connection(settings.target(database_name), purpose="repack look", autocommit=True) as conn:
        if store.is_set_up(conn) and store.active_of(conn, schema, table) is not None:
            return []  # it was checked when it began
        found = preflight_catalog.facts(conn, schema, table)
        reasons = requests.refusals(conn, found, rules, wish.engine)
        by_nature = requests.refusals(conn, found, TableRules(), wish.engine)
    if wrong := [reason for reason in reasons if reason not in by_nature]:
        raise SettingsError(wrong)
    return reasons


def problems(settings: Settings, database_name: str) -> list[str]:
    """What is wrong with a database's rules and rights before anything has run: for `headrace validate`."""
    found: list[str] = []
    own = settings.repack.databases.get(database_name)
    with database.connection(settings.target(database_name), purpose="repack look", autocommit=True) as conn:
        if trouble := pacing.preflight(conn, settings.repack.limits):
            found.append(f"{database_name}: {trouble}")
        for name, plan in settings.repack.plans.items():
            if database_name in plan.databases:
                missing = bloat_catalog.unknown(conn, plan.schemas, plan.tables)
                found += [f"repack.plans.{name}: nothing in {database_name} is called {one}" for one in missing]
    for text in own.tables if own is not None else ():
        schema, _, table = text.partition(".")
        try:
            if reasons := check(settings, database_name, schema, table, Wish()):
                found += [f"repack.databases.{database_name}.tables: {reason}" for reason in reasons[:1]]
        except SettingsError as error:
            found += [f"repack.databases.{database_name}.tables: {reason}" for reason in error.problems]
    return found


def begin(
    settings: Settings, database_name: str, schema: str, table: str, wish: Wish, *, verdict: Verdict | None = None
) -> tuple[int, str | None]:
    """A request's id, and what is to be said of it: a new one, or one that is half-way and goes on.

    Raises PermanentFailure when the table is refused, or somebody is rewriting it right now; NothingToDo when it was
    rewritten and its old table is kept still.
    """
    target = settings.target(database_name)
    places.ensure(target)
    with database.connection(target, purpose="repack request", autocommit=True) as conn:
        active = store.active_of(conn, schema, table)
        if active is not None:
            return active, _go_on(conn, active, wish)
    repack = requests.request(settings, database_name, schema, table, wish)
    if verdict is not None:
        with database.connection(target, purpose="repack request", autocommit=True) as conn:
            bloat_catalog.remember(conn, verdict.estimate, verdict.text, repack)
    return repack, None


def _go_on(conn: Connection, repack: int, wish: Wish) -> str:
    now = free(conn, repack)
    if now.is_paused:
        raise PermanentFailure(f"{now.name} is paused by {now.paused_by}: `headrace repack resume {now.name}`")
    if now.goal == "abort":
        raise PermanentFailure(f"{now.name} is being given up (repack {repack}): `headrace repack abort {now.name}`")
    if now.is_swapped and now.keep_until is not None and now.keep_until > datetime.now(UTC):
        raise NothingToDo(
            f"{now.name} was repacked (repack {repack}), and its old table is kept until"
            f" {now.keep_until:%Y-%m-%d %H:%M} UTC: `headrace repack abort {now.name}` drops it now"
        )
    if wish.goal == "ready" and now.goal == "swap":
        raise PermanentFailure(f"{now.name} is being rewritten already (repack {repack}), and to be swapped")
    was_ready = machine.is_ready(now)
    if wish.goal == "swap" and now.goal == "ready":
        store.want_swap(conn, repack)
    store.go_on(conn, repack)
    said = f"{now.name}: swaps the copy of repack {repack}" if was_ready and wish.goal == "swap" else (
        f"{now.name}: resumes repack {repack} at {now.step}, {now.rows_copied:,} rows copied"
    )  # fmt: skip
    if wish.rules is not None and wish.rules.model_dump(mode="json") != now.options.get("rules"):
        said += "; its options stay those that it began with"
    return said


def free(conn: Connection, repack: int) -> Request:
    """An active request that nobody works on; a process that was killed is waited for until the server knows.

    Raises PermanentFailure when somebody is at it.
    """
    began, mark = time.monotonic(), None
    while True:
        now, whose = store.read(conn, repack), store.whose(conn, repack)
        if now is None or whose is None or now.state != "active":
            raise PermanentFailure(f"repack {repack} has ended just now; ask again")
        is_running, is_here, updated_at = whose
        if not is_running and not is_here:
            return now
        waited = time.monotonic() - began
        came_further = mark is not None and updated_at != mark
        if came_further or waited > GONE_SECONDS or (is_here and waited > _IDLE_GONE_SECONDS):
            raise PermanentFailure(
                f"{now.name} is being rewritten already (repack {repack}, at {now.step}):"
                f" `headrace repack status` shows how far it is"
            )
        mark = updated_at
        time.sleep(_POLL_SECONDS)


def held(settings: Settings, database_name: str, repack: int) -> Connection:
    """A session that marks a request as being done to its end by this process, until it is closed.

    Raises PermanentFailure when another process has it.
    """
    target = settings.target(database_name)
    conn = database.connect(target, purpose=f"repack {repack} here", autocommit=True)
    if not store.try_lock_here(conn, repack):
        conn.close()
        raise PermanentFailure(f"repack {repack} is being done by another process")
    return conn


def interrupt(settings: Settings, database_name: str, repack: int) -> None:
    """Cancel what is being done for a request: the statement in hand is rolled back."""
    with database.connection(settings.target(database_name), purpose="repack interrupt", autocommit=True) as conn:
        store.cancel_steps(conn, repack)


def active(
    settings: Settings, database_name: str, names: Sequence[str], plan: tuple[str, Plan] | None = None
) -> list[Request]:
    """The active requests of these tables (or of these numbers); without names those of a plan, or all.

    Raises NothingToDo for a name that is not being rewritten.
    """
    with database.connection(settings.target(database_name), purpose="repack look", autocommit=True) as conn:
        if not store.is_set_up(conn):
            if names:
                raise NothingToDo(f"{names[0]} is not being rewritten; `headrace repack status` lists what is")
            return []
        try:
            ids = [repack for text in names for repack in requests.named(conn, text)]
        except PermanentFailure as error:
            raise SettingsError([str(error)]) from error
        if not names:
            ids = [one[0] for one in store.active(conn)]
        found = [one for one in (store.read(conn, repack) for repack in dict.fromkeys(ids)) if one is not None]
    return found if names or plan is None else [one for one in found if is_of(one, *plan)]


def is_of(one: Request, name: str, plan: Plan) -> bool:
    """Whether a request was begun by a plan, or is of a table that the plan lists."""
    if one.plan == name:
        return True
    if any(fnmatchcase(one.name, pattern) for pattern in plan.skip_tables):
        return False
    is_any = not plan.schemas and not plan.tables
    return is_any or one.schema in plan.schemas or any(fnmatchcase(one.name, pattern) for pattern in plan.tables)


def change(settings: Settings, database_name: str, one: Request, verb: str, by: str) -> bool:
    """Say swap, abort, pause or resume; False when it was so before, or is over."""
    with database.connection(settings.target(database_name), purpose="repack request", autocommit=True) as conn:
        if verb == "swap":
            return store.want_swap(conn, one.id)
        if verb == "abort":
            done = store.abandon(conn, one.id, None, f"given up by {by}")
            if done:
                _cancel(conn, one.id)
            return done
        return store.pause(conn, one.id, by) if verb == "pause" else store.resume(conn, one.id)


def go_on(settings: Settings, database_name: str, repack: int) -> bool:
    """The next step is due now."""
    with database.connection(settings.target(database_name), purpose="repack request", autocommit=True) as conn:
        return store.go_on(conn, repack)


def take_back(settings: Settings, database_name: str, repack: int, reason: str) -> bool:
    """End a request whose first step nobody has begun with."""
    with database.connection(settings.target(database_name), purpose="repack request", autocommit=True) as conn:
        now, whose = store.read(conn, repack), store.whose(conn, repack)
        is_new = now is not None and now.step == "prepare" and whose is not None and not whose[0]
        return is_new and store.finish(conn, repack, "aborted", reason=None, problem=reason)


def outcome(settings: Settings, database_name: str, repack: int) -> dict[str, Any] | None:
    """How a request stands, as its row says."""
    with database.connection(settings.target(database_name), purpose="repack look", autocommit=True) as conn:
        return store.outcome(conn, repack)


def standing(settings: Settings, database_name: str, repack: int) -> list[str] | None:
    """The problems of a request that has ended or waits for a person, [] if it is well; None: it goes on."""
    with database.connection(settings.target(database_name), purpose="repack look", autocommit=True) as conn:
        return requests.ended(store.read(conn, repack))


def engine_for(settings: Settings, database_name: str, schema: str, table: str) -> str:
    """The engine that fits a table's bloat: `reindex` where only its indexes are bloated."""
    with database.connection(settings.target(database_name), purpose="repack look", autocommit=True) as conn:
        pattern = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in f"{schema}.{table}")
        found = bloat_catalog.estimates(conn, (), (pattern,))
    verdicts = choose(found, Plan().thresholds)
    return verdicts[0].engine if verdicts else "shadow"


def unknown(settings: Settings, database_name: str, plan: Plan) -> list[str]:
    """Those of a plan's names and patterns that no table of a database matches."""
    with database.connection(settings.target(database_name), purpose="repack look", autocommit=True) as conn:
        return bloat_catalog.unknown(conn, plan.schemas, plan.tables)


def waits_until(plan: Plan, now: datetime) -> datetime | None:
    """When a plan's window opens; None: it is open, or it has none."""
    return pacing.window_hold(plan.windows, plan.timezone, now)


def _cancel(conn: Connection, repack: int) -> None:
    try:
        store.cancel_steps(conn, repack)
    except database.DatabaseError:
        return  # another role's session; it looks between its statements

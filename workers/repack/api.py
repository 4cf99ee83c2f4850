"""What others may ask of repack: what is due, how requests stand, and what a person wants done."""

from __future__ import annotations

from typing import Any

from workers import database, migrations
from workers.errors import HeadraceError
from workers.repack import asking, candidates, choice, choosing, places, plans, removal, repcloud_file, requests, status
from workers.repack import store as _store
from workers.repack.asking import Found
from workers.repack.choice import Verdict
from workers.repack.plans import Section
from workers.repack.repcloud_file import RepcloudFile
from workers.repack.requests import Wish
from workers.repack.store import Request
from workers.settings import Settings
from workers.targets import Target

__all__ = ["Found", "RepcloudFile", "Request", "Section", "Verdict", "Wish"]

request = requests.request
finish = requests.finish
message = requests.message
follow = requests.follow
rules_of = requests.rules_of
due = requests.due
alerts_waiting = requests.alerts_waiting
forget_old = requests.forget_old
names = places.names
databases = places.databases
due_for_choice = choosing.due
plan_of = choosing.plan_of
verdicts = choosing.verdicts
size = choice.size
tables = asking.tables
check = asking.check
problems = asking.problems
unknown = asking.unknown
begin = asking.begin
held = asking.held
interrupt = asking.interrupt
active = asking.active
change = asking.change
go_on = asking.go_on
outcome = asking.outcome
take_back = asking.take_back
standing = asking.standing
engine_for = asking.engine_for
waits_until = asking.waits_until
status_of = status.status
candidates_of = candidates.candidates
history = candidates.history
plan_statements = plans.plan
script = plans.script
would_remove = removal.look
remove = removal.remove
find_repcloud = repcloud_file.find
read_repcloud = repcloud_file.read
repcloud_as_yaml = repcloud_file.as_yaml


def migrations_of(settings: Settings) -> list[tuple[Target, str]]:
    """(database, migration room) of every database whose tables the settings have rewritten."""
    return [(settings.target(name), room) for name in names(settings) for room in places.ROOMS]


def set_up(settings: Settings, database_name: str, *, dry_run: bool) -> list[tuple[str, str]]:
    """Make our tables in a database; (name, statements) of what was, or would be, applied."""
    target = settings.target(database_name)
    with database.connection(target, purpose="repack setup") as conn:
        missing = [one for room in places.ROOMS for one in migrations.status(conn, room)[1]]
        conn.rollback()
        if not dry_run:
            places.migrate(conn, target)
    return [(one.name, one.text) for one in missing]


def connection(settings: Settings, database_name: str) -> dict[str, Any]:
    """Whether a database can be reached, has our tables, and how many requests are half-way there."""
    target = settings.target(database_name)
    known: dict[str, Any] = {"database": database_name, "connection": str(target)}
    try:
        with database.connection(target, purpose="repack look", autocommit=True) as conn:
            is_set_up = _store.is_set_up(conn)
            active = len(_store.active(conn)) if is_set_up else 0
            return known | {"reachable": True, "set_up": is_set_up, "active": active, "problem": None}
    except HeadraceError as error:
        return known | {"reachable": False, "set_up": None, "active": None, "problem": str(error)}

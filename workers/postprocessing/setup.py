"""Setting a database up for its jobs: our tables, the SQL façade, hdbpp's tables, ready-made procedures, grants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from workers import database, migrations
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.postprocessing import catalog, scope, store
from workers.settings import Settings
from workers.sql_files import queries
from workers.targets import Target

SQL = queries("postprocessing")

FACADE = "facade"
PROCEDURES = ("hdbpp_ttl", "hdbpp_reorder_chunks")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is missing, in words and as the statement that makes it; migrations go through their ledger."""

    what: str
    statement: str
    is_migration: bool = False


def plan(conn: Connection, *, facade: bool, hdbpp: bool, procedures: Sequence[str], grant: str | None) -> list[Step]:
    """What is missing here, in the order in which it is made; nothing is changed."""
    facts = store.facts(conn)
    rooms = (*scope.ROOMS, FACADE) if facade else scope.ROOMS
    steps = [Step(m.name, m.text, True) for room in rooms for m in migrations.status(conn, room)[1]]
    if hdbpp and not facts.has_hdbpp:
        steps.append(Step("table public.postprocessing_jobs", SQL["create_hdbpp_jobs"].text))
    if hdbpp and not facts.has_hdbpp_stats:
        steps.append(Step("table public.postprocessing_jobs_stats", SQL["create_hdbpp_stats"].text))
    for name in procedures:
        if name not in PROCEDURES:
            raise PermanentFailure(f"there is no ready-made procedure {name!r}; there are {', '.join(PROCEDURES)}")
        steps.append(Step(f"procedure headrace.{name}", procedure_text(name)))
    if grant is not None:
        steps += [Step(f"grants to {grant}", text) for text in catalog.grants(conn, grant)]
    return steps


def procedure_text(name: str) -> str:
    """The SQL of a ready-made procedure."""
    return resources.files("sql").joinpath("procedures", f"{name}.sql").read_text(encoding="utf-8")


def run(
    settings: Settings,
    name: str,
    *,
    facade: bool = True,
    hdbpp: bool = True,
    procedures: Sequence[str] = (),
    grant: str | None = None,
    dry_run: bool = False,
    target: Target | None = None,
) -> list[Step]:
    """Make what is missing in one database; what was (or would be) made. Twice is harmless.

    Raises PermanentFailure when the login may not, ServerUnavailable when the database cannot be reached.
    """
    target = target or settings.target(name)
    with database.connection(target, purpose="postprocessing setup") as conn:
        steps = plan(conn, facade=facade, hdbpp=hdbpp, procedures=procedures, grant=grant)
        conn.rollback()
        if dry_run:
            return steps
        scope.ensure(conn, target, (*scope.ROOMS, FACADE) if facade else scope.ROOMS)
        try:
            with conn.cursor() as cursor:
                for step in steps:
                    if not step.is_migration:
                        cursor.execute(step.statement)
        except database.DatabaseError as error:
            conn.rollback()
            if database.sqlstate(error) != "42501":
                raise
            raise PermanentFailure(
                f"{name}: {database.first_line(error)}; have the owner grant it, or run setup as one who may"
                + ("; without hdbpp's jobs leave its tables away: --no-hdbpp" if hdbpp else "")
            ) from error
        conn.commit()
    scope.forget(target)
    return steps

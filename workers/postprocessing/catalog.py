"""Routines of a database: a name as somebody wrote it becomes one procedure or function of pg_proc, and its call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg2 import errors, sql

from workers.database import Connection
from workers.errors import PermanentFailure
from workers.sql_files import Query, queries

SQL = queries("postprocessing")
MANAGE = queries("postprocessing_manage")

INT4_MAX = 2**31 - 1


class NotRunnable(PermanentFailure):
    """A job that cannot be called as it is defined; `sqlstate` is what PostgreSQL would say."""

    def __init__(self, message: str, sqlstate: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Routine:
    """One procedure or function that takes (integer, json)."""

    oid: int
    schema: str
    name: str
    is_procedure: bool
    number_type: str
    document_type: str
    body_hash: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    def call(self) -> Query:
        """The statement that runs it, for %(job_id)s and %(config)s; identifiers and types are quoted."""
        query = SQL["call_procedure" if self.is_procedure else "call_function"]
        number = "int4" if self.number_type == "integer" else "int8"
        return query.with_slots(
            routine=sql.Identifier(self.schema, self.name),
            number=sql.Identifier("pg_catalog", number),
            document=sql.Identifier("pg_catalog", self.document_type),
        )


def parts_of(conn: Connection, written: str | None) -> tuple[str | None, str]:
    """(schema or None, name) of a routine as a person wrote it, such as `t_ok` or `"My Sch"."Do It"`.

    Raises NotRunnable for whatever is not just a name; `conn` must be in autocommit mode.
    """
    if written is None:
        raise NotRunnable("proc_name is NULL; put the name of a procedure there", "22004")
    try:
        parts = SQL["parse_name"].value(conn, {"name": written}) if written else None
    except (errors.InvalidParameterValue, errors.SyntaxError, errors.DataError, ValueError):
        parts = None
    if not parts or len(parts) > 2:
        hint = 'Write it as name, schema.name or "Schema"."Name"; arguments come by themselves.'
        raise NotRunnable(f"proc_name {written!r} is not the name of a routine", "42601", hint=hint)
    return (parts[0], parts[1]) if len(parts) == 2 else (None, parts[0])


def default_path(conn: Connection) -> list[str]:
    """The schemas of the role's own search path; our sessions have one that nobody else can put anything into."""
    found = list(SQL["default_path"].value(conn))
    SQL["safe_path"].run(conn)
    return found


def resolve(
    conn: Connection, schema: str | None, name: str, *, job_id: int, path: Sequence[str] | None = None
) -> Routine:
    """The routine of this name that takes (integer, json). Without a schema the path decides: `path`, else the role's.

    Raises NotRunnable when there is none: 42883 missing or of another signature, 22003 a number too large for it.
    """
    written = f"{schema}.{name}" if schema else name
    if path is None:
        path = default_path(conn)
    found = SQL["routines"].records(conn, {"schema": schema, "name": name, "path": list(path)})
    fitting = [row for row in found if row["fits"]]
    if not found:
        where = "" if schema else " on the search path"
        raise NotRunnable(
            f"there is no procedure or function {written}{where}", "42883", hint="Create it, or correct proc_name."
        )
    if not fitting:
        raise NotRunnable(
            f"{written} takes ({found[0]['arguments']}), but a job calls it with its number and its config",
            "42883",
            hint="Give it the parameters (integer or bigint, json or jsonb).",
        )
    wide = [row for row in fitting if row["number_type"] == "bigint"]
    row = fitting[0]
    if job_id > INT4_MAX and row["number_type"] == "integer":
        if not wide:
            raise NotRunnable(
                f"job number {job_id} does not fit the integer parameter of {written}", "22003",
                hint="Declare the first parameter bigint.",
            )  # fmt: skip
        row = wide[0]
    return Routine(
        oid=row["oid"],
        schema=row["schema"],
        name=row["name"],
        is_procedure=row["kind"] == "p",
        number_type=row["number_type"],
        document_type=row["document_type"],
        body_hash=row["body_hash"],
    )


def set_role(conn: Connection, role: str) -> None:
    """Go on with this role's rights."""
    SQL["set_role"].with_slots(role=sql.Identifier(role)).run(conn)


def grants(conn: Connection, role: str) -> list[str]:
    """The statements that let a role manage jobs of its own, and this login run them as that role."""
    name = sql.Identifier(role)
    wanted = [
        SQL[query].with_slots(role=name) for query in ("grant_schema", "grant_orders", "grant_facade", "grant_views")
    ]
    if not SQL["may_become"].value(conn, {"role": role}):
        wanted.append(SQL["grant_role"].with_slots(role=name))
    return [query.composed.as_string(conn) for query in wanted if query.composed is not None]


def insert(conn: Connection, columns: dict[str, Any]) -> int:
    """A row of headrace.job; its number."""
    names = [sql.Identifier(name) for name in columns]
    values = [sql.Placeholder(name) for name in columns]
    query = MANAGE["add_job"].with_slots(columns=sql.SQL(", ").join(names), values=sql.SQL(", ").join(values))
    return int(query.value(conn, columns))


def update(conn: Connection, job_id: int, columns: dict[str, Any]) -> None:
    """Set columns of a row of headrace.job."""
    pairs = [sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in columns]
    query = MANAGE["alter_job"].with_slots(assignments=sql.SQL(", ").join(pairs))
    query.run(conn, {**columns, "job_id": job_id})


def list_jobs(conn: Connection, *, hdbpp: bool, job: int | None, gone: bool) -> list[dict[str, Any]]:
    """Jobs with schedule and state; where hdbpp's table is missing, without a look at it."""
    empty = sql.SQL("(SELECT NULL::bigint AS job_id, NULL::text AS proc_name, NULL::jsonb AS config)")
    table = sql.Identifier("public", "postprocessing_jobs") if hdbpp else empty
    return MANAGE["list_jobs"].with_slots(hdbpp=table).records(conn, {"job": job, "gone": gone})


def identifier(*parts: str) -> sql.Identifier:
    """A name, schema first, to fill a query's slot."""
    return sql.Identifier(*parts)

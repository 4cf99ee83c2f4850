"""Jobs from elsewhere and for elsewhere: those of hdbpp, TimescaleDB and pg_cron become ours, ours become SQL."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from workers import database
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.postprocessing import catalog, schedule, store
from workers.postprocessing.jobs import ORIGIN_HDBPP
from workers.postprocessing.schedule import Schedule, ScheduleError
from workers.sql_files import queries

SQL = queries("postprocessing_interchange")
MANAGE = queries("postprocessing_manage")
ROOM = queries("postprocessing")

SOURCES = ("hdbpp", "timescaledb", "pg_cron")
MOVED = "HDB++ postprocessing (moved to headrace.job)"  # no longer what hdbpp-postprocessing and our mirror select
DEFAULT_DAILY = ("0 2 * * *", "UTC")

_IMPORT_KEY = store.LOOK_KEY - 1
# What parse_ident() takes, so that it is never asked about anything else: its error would end the transaction.
_SPACE = r"[ \t\n\r\f]*"
_NAME = rf'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*){_SPACE}'
_WRITTEN = rf"{_SPACE}{_NAME}(?:\.{_SPACE}{_NAME})?"
_ROUTINE = re.compile(_WRITTEN)
_SECONDS = re.compile(r"\s*(\d+)\s+seconds?\s*", re.IGNORECASE)
_LOCAL_HOSTS = ("", "localhost", "127.0.0.1", "::1")
# What a row of headrace.job says about a job besides what it runs.
_SETTINGS = (
    "run_as", "scheduled", "schedule_interval", "cron", "run_at", "after_job", "fixed_schedule", "timezone",
    "initial_start", "run_window", "after_failure", "max_runtime", "max_retries", "retry_period", "atomic", "on_lost",
    "missed", "missed_cap", "start_deadline", "overlap", "lock_group", "priority", "alert_after",
)  # fmt: skip
# pg_cron neither retries nor catches up, and a slot that comes while the job runs waits for its end. A retry period
# beyond any next slot means just that: the next slot.
_AS_PG_CRON = {"retry_period": "1 year", "missed": "skip", "overlap": "queue"}
_PIECE = re.compile(
    r"(?P<comment>--[^\r\n]*)|(?P<block>/\*)|(?P<end>;)"
    r"|(?P<text>(?<![\w$])[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|(?<![\w$])\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$)"
    r'|"(?:[^"]|"")*"|[^-/;$"\'eE]+|.',
    re.DOTALL,
)
_NOT_IN_A_PROCEDURE = re.compile(
    r"""VACUUM\b | ALTER\s+SYSTEM\b | (?:CREATE|DROP)\s+(?:DATABASE|TABLESPACE|SUBSCRIPTION)\b
    | ALTER\s+DATABASE\b.*\bSET\s+TABLESPACE\b | (?:CREATE(?:\s+UNIQUE)?|DROP)\s+INDEX\s+CONCURRENTLY\b
    | REINDEX\s*(?:\([^)]*\)\s*)?(?:SYSTEM|DATABASE|SCHEMA)\b | REINDEX\b.*\bCONCURRENTLY\b
    | CLUSTER\s*(?:\([^)]*\)|VERBOSE\b)?\s*$ | ALTER\s+TABLE\b.*\bDETACH\s+PARTITION\b.*\bCONCURRENTLY\b
    | COPY\b.*\b(?:FROM\s+STDIN|TO\s+STDOUT)\b
    | (?:BEGIN|START\s+TRANSACTION|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE\s+TRANSACTION)\b""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Found:
    """A job somewhere else. `columns` are those of headrace.job; with `problems` it cannot be taken over as it is."""

    source: str
    source_id: int
    columns: dict[str, Any]
    next_start: datetime | None
    switch_off: str
    wrapper: str | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.source} job {self.source_id} ({self.columns.get('name')})"


def read(conn: Connection, source: str, *, daily: tuple[str, str] = DEFAULT_DAILY) -> list[Found]:
    """The jobs of a source in this database, in the order of their numbers; nothing is changed.

    `daily` is the cron expression and the time zone of hdbpp's jobs that have no schedule of their own.
    Raises PermanentFailure when the source is not in this database, or the login may not read it.
    """
    if source not in SOURCES:
        raise PermanentFailure(f"jobs cannot be imported from {source!r}; from {', '.join(SOURCES)} they can")
    try:
        if source == "timescaledb":
            found = _timescaledb(conn)
        elif source == "pg_cron":
            found = _pg_cron(conn)
        else:
            found = _hdbpp(conn, daily)
    except database.DatabaseError as error:
        if database.sqlstate(error) != "42501":
            raise
        raise PermanentFailure(
            f"the jobs of {source} cannot be read: {database.first_line(error)}; grant USAGE on its schema and SELECT, "
            "or import as one who may"
        ) from error
    for job in found:
        job.problems.extend(_schedule_problems(job.columns))
        known = existing(conn, job)
        if known is not None:
            job.notes.append(f"is job {known} here already")
    return found


def existing(conn: Connection, found: Found) -> int | None:
    """The job of our own that it has become already: the same routine, config and name."""
    number: int | None = SQL["same_job"].value(conn, _identity(found) | {"config": found.columns.get("config")})
    return number


def take(conn: Connection, found: Found) -> int:
    """Make it a job of our own, in the caller's transaction; its number. Twice is harmless: the first one's number.

    Raises PermanentFailure for one with problems, and when the login may not make it; TypeError without a transaction.
    """
    if conn.autocommit:
        raise TypeError("take() needs a transaction, for a refusal to leave nothing behind: autocommit is on")
    if found.problems:
        raise PermanentFailure(f"{found} cannot be taken over: {'; '.join(found.problems)}")
    SQL["wait_for_imports"].row(conn, {"key": _IMPORT_KEY})
    known = existing(conn, found)
    if known is not None:
        return known
    columns = {name: value for name, value in found.columns.items() if value is not None}
    if "schedule_interval" in columns and columns.get("fixed_schedule", True):
        columns.setdefault("initial_start", store.now(conn))
    if found.source == "hdbpp" and "after_job" in columns:
        columns["after_job"] = SQL["after_job_of"].value(conn, {"job": found.source_id})
    try:
        if found.wrapper is not None:
            _make_wrapper(conn, found)
        job = catalog.insert(conn, columns)
    except database.DatabaseError as error:
        code = database.sqlstate(error) or ""
        if not code.startswith(("22", "23", "42")):
            raise
        raise PermanentFailure(f"{found} cannot be taken over: {database.first_line(error)}") from error
    _check(conn, found, job)
    if found.source == "hdbpp":
        SQL["hand_over_followers"].run(conn, {"old": found.source_id, "new": job})
    if found.next_start is not None and columns.get("scheduled", True) and found.next_start > store.now(conn):
        MANAGE["start_at"].run(conn, {"job": job, "at": found.next_start})
    return job


def disable_statement(found: Found) -> str:
    """What to run at the source so that the job does not run twice."""
    return found.switch_off


def disable(conn: Connection, found: Found) -> None:
    """Have the source run it no more, in the caller's transaction: with `take` in the same one, exactly one has it."""
    _execute(conn, found.switch_off)
    if found.source == "hdbpp":
        store.mirror(conn)


def exportable(
    conn: Connection, *, job: int | None = None, daily: tuple[str, str] = DEFAULT_DAILY
) -> list[dict[str, Any]]:
    """Definitions for `export_sql`: of every job or of one; hdbpp's with their routine, config and daily schedule."""
    rows = SQL["exportable_jobs"].records(conn, {"job": job})
    hdbpp = any(row["origin"] == ORIGIN_HDBPP for row in rows) and store.facts(conn).has_hdbpp
    theirs = {row["source_id"]: row for row in SQL["hdbpp_jobs"].records(conn)} if hdbpp else {}
    for row in rows:
        if row["origin"] != ORIGIN_HDBPP:
            continue
        source = theirs.get(row["job_id"], {})
        written, row["config"] = source.get("proc_name"), source.get("config")
        if written is not None and _ROUTINE.fullmatch(written):
            row["proc_schema"], row["proc_name"] = catalog.parts_of(conn, written)
        if not any(row[kind] for kind in ("schedule_interval", "cron", "run_at", "after_job")):
            row["cron"], row["timezone"] = daily[0], row["timezone"] or daily[1]
    return rows


def export_sql(rows: Sequence[Mapping[str, Any]], *, dialect: Literal["headrace", "timescaledb"]) -> list[str]:
    """A piece of SQL for each row of `exportable`, to be run one after the other in one session; pure.

    Jobs come in the order of their numbers, but after those that they follow. `headrace` keeps everything but a job
    without any schedule; `timescaledb` tells in comments what TimescaleDB has not.
    """
    ordered = _parents_first(rows)
    followed = {row["after_job"] for row in rows}
    places = {row["job_id"]: place for place, row in enumerate(ordered, 1)}
    if dialect == "timescaledb":
        return [_for_timescaledb(row) for row in ordered]
    return [_for_headrace(row, places, is_followed=row["job_id"] in followed) for row in ordered]


# Reading


def _timescaledb(conn: Connection) -> list[Found]:
    jobs = _relation(conn, "timescaledb_information.jobs")
    tables = ("_timescaledb_catalog.bgw_job", "_timescaledb_config.bgw_job")
    return [
        _found_in_timescaledb(conn, row)
        for row in SQL["timescaledb_jobs"].with_slots(jobs=jobs, catalog=_relation(conn, *tables)).records(conn)
    ]


def _found_in_timescaledb(conn: Connection, row: dict[str, Any]) -> Found:
    columns = {name: value for name, value in row.items() if name not in ("source_id", "next_start")}
    # Without its time zone alter_job() would take that away from the job.
    zone = f", timezone => {_literal(row['timezone'])}" if row["timezone"] else ""
    found = Found(
        source="timescaledb",
        source_id=row["source_id"],
        columns=columns,
        next_start=row["next_start"],
        switch_off=f"SELECT public.alter_job({row['source_id']}, scheduled => false{zone})",
    )
    _set_role(conn, found)
    _find_routine(conn, found)
    return found


def _pg_cron(conn: Connection) -> list[Found]:
    jobs = _relation(conn, "cron.job")
    return [_found_in_pg_cron(conn, row) for row in SQL["pg_cron_jobs"].with_slots(jobs=jobs).records(conn)]


def _found_in_pg_cron(conn: Connection, row: dict[str, Any]) -> Found:
    number = row["source_id"]
    routine = f"pg_cron_{number}"
    columns = {
        "name": row["name"] or f"pg_cron job {number}",
        "owner": row["owner"],
        "proc_schema": "headrace",
        "proc_name": routine,
        "scheduled": row["scheduled"],
        **_AS_PG_CRON,
    }
    seconds = _SECONDS.fullmatch(row["schedule"])
    if seconds:
        columns["schedule_interval"] = f"{seconds[1]} seconds"
    else:
        columns |= {"cron": row["schedule"], "timezone": "UTC" if row["timezone"] == "GMT" else row["timezone"]}
    wrapper, problems, notes = _wrapper(conn, routine, row["command"])
    if not row["is_here"]:
        problems.append(
            f"it runs in the database {row['database']}, not in {row['here']}: its cron.job has to be read from there"
        )
    local = row["nodename"] in _LOCAL_HOSTS or row["nodename"].startswith("/")
    if not (local and row["is_this_port"]):
        problems.append(f"it runs on {row['nodename']}:{row['nodeport']}, which does not look like this server")
    notes.append(
        "as in pg_cron a failed run waits for its next slot, one missed while nothing was up is skipped, and one that "
        "comes while the job runs is queued; alter retry_period, missed and overlap to change that"
    )
    off = (
        f"SELECT cron.alter_job({number}, active => false)" if row["may_alter"] else f"SELECT cron.unschedule({number})"
    )
    found = Found("pg_cron", number, columns, None, off, wrapper, problems, notes)
    _set_role(conn, found)
    return found


def _hdbpp(conn: Connection, daily: tuple[str, str]) -> list[Found]:
    _relation(conn, "public.postprocessing_jobs")
    return [_found_in_hdbpp(conn, row, daily) for row in SQL["hdbpp_jobs"].records(conn)]


def _found_in_hdbpp(conn: Connection, row: dict[str, Any], daily: tuple[str, str]) -> Found:
    number, written = row["source_id"], row["proc_name"]
    settings = row["settings"] or {}
    columns = {"name": f"{row['name']} [{number}]", "config": row["config"]}
    columns |= {name: settings[name] for name in _SETTINGS if name in settings}
    if not any(columns.get(kind) for kind in ("schedule_interval", "cron", "run_at", "after_job")):
        columns |= {"cron": daily[0], "timezone": columns.get("timezone") or daily[1]}
    off = f"UPDATE public.postprocessing_jobs SET application_name = {_literal(MOVED)} WHERE job_id = {number}"
    found = Found("hdbpp", number, columns, row["next_start"], off)
    found.notes.append("from then on postprocessing_jobs_stats counts its runs no more; headrace.job_stats does")
    if written is None or not _ROUTINE.fullmatch(written):
        found.problems.append(f"proc_name {written!r} is not the name of a routine: correct it in postprocessing_jobs")
    else:
        columns["proc_schema"], columns["proc_name"] = catalog.parts_of(conn, written)
        _find_routine(conn, found)
    return found


def _relation(conn: Connection, *names: str) -> Any:
    """The first of these tables that there is."""
    for name in names:
        if SQL["has_relation"].value(conn, {"name": name}):
            return catalog.identifier(*name.split("."))
    raise PermanentFailure(
        f"there is no {names[0]} in {conn.info.dbname}; read the database in which the extension keeps its jobs"
    )


def _set_role(conn: Connection, found: Found) -> None:
    """`run_as`: nothing if its owner is the login; otherwise that one, if the login may become it."""
    role = found.columns["owner"]
    facts = SQL["role_facts"].records(conn, {"role": role})[0]
    if facts["is_login"]:
        return
    found.columns["run_as"] = role
    if not facts["is_there"]:
        found.problems.append(f"its owner {role} is no longer a role here")
    elif not facts["may_become"] and facts["is_superuser"]:
        found.problems.append(
            f"it runs as the superuser {role}, and {facts['login']} may not: give it to an ordinary role there"
        )
    elif not facts["may_become"]:
        found.problems.append(
            f"it runs as {role}, and {facts['login']} may not: GRANT {_quoted(role)} TO {_quoted(facts['login'])}"
        )
    elif facts["settings"]:
        settings = ", ".join(facts["settings"])
        found.notes.append(f"what ALTER ROLE {role} SET ({settings}) does not hold here: only a login brings it about")


def _find_routine(conn: Connection, found: Found) -> None:
    """The schema of its routine, or what is wrong with that one."""
    columns = found.columns
    try:
        routine = catalog.resolve(conn, columns["proc_schema"], columns["proc_name"], job_id=catalog.INT4_MAX)
    except catalog.NotRunnable as problem:
        found.problems.append(f"{problem}{f' ({problem.hint})' if problem.hint else ''}")
    else:
        columns["proc_schema"] = routine.schema


def _schedule_problems(columns: Mapping[str, Any]) -> list[str]:
    try:
        schedule.check(Schedule(cron=columns.get("cron"), zone=columns.get("timezone")))
    except ScheduleError as problem:
        return [str(problem)]
    return []


# The commands of pg_cron


def _wrapper(conn: Connection, routine: str, command: str) -> tuple[str, list[str], list[str]]:
    """The procedure that does what a command does, problems, notes."""
    statements = _statements(command)
    problems, notes = [], []
    if not statements:
        problems.append("its command is empty")
    for text, bare in statements:
        forbidden = _NOT_IN_A_PROCEDURE.match(bare)
        if forbidden:
            words = " ".join(forbidden[0].upper().split())
            problems.append(
                f"its command has {words}, which PostgreSQL does not do inside a procedure: leave it to pg_cron, or "
                f"write a routine of its own ({_one_line(text, 60)})"
            )
    # Written out, CALL and DO may commit inside; by EXECUTE they could not.
    literal = len(statements) == 1 and re.match(r"(?:CALL|DO)\b", statements[0][1], re.IGNORECASE) is not None
    if literal and _has_output(conn, statements[0][1]):
        literal = False
        notes.append("its procedure has output parameters; called from the import's procedure it must not COMMIT")
    body = f"{statements[0][0]}\n    ;" if literal else f"EXECUTE {_dollar_quoted(command, 'command')};"
    block = f"\nBEGIN\n    {body}\nEND\n"
    head = f"CREATE OR REPLACE PROCEDURE headrace.{routine}(job_id integer, config jsonb) LANGUAGE plpgsql AS "
    return head + _dollar_quoted(block, "wrapper"), problems, notes


def _statements(command: str) -> list[tuple[str, str]]:
    """(as it stands, without comments and texts) of each statement of a command."""
    found: list[tuple[str, str]] = []
    text = bare = ""
    position = 0
    while position < len(command):
        piece = _PIECE.match(command, position)
        assert piece is not None  # its last branch takes anything
        end = _end_of_comment(command, position) if piece["block"] else piece.end()
        if piece["end"]:
            found.append((text.strip(), bare.strip()))
            text = bare = ""
        else:
            text += command[position:end]
            comment = piece["comment"] or piece["block"]
            bare += " " if comment else "''" if piece["text"] else piece[0]
        position = end
    found.append((text.strip(), bare.strip()))
    return [statement for statement in found if statement[1]]


def _end_of_comment(command: str, start: int) -> int:
    """Where the comment that begins at `start` ends; PostgreSQL's nest."""
    depth = 0
    for mark in re.compile(r"/\*|\*/").finditer(command, start):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(command)


def _has_output(conn: Connection, call: str) -> bool:
    name = re.match(rf"CALL\s+({_WRITTEN})\(", call, re.IGNORECASE)
    if name is None:
        return False
    schema, procedure = catalog.parts_of(conn, name[1])
    return bool(SQL["has_output_parameters"].value(conn, {"schema": schema, "name": procedure}))


# Taking over


def _identity(found: Found) -> dict[str, Any]:
    return {name: found.columns.get(name) for name in ("name", "proc_schema", "proc_name")}


def _make_wrapper(conn: Connection, found: Found) -> None:
    columns = found.columns
    user = SQL["users_of_routine"].value(conn, _identity(found))
    if user is not None:
        raise PermanentFailure(
            f"{found} cannot be taken over: job {user} runs headrace.{columns['proc_name']} already, for another one; "
            "delete that job first"
        )
    assert found.wrapper is not None
    _execute(conn, found.wrapper)
    if columns.get("run_as"):
        role = catalog.identifier(columns["run_as"])
        wrapper = catalog.identifier("headrace", columns["proc_name"])
        ROOM["grant_schema"].with_slots(role=role).run(conn)
        SQL["grant_wrapper"].with_slots(wrapper=wrapper, role=role).run(conn)


def _check(conn: Connection, found: Found, job: int) -> None:
    """Refuse, inside the transaction, an interval that means nothing."""
    stored = store.listed(conn, [job], daily=Schedule())[0].job.schedule
    try:
        if stored is not None:
            schedule.check(stored)
    except ScheduleError as problem:
        raise PermanentFailure(f"{found} cannot be taken over: {problem}") from problem


def _execute(conn: Connection, statement: str) -> None:
    with conn.cursor() as cursor:
        cursor.execute(statement)


# SQL for others

# Arguments of our alter_job() that add_job() has not, with the values that a new job has anyway; then those of no
# function at all, and those of TimescaleDB's alter_job().
_ALTERED: dict[str, Any] = {
    "max_runtime": "00:00:00", "max_retries": -1, "retry_period": "00:05:00", "run_window": None, "atomic": False,
    "on_lost": "rerun", "missed": "once", "overlap": "skip", "lock_group": None, "priority": 0,
}  # fmt: skip
_UPDATED: dict[str, Any] = {"after_failure": "stop", "missed_cap": 10, "start_deadline": None, "alert_after": None}
_TIMESCALEDB = ("max_runtime", "max_retries", "retry_period")
# Cron expressions that are a plain interval: the interval, the unit that the first slot is counted from, its offset.
_MINUTE, _HOUR = r"(?P<minute>[0-5]?\d)", r"(?P<hour>[01]?\d|2[0-3])"
_GRIDS = (
    (re.compile(rf"{_MINUTE} \* \* \* \*"), "1 hour", "hour"),
    (re.compile(rf"{_MINUTE} {_HOUR} \* \* \*"), "1 day", "day"),
    (re.compile(rf"{_MINUTE} {_HOUR} \* \* (?P<weekday>[0-7])"), "7 days", "week"),
    (re.compile(rf"{_MINUTE} {_HOUR} (?P<day>1?\d|2[0-8]) \* \*"), "1 month", "month"),
)


def _for_headrace(row: Mapping[str, Any], places: Mapping[int, int], *, is_followed: bool) -> str:
    named = _common(row)
    if row["after_job"] in places:
        named["after_job"] = f"current_setting('headrace.exported_{places[row['after_job']]}')::integer"
    elif row["after_job"] is not None:
        return _left_out(row, f"it follows job {row['after_job']}, which is not exported")
    elif row["run_at"] is not None:
        named["run_at"] = _literal(row["run_at"])
    elif row["cron"] is not None:
        named["cron"] = _literal(row["cron"])
    elif row["schedule_interval"] is None:
        return _left_out(row, "it runs only on request, and add_job() wants a schedule")
    if row["proc_name"] is None:
        return _left_out(row, "its proc_name is not the name of a routine")
    call = _call("headrace.add_job", [_literal(_routine(row)), _literal(row["schedule_interval"])], named)
    changed = {name: _literal(row[name]) for name, usual in _ALTERED.items() if row[name] != usual}
    updated = {name: _literal(row[name]) for name, usual in _UPDATED.items() if row[name] != usual}
    number = call
    if changed:
        call = _call("headrace.alter_job", [call], changed)
        number = f"({call}).job_id"
    setting = f"headrace.exported_{places[row['job_id']]}"
    if updated or is_followed:
        call = f"set_config('{setting}', {number}::text, false)"
    statement = _as_role(row["run_as"], call)
    if updated:
        pairs = ", ".join(f"{name} = {value}" for name, value in updated.items())
        statement += f"\nUPDATE headrace.job SET {pairs} WHERE job_id = current_setting('{setting}')::integer;"
    return statement


def _for_timescaledb(row: Mapping[str, Any]) -> str:
    named = _common(row)
    interval = row["schedule_interval"]
    if row["cron"] is not None:
        grid = _grid(row["cron"], row["timezone"] or "UTC")
        if grid is None:
            return _left_out(row, f"TimescaleDB has no cron, and {row['cron']} is no plain interval")
        interval, named["initial_start"] = grid
        named.pop("fixed_schedule", None)  # says nothing beside cron, and would let an interval drift
        named["timezone"] = _literal(row["timezone"] or "UTC")
    elif row["run_at"] is not None:
        return _left_out(row, f"TimescaleDB has no job that runs once (at {row['run_at'].astimezone(UTC)})")
    elif row["after_job"] is not None:
        return _left_out(row, f"TimescaleDB has no job that follows another one (job {row['after_job']})")
    elif interval is None:
        return _left_out(row, "it runs only on request, and add_job() wants a schedule")
    if row["proc_name"] is None:
        return _left_out(row, "its proc_name is not the name of a routine")
    call = _call("public.add_job", [_literal(_routine(row)), _literal(interval)], named)
    changed = {name: _literal(row[name]) for name in _TIMESCALEDB if row[name] != _ALTERED[name]}
    if changed:
        # Its alter_job() takes the time zone away unless that is given again.
        zone = {"timezone": named["timezone"]} if "timezone" in named else {}
        call = _call("public.alter_job", [call], changed | zone)
    usual = {name: value for name, value in (_ALTERED | _UPDATED).items() if name not in _TIMESCALEDB}
    lost = [f"{name} {_one_line(str(row[name]))}" for name, value in usual.items() if row[name] != value]
    comment = f"-- Lost, for TimescaleDB has no such thing: {', '.join(lost)}\n" if lost else ""
    return comment + _as_role(row["run_as"], call)


def _common(row: Mapping[str, Any]) -> dict[str, str]:
    """The arguments of add_job() that both have, where they are not what it takes anyway."""
    check = _name(row["check_schema"], row["check_name"]) if row["check_name"] else None
    name = re.sub(r" \[\d+\]$", "", row["name"] or "")
    given = {
        "config": row["config"],
        "initial_start": row["initial_start"],
        "scheduled": None if row["scheduled"] else False,
        "check_config": check,
        "fixed_schedule": None if row["fixed_schedule"] else False,
        "timezone": row["timezone"],
        # add_job() adds the number; both together have to fit a name of PostgreSQL, which has 63 bytes.
        "job_name": None if name in ("", "User-Defined Action") else name.encode()[:50].decode(errors="ignore"),
    }
    return {key: _literal(value) for key, value in given.items() if value is not None}


def _grid(cron: str, zone: str) -> tuple[str, str] | None:
    """(interval, expression of a first slot in the future) of a cron expression that means a plain interval."""
    for pattern, interval, unit in _GRIDS:
        fields = pattern.fullmatch(" ".join(cron.split()))
        if fields is not None:
            parts = fields.groupdict()
            days = (int(parts["weekday"]) - 1) % 7 if "weekday" in parts else int(parts.get("day", 1)) - 1
            offset = f"{days} days {int(parts.get('hour', 0)):02}:{int(parts['minute']):02}"
            zoned = _literal(zone)
            first = f"date_trunc('{unit}', now() AT TIME ZONE {zoned}) + interval '1 {unit}' + interval '{offset}'"
            return interval, f"({first}) AT TIME ZONE {zoned}"
    return None


def _parents_first(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    waiting = {row["job_id"]: row for row in sorted(rows, key=lambda row: row["job_id"])}
    ordered: list[Mapping[str, Any]] = []
    while waiting:
        ready = next((job for job, row in waiting.items() if row["after_job"] not in waiting), next(iter(waiting)))
        ordered.append(waiting.pop(ready))
    return ordered


def _call(function: str, arguments: list[str], named: Mapping[str, str]) -> str:
    return f"{function}({', '.join([*arguments, *(f'{name} => {value}' for name, value in named.items())])})"


def _as_role(role: str | None, call: str) -> str:
    if role is None:
        return f"SELECT {call};"
    # In one block, so that a role that cannot be had leaves no job of somebody with more rights behind.
    lines = (f"SET LOCAL ROLE {_quoted(role)};", f"PERFORM {call};", "RESET ROLE;")
    block = "\nBEGIN\n" + "".join(f"    {line}\n" for line in lines) + "END\n"
    return f"DO {_dollar_quoted(block, 'job')};"


def _left_out(row: Mapping[str, Any], why: str) -> str:
    return f"-- Left out: {_one_line(_routine(row))}: {_one_line(why)}"


def _routine(row: Mapping[str, Any]) -> str:
    return _name(row["proc_schema"], row["proc_name"]) if row["proc_name"] else f"job {row['job_id']}"


def _name(schema: str | None, name: str) -> str:
    return ".".join(
        part if re.fullmatch(r"[a-z_][a-z0-9_]*", part) else _quoted(part) for part in (schema, name) if part
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: Any) -> str:
    """A literal as standard_conforming_strings has it, which every PostgreSQL since 9.1 has on."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    text = value.astimezone(UTC).isoformat(" ") if isinstance(value, datetime) else str(value)
    return "'" + text.replace("'", "''") + "'"


def _dollar_quoted(text: str, tag: str) -> str:
    number = 0
    mark = f"${tag}$"
    while mark in text + "$":
        number += 1
        mark = f"${tag}{number}$"
    return f"{mark}{text}{mark}"


def _one_line(text: str, most: int = 200) -> str:
    """Fit for a comment or a message: no line break can end it."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."

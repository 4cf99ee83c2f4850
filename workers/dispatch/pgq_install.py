"""PgQ where it is missing: the extension if the server has it and the login may, else PgQ's own SQL without C."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

from workers import database
from workers.database import Connection
from workers.dispatch import setup_catalog
from workers.dispatch.setup_catalog import SQL, PgqFacts, Step
from workers.errors import PermanentFailure
from workers.settings import Settings

FILE = "pgq_pl_only.sql"
SYSTEM = Path("/usr/share/postgresql")
_PACKAGES = r"^postgresql-[0-9]+-pgq3$"
_APT_SECONDS = 120.0
_FOR_PSQL = re.compile(r"^[ \t]*\\.*", re.MULTILINE)
# The whole file is one transaction here; PL/pgSQL's own BEGIN has no semicolon.
_TRANSACTION = re.compile(r"^[ \t]*(?:begin|commit|rollback|end)[ \t]+(?:work|transaction)[ \t]*;|^(?:begin|commit);",
                          re.MULTILINE | re.IGNORECASE)  # fmt: skip


def install(settings: Settings, name: str, *, source: Path | None = None, dry_run: bool = False) -> list[Step]:
    """Install PgQ into the named database of the settings; what was (or would be) done. Twice is harmless.

    `source` is the SQL to use, whatever else is there. Raises PermanentFailure when the login lacks a right, when the
    SQL cannot be found, and when the schema pgq is there without being whole; nothing is changed then.
    """
    target = settings.target(name)
    # A connection of its own: the file changes settings of the session.
    with closing(database.connect(target, purpose="install PgQ")) as conn, database.translated(target, conn):
        try:
            SQL["lock_pgq_install"].run(conn)
            steps = plan(conn, name, source=source, data_dir=settings.data_dir)
            if dry_run or all(step.is_note for step in steps):
                return steps
            with conn.cursor() as cursor:
                for step in steps:
                    if not step.is_note:
                        cursor.execute(step.statement)
            made = setup_catalog.pgq_facts(conn)
            if made.missing:
                used = next((step.file for step in steps if step.file), "the extension")
                raise PermanentFailure(
                    f"{name}: {used} makes no PgQ that can be used: {', '.join(made.missing)} would be missing; "
                    f"nothing was changed; give the {FILE} of PgQ 3.5 or newer with --from"
                )
            conn.commit()
        except database.DatabaseError as error:
            if database.sqlstate(error) is None or conn.closed:
                raise
            raise PermanentFailure(
                f"{name}: PgQ cannot be installed: {database.first_line(error)}; nothing was changed; "
                "run this again with a login that may, or have a superuser run CREATE EXTENSION pgq"
            ) from error
    return steps


def plan(conn: Connection, name: str, *, source: Path | None, data_dir: Path) -> list[Step]:
    """What installs PgQ in this database, or a note that it is there; nothing is changed, but a package may be fetched.

    Raises PermanentFailure as install() does.
    """
    facts = setup_catalog.pgq_facts(conn)
    if facts.has_schema:
        return [Step(_installed(name, facts))]
    if source is None and facts.available and (facts.is_superuser or not facts.needs_superuser):
        return [Step(f"PgQ {facts.available}, the extension in C", "CREATE EXTENSION pgq")]
    _demand_rights(name, facts)
    path = find_source(data_dir) if source is None else source
    slow = "its triggers in PL/pgSQL cost milliseconds a row"
    if facts.available:
        slow += f"; this server has the extension {facts.available} in C, which a superuser can create instead"
    return [Step(f"PgQ without C out of {path}: {slow}", read_source(path), path)]


def find_source(data_dir: Path, system: Path = SYSTEM) -> Path:
    """PgQ's SQL without C: of this system (the newest), fetched earlier, else fetched now out of Debian's package.

    The package is unpacked into `<data_dir>/pgq/`, without root. Raises PermanentFailure when there is none.
    """
    found = [path for path in system.glob(f"*/contrib/{FILE}") if path.parents[1].name.isdigit()]
    if found:
        return max(found, key=lambda path: int(path.parents[1].name))
    kept = data_dir / "pgq" / FILE
    return kept if kept.is_file() else fetch_source(kept)


def fetch_source(kept: Path) -> Path:
    """Take PgQ's SQL out of the newest package `postgresql-NN-pgq3` that apt knows. Raises PermanentFailure."""
    advice = f"install the package postgresql-NN-pgq3 (Debian, Ubuntu, apt.postgresql.org), or give {FILE} with --from"
    names = _output(["apt-cache", "search", "--names-only", _PACKAGES], Path.cwd(), advice).split("\n")
    packages = [line.split(" ", 1)[0] for line in names if line]
    if not packages:
        raise PermanentFailure(f"PgQ is not on this system, and apt knows no package of it; {advice}")
    package = max(packages, key=lambda text: int(text.split("-")[1]))
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as text:
        folder = Path(text)
        _output(["apt-get", "-q", "download", package], folder, advice)
        for archive in folder.glob("*.deb"):
            _output(["dpkg-deb", "-x", archive.name, "content"], folder, advice)
        files = sorted(folder.glob(f"content/**/{FILE}"))
        if not files:
            raise PermanentFailure(f"the package {package} holds no {FILE}; {advice}")
        os.replace(files[-1], kept)
    return kept


def read_source(path: Path) -> str:
    """The text of PgQ's SQL. Raises PermanentFailure when it cannot be run as one transaction."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PermanentFailure(f"{path}: cannot be read ({error}); give PgQ's {FILE} with --from") from error
    for pattern, what in ((_FOR_PSQL, "a command of psql"), (_TRANSACTION, "a transaction of its own")):
        found = pattern.search(text)
        if found:
            line = text.count("\n", 0, found.start()) + 1
            raise PermanentFailure(
                f"{path}, line {line}: {found.group().strip()!r} is {what}; give the assembled {FILE}"
            )
    return text


def _installed(name: str, facts: PgqFacts) -> str:
    if facts.missing:
        what = f"lacks {', '.join(facts.missing)}" if facts.present else "has nothing of PgQ in it"
        raise PermanentFailure(
            f"{name}: the schema pgq in {facts.database} {what}; look who made it, and finish or drop it "
            "(DROP SCHEMA pgq CASCADE loses its queues), then run this again"
        )
    version = f"{facts.installed}, the extension" if facts.installed else "in PL/pgSQL, which has no version"
    return f"PgQ is installed in {facts.database} already: {version}"


def _demand_rights(name: str, facts: PgqFacts) -> None:
    database_name = '"' + facts.database.replace('"', '""') + '"'
    login = '"' + facts.login.replace('"', '""') + '"'
    lacking = []
    if not facts.may_create_schema:
        lacking.append(f"CREATE on the database (GRANT CREATE ON DATABASE {database_name} TO {login})")
    if facts.missing_roles and not facts.may_create_roles:
        roles = ", ".join(facts.missing_roles)
        lacking.append(
            f"CREATEROLE, as there are no {roles} yet (ALTER ROLE {login} CREATEROLE, or have them made: "
            "CREATE ROLE pgq_reader; CREATE ROLE pgq_writer; CREATE ROLE pgq_admin IN ROLE pgq_reader, pgq_writer)"
        )
    if lacking:
        extension = "; or have a superuser run CREATE EXTENSION pgq" if facts.available else ""
        raise PermanentFailure(
            f"{name}: {facts.login} may not install PgQ: it lacks {' and '.join(lacking)}{extension}"
        )


def _output(argv: list[str], folder: Path, advice: str) -> str:
    try:
        done = subprocess.run(
            argv, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_APT_SECONDS,
            stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PermanentFailure(
            f"PgQ is not on this system, and {argv[0]} cannot fetch it ({error}); {advice}"
        ) from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E: ")] or done.stderr.splitlines()
        said = lines[0] if lines else f"exit code {done.returncode}"
        raise PermanentFailure(f"PgQ is not on this system, and `{' '.join(argv)}` fails: {said}; {advice}")
    return done.stdout

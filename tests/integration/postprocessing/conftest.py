"""A database with hdbpp's tables and procedures of every temper, and the old script's own file about it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
import yaml
from psycopg2.extensions import parse_dsn

if TYPE_CHECKING:
    from tests.conftest import Site

PROCEDURES = Path(__file__).parents[2] / "procedures.sql"
HDBPP = "HDB++ postprocessing"


def connection_of(dsn: str) -> dict[str, Any]:
    """The `connection:` block that reaches a dsn."""
    words = parse_dsn(dsn)
    return {
        "user": words["user"],
        "password": words.get("password", ""),
        "host": words["host"],
        "port": int(words.get("port", 5432)),
        "database": words["dbname"],
    }


@dataclass
class Acc:
    """The database `acc` of the scenarios: hdbpp's tables, procedures of every temper, a witness."""

    dsn: str
    site: Site
    legacy: Path

    def ask(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Ask the database."""
        return self.site.ask(statement, *parameters)

    def job(self, procedure: str | None, config: str | None = "{}", application: str | None = HDBPP) -> int:
        """A row of postprocessing_jobs; its number."""
        statement = (
            "INSERT INTO public.postprocessing_jobs (application_name, proc_name, config) VALUES (%s, %s, %s) "
            "RETURNING job_id"
        )
        return int(self.ask(statement, application, procedure, config)[0][0])

    def run_once(self, *words: str, legacy: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        """The drop-in command of the old script's cron line."""
        file = str(legacy or self.legacy)
        return self.site.run("postprocessing", "run", "--here", "--legacy-config", file, *words, timeout=90, **more)

    def tags(self) -> list[str]:
        """What the procedures have witnessed, in order."""
        return [row[0] for row in self.ask("SELECT tag FROM public.witness ORDER BY id")]

    def stats(self) -> dict[int, tuple[Any, ...]]:
        """Job number -> (last_run_status, job_status, runs, successes, failures) of hdbpp's own table."""
        rows = self.ask(
            "SELECT job_id, last_run_status, job_status, total_runs, total_successes, total_failures "
            "FROM public.postprocessing_jobs_stats ORDER BY job_id"
        )
        return {row[0]: row[1:] for row in rows}

    def history(self, columns: str = "job_id, state, sqlstate") -> list[tuple[Any, ...]]:
        """Runs in the order in which they were asked for."""
        return self.ask(f"SELECT {columns} FROM headrace.job_run ORDER BY run_id")

    def command(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """`headrace postprocessing WORDS` against this database."""
        return self.site.run("postprocessing", *words, timeout=90, **more)

    def json(self, *words: str, **more: str) -> Any:
        """The document of `headrace postprocessing WORDS --json`."""
        found = self.command(*words, "--json", **more)
        assert found.stdout, found.stderr
        return json.loads(found.stdout)

    def backends(self, procedure: str) -> int:
        """How many backends are in a procedure at this moment."""
        statement = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE state = 'active' AND query ILIKE %s AND pid <> pg_backend_pid() AND datname = current_database()"
        )
        return int(self.ask(statement, f"%CALL%{procedure}%")[0][0])


def write_yaml(path: Path, document: Any) -> Path:
    """A YAML file."""
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def acc(site: Site, tmp_path: Path) -> Acc:
    """A database whose server's time zone is not the client's, and hdbpp-postprocessing's file about it."""
    conn = psycopg2.connect(site.dsn)
    conn.autocommit = True
    with conn.cursor() as cursor:
        cursor.execute(PROCEDURES.read_text())
        cursor.execute(f"ALTER DATABASE \"{conn.info.dbname}\" SET TimeZone = 'Europe/Paris'")
    conn.close()
    legacy = write_yaml(tmp_path / "hdbpp_postprocessing.conf", {"acc": {"connection": connection_of(site.dsn)}})
    return Acc(site.dsn, site, legacy)


Ask = Callable[..., list[tuple[Any, ...]]]

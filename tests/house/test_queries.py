"""SQL in files: every named query is used, exists where it is used, and prepares on the migrated schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from workers.sql_files import queries

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "sql" / "queries").glob("*.sql"))
SOURCES = [
    path
    for folder in ("workers", "producers")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in str(path)
]
# COPY cannot be prepared; what makes temporary tables is run by the tests of its room.
UTILITY = re.compile(
    r"^\s*(COPY|CREATE|ALTER|DROP|GRANT|RESET|SET|TRUNCATE|CALL|SAVEPOINT|ROLLBACK|RELEASE)\b", re.IGNORECASE
)


def uses() -> Iterator[tuple[Path, str, str]]:
    """(file, room, query name) of each `SQL["name"]`, by the module's own `SQL = queries("room")`."""
    for path in SOURCES:
        text = path.read_text()
        for variable, room in re.findall(r"^(\w+)(?:: [^=]+)? = queries\(\"(\w+)\"\)", text, re.MULTILINE):
            for names in re.findall(rf"\b{variable}\[([^\]]+)\]", text):
                quoted = re.findall(r"\"(\w+)\"", names)
                yield from ((path, room, name) for name in quoted)


def test_every_use_names_a_query_that_exists() -> None:
    """No module asks for a query that its SQL file does not have."""
    missing = [(str(path), room, name) for path, room, name in uses() if name not in queries(room)]
    assert missing == []


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.stem))
def test_every_query_is_used(file: Path) -> None:
    """No query outlives the code that asked for it."""
    everything = "\n".join(path.read_text() for path in SOURCES)
    unused = [name for name in queries(file.stem) if f'"{name}"' not in everything]
    assert unused == []


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.stem))
def test_every_query_prepares_on_the_migrated_schema(file: Path, dsn: str) -> None:
    """PostgreSQL parses each query against the tables that the migrations make."""
    conn = psycopg2.connect(dsn)
    with conn.cursor() as cursor:
        cursor.execute(queries("telemetry")["create_stage"].text)
        cursor.execute(queries("telemetry")["create_sightings"].text)
        for query in queries(file.stem).values():
            if UTILITY.match(query.text) or query.slots:
                continue
            names = sorted(set(re.findall(r"%\((\w+)\)s", query.text)))
            text = query.text
            for number, name in enumerate(names, 1):
                text = text.replace(f"%({name})s", f"${number}")
            cursor.execute(f"PREPARE house_{query.name} AS {text.replace('%%', '%')}")
    conn.close()

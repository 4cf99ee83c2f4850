"""A database's schema as pg_dump writes it, with the programs of the server's own version."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from workers.services import binaries
from workers.services.binaries import POSTGRES_VARIABLE
from workers.services.postgres import PostgresServer

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
# pg_dump of late 2025 and newer writes a key of chance into each dump.
_RESTRICTION = re.compile(r"^\\(un)?restrict \w+$", re.MULTILINE)


def schema(dsn: str, folder: Path | None = None) -> str:
    """The whole database without headrace's own schema, owners and rights included; `folder` holds the programs."""
    program = (folder or binaries.postgres_bin()) / "pg_dump"
    found = subprocess.run(
        [str(program), "--schema-only", "--exclude-schema=headrace", "--dbname", dsn],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return _RESTRICTION.sub("", found.stdout)


@contextmanager
def debian_server(folder: Path) -> Iterator[PostgresServer]:
    """PostgreSQL 15 of Debian, an older one beside the embedded."""
    postgres = PostgresServer(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(POSTGRES_VARIABLE, os.fspath(DEBIAN_15))
        postgres.start()
    try:
        yield postgres
    finally:
        postgres.stop()
